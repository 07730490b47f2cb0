# Copyright 2026 The craft_trl authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Scoring and writing of what was drawn, beside the drawing of the next batch or after some batches."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..devices import accelerator, default_device
from ..rewards import Reward, score
from ..rewards.reward_model import RewardModel
from .pool import CandidatePool, Key
from .turns import Turns


class Storing:
    """
    Scores and writes a batch, on a GPU on a thread, while the next one is drawn. Where pipeline and rewards take turns on
    a GPU, batches wait until there are enough of them.

    Args:
        pool ([`CandidatePool`]):
            Where the rows go.
        rewards (`dict[str, Reward]`):
            Scorers by column name.
        batch_size (`int`):
            Images of a batch, at most.
        turns ([`Turns`], *optional*):
            How pipeline and rewards take turns. Defaults to both being there at any time.
    """

    # Without a GPU both would want the same cores, and wait for each other: a fifth slower on two.
    overlaps = accelerator() == "cuda"

    def __init__(self, pool: CandidatePool, rewards: dict[str, Reward], batch_size: int, turns: "Turns | None" = None):
        self.pool, self.rewards, self.turns = pool, rewards, turns
        self.size = part_size(batch_size)
        self.thread = ThreadPoolExecutor(1, "store", _use_own_stream) if self.overlaps and turns is None else None
        self.future: Future | None = None
        self.waiting: list[tuple[list[Key], list[Image.Image]]] = []
        self.most_waiting = 1 if turns is None else max(1, turns.num_images // batch_size)

    def __enter__(self) -> "Storing":
        return self

    def __exit__(self, *error) -> None:
        # Also after Ctrl-C: what was drawn is still written.
        if self.thread is not None:
            self.thread.shutdown()
        if self.waiting:
            self.wait()

    @property
    def busy(self) -> bool:
        """Whether there is something to wait for."""
        return self.future is not None or bool(self.waiting)

    @property
    def due(self) -> bool:
        """Whether it must be waited for before more is drawn: enough batches wait for their turn."""
        return len(self.waiting) >= self.most_waiting

    @property
    def at_work(self) -> bool:
        """Whether it must be waited for before the next batch, which may be drawn meanwhile."""
        return self.future is not None

    def start(self, keys: list[Key], images: list[Image.Image]) -> None:
        """Begin with a batch."""
        if self.turns is not None:
            self.waiting.append((keys, images))
        elif self.thread is not None:
            self.future = self.thread.submit(self._store, len(self.pool), keys, images)
        else:
            self.future = Future()
            self.future.set_result(self._store(len(self.pool), keys, images))

    def wait(self) -> list[Key]:
        """Take in what was started, and return its keys."""
        if self.turns is not None:
            return self._take_turn()
        future, self.future = self.future, None
        keys, scores, shard = future.result()
        self.pool.add(keys, scores, shard)
        return keys

    def _take_turn(self) -> list[Key]:
        """Score and write the batches that wait, reward after reward."""
        batches, self.waiting = self.waiting, []
        scores: list[dict[str, np.ndarray]] = [{} for _ in batches]
        with self.turns.scoring():
            for name, reward in self.rewards.items():
                with self.turns.reward(name):
                    for (keys, images), values in zip(batches, scores, strict=True):
                        values |= score_batch({name: reward}, keys, images, self.size)
        for (keys, images), values in zip(batches, scores, strict=True):
            self.pool.append(keys, images, values)
        return [key for keys, _ in batches for key in keys]

    def _store(
        self, number: int, keys: list[Key], images: list[Image.Image]
    ) -> tuple[list[Key], dict[str, np.ndarray], Path]:
        scores = score_batch(self.rewards, keys, images, self.size)
        return keys, scores, self.pool.write(number, keys, images, scores)


def score_batch(
    rewards: dict[str, Reward], keys: Sequence[Key], images: list[Image.Image], size: int
) -> dict[str, np.ndarray]:
    """
    Scores of a batch, each of shape `(N,)`, float32, that depend on nothing else in it.

    Args:
        rewards (`dict[str, Reward]`):
            Scorers by column name.
        keys (`Sequence[Key]`):
            Keys of the images.
        images (`list[PIL.Image.Image]`):
            The images.
        size (`int`):
            Images that go through a built-in network at once, always.
    """
    networks = {name: reward for name, reward in rewards.items() if isinstance(reward, RewardModel)}
    others = {name: reward for name, reward in rewards.items() if name not in networks}
    # Every image is scored under the original prompt: only then can it be compared with the original's image.
    prompts = [prompt for prompt, _, _ in keys]
    scores = score(others, images, prompts)
    for start in range(0, len(keys), size) if networks else ():
        part = slice(start, start + size)
        # Batches of another size are rounded otherwise. So they all have one, filled up with copies.
        copies = size - len(keys[part])
        values = score(networks, images[part] + images[-1:] * copies, prompts[part] + prompts[-1:] * copies)
        for name in networks:
            kept = values[name][: len(keys[part])]
            scores[name] = np.concatenate([scores.get(name, kept[:0]), kept])
    return scores


def part_size(batch_size: int) -> int:
    """Images that go through a built-in network at once, of batches of this size."""
    # They would split larger batches, and the last part of a split has a size of its own.
    return min(batch_size, RewardModel.batch_size)


def _use_own_stream() -> None:
    # On the default stream, a score would have to wait for all of the next batch's work that is queued before it.
    if accelerator() == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(default_device()))
