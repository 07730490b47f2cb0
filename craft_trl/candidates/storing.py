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

"""Scoring and writing of what was drawn, beside the drawing of the next batch."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..devices import accelerator, default_device
from ..rewards import Reward, score
from ..rewards.reward_model import RewardModel
from .pool import CandidatePool, Key


class Storing:
    """
    Scores and writes a batch, on a GPU on a thread, while the next one is drawn.

    Args:
        pool ([`CandidatePool`]):
            Where the rows go.
        rewards (`dict[str, Reward]`):
            Scorers by column name.
        batch_size (`int`):
            Images of a batch, at most.
    """

    # Without a GPU both would want the same cores, and wait for each other: a fifth slower on two.
    overlaps = accelerator() == "cuda"

    def __init__(self, pool: CandidatePool, rewards: dict[str, Reward], batch_size: int):
        self.pool = pool
        self.networks = {name: reward for name, reward in rewards.items() if isinstance(reward, RewardModel)}
        self.others = {name: reward for name, reward in rewards.items() if name not in self.networks}
        # They would split larger batches, and the last part of a split has a size of its own.
        self.size = min(batch_size, RewardModel.batch_size)
        self.thread = ThreadPoolExecutor(1, "store", _use_own_stream) if self.overlaps else None
        self.future: Future | None = None

    def __enter__(self) -> "Storing":
        return self

    def __exit__(self, *error) -> None:
        # Also after Ctrl-C: what was drawn is still written.
        if self.thread is not None:
            self.thread.shutdown()

    @property
    def busy(self) -> bool:
        return self.future is not None

    def start(self, keys: list[Key], images: list[Image.Image]) -> None:
        """Begin with a batch; the one before must have been waited for."""
        if self.thread is not None:
            self.future = self.thread.submit(self._store, len(self.pool), keys, images)
        else:
            self.future = Future()
            self.future.set_result(self._store(len(self.pool), keys, images))

    def wait(self) -> list[Key]:
        """Take in the batch that was started, and return its keys."""
        future, self.future = self.future, None
        keys, scores, shard = future.result()
        self.pool.add(keys, scores, shard)
        return keys

    def _store(
        self, number: int, keys: list[Key], images: list[Image.Image]
    ) -> tuple[list[Key], dict[str, np.ndarray], Path]:
        # Every image is scored under the original prompt: only then can it be compared with the original's image.
        prompts = [prompt for prompt, _, _ in keys]
        scores = score(self.others, images, prompts)
        for start in range(0, len(keys), self.size) if self.networks else ():
            part = slice(start, start + self.size)
            # Batches of another size are rounded otherwise. So they all have one, filled up with copies.
            copies = self.size - len(keys[part])
            values = score(self.networks, images[part] + images[-1:] * copies, prompts[part] + prompts[-1:] * copies)
            for name in self.networks:
                kept = values[name][: len(keys[part])]
                scores[name] = np.concatenate([scores.get(name, kept[:0]), kept])
        return keys, scores, self.pool.write(number, keys, images, scores)


def _use_own_stream() -> None:
    # On the default stream, a score would have to wait for all of the next batch's work that is queued before it.
    if accelerator() == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(default_device()))
