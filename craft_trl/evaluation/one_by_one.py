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

"""Images that are drawn and wait for judges that come one after the other."""

import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ..candidates.pool import CandidatePool, Key
from ..candidates.storing import part_size, score_batch
from ..progress import progress_bar
from ..rewards import Reward


DRAWN = "drawn"  # folder beside the shards of a pool, for images without scores


class WaitingImages:
    """
    Images in a pool without scores, which go into one with scores when all judges have seen them.

    Args:
        pool ([`CandidatePool`]):
            Where they go.
        drawn ([`CandidatePool`]):
            Where they are.
        batch_size (`int`):
            Images of a batch, as they were drawn.
    """

    def __init__(self, pool: CandidatePool, drawn: CandidatePool, batch_size: int):
        self.pool, self.drawn, self.batch_size, self.size = pool, drawn, batch_size, part_size(batch_size)
        self.asked: set[Key] = set()
        self.batches: list[list[Key]] = []
        self.scores: list[dict[str, np.ndarray]] = []

    def __contains__(self, key: Key) -> bool:
        """Whether an image is in the pool or will be, from whichever process."""
        return key in self.pool or key in self.asked

    def add(self, keys: Sequence[Key], asked: Iterable[Key]) -> None:
        """Take in images that this process is to score, and all that were asked for."""
        # The batches are those in which `fill_pool` would have drawn and scored them.
        missing = [key for key in keys if key not in self]
        self.batches += [missing[i : i + self.batch_size] for i in range(0, len(missing), self.batch_size)]
        self.scores = [{} for _ in self.batches]
        self.asked.update(asked)

    def score(self, name: str, reward: Reward, show_progress: bool = True) -> None:
        """Let a judge see all of them."""
        hidden = not (show_progress and self.batches)
        batches = progress_bar(
            list(zip(self.batches, self.scores, strict=True)), desc=f"Scores of {name}", disable=hidden
        )
        for keys, scores in batches:
            scores |= score_batch({name: reward}, keys, list(self.images(keys)), self.size)

    def store(self) -> None:
        """Move them with their scores to their pool."""
        dtypes = {}
        for shard in {self.drawn.shard_of[key] for keys in self.batches for key in keys}:
            rows = pq.read_table(shard, columns=["prompt", "expanded_prompt", "seed", "dtype"]).to_pylist()
            dtypes |= {(row["prompt"], row["expanded_prompt"], row["seed"]): row["dtype"] for row in rows}
        for keys, scores in zip(self.batches, self.scores, strict=True):
            images = list(self.images(keys))
            for key, image in zip(keys, images, strict=True):
                image.info["dtype"] = dtypes[key]
            self.pool.append(keys, images, scores)

    def images(self, keys: Sequence[Key]) -> Iterator[Image.Image]:
        """Some of them."""
        return (Image.open(io.BytesIO(png)) for png in self.drawn.images(keys))
