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

"""
Renders the training scenes and pairs in parallel processes, into one .npy file per column.

- scenes: a row is a scene without held-out combinations. Columns: images, labels, framing, and tokens and words of a
  caption, of another caption, and of a hard negative of the first.
- pairs: a row is a prompt with two drawings. Columns: images and labels of both, asks, captions, and tokens and words
  of the prompt and of a hard negative.

`tokens` are the CLIP tokens padded with the end of text, `words` the WordPiece tokens of ImageReward. Row i is always
the same, whatever the number of processes. The workers import neither torch nor transformers, so they start quickly.
"""

import functools
import multiprocessing
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from tokenizers import Tokenizer

from .drawing import SIZE, draw_pair, render
from .progress import progress_bar
from .scenes import ask_ids, caption, hard_negative, labels, sample_scene
from .vocabulary import CONTEXT_LENGTH, DEFECTS, HEADS, PAIR_ART_SETS


PAIR_SEED = 500_000_000  # pairs follow the scenes, whose seeds are 0, 1, ...
ROWS_PER_JOB = 500
SECONDS_TO_WAIT = 600  # for one job; it takes about a second
LABELS, ASKS = len(HEADS) + len(DEFECTS), 10
# Folder of the tokenizer of a column, and what it pads with.
TOKENIZERS = {"tokens": ("tokenizer", "<|endoftext|>"), "words": ("wordpiece", "[PAD]")}
CAPTION = "S192"  # bytes; the longest captions have about 120 characters

Columns = dict[str, tuple[type | str, tuple[int, ...]]]
SCENE_COLUMNS: Columns = {
    "images": (np.uint8, (SIZE, SIZE, 3)),
    "labels": (np.int16, (LABELS,)),
    "framing": (np.int16, (3,)),  # original size, crop from the top, from the left
    "tokens": (np.int16, (3, CONTEXT_LENGTH)),
    "words": (np.int16, (3, CONTEXT_LENGTH)),
}
PAIR_COLUMNS: Columns = {
    "images": (np.uint8, (2, SIZE, SIZE, 3)),
    "labels": (np.int16, (2, LABELS)),
    "asks": (np.int16, (ASKS,)),
    "captions": (CAPTION, ()),
    "tokens": (np.int16, (2, CONTEXT_LENGTH)),
    "words": (np.int16, (2, CONTEXT_LENGTH)),
}


@dataclass(frozen=True)
class Job:
    """Rows `start` to `stop` of the scenes or the pairs, for one worker."""

    render_row: Callable[[int], dict]
    columns: tuple[str, ...]
    folder: Path
    tokenizers: Path
    start: int
    stop: int


def render_scenes(
    folder: Path, tokenizers: Path, count: int, num_workers: int, columns: Columns = SCENE_COLUMNS
) -> None:
    """Render `count` scenes into `folder`, with captions tokenized by the tokenizers in the folder `tokenizers`."""
    _render("scenes", scene_row, columns, folder, tokenizers, count, num_workers)


def render_pairs(folder: Path, tokenizers: Path, count: int, num_workers: int) -> None:
    """Render `count` pairs into `folder`, with prompts tokenized by the tokenizers in the folder `tokenizers`."""
    _render("pairs", pair_row, PAIR_COLUMNS, folder, tokenizers, count, num_workers)


def read_column(folder: Path, column: str) -> np.ndarray:
    """Map a column of rendered rows into memory, read-only."""
    return np.load(folder / f"{column}.npy", mmap_mode="r")


def scene_row(index: int) -> dict:
    """Scene `index` of the base model's training set."""
    rng = random.Random(index)
    scene = sample_scene(rng, combos="seen")
    image, framing = render(scene, rng)
    first_caption, ask = caption(scene, rng)
    second_caption, _ = caption(scene, rng)
    return {
        "images": image,
        "labels": labels(scene),
        "framing": [framing.original_size, framing.crop_top, framing.crop_left],
        "texts": [first_caption, second_caption, hard_negative(ask, rng)],
    }


def pair_row(index: int) -> dict:
    """Pair `index`, drawn with the art sets of the network that it belongs to."""
    pair = draw_pair(PAIR_SEED + index, PAIR_ART_SETS[index % len(PAIR_ART_SETS)])
    return {
        "images": pair.images,
        "labels": pair.labels,
        "asks": ask_ids(pair.ask),
        "captions": pair.caption.encode(),
        "texts": [pair.caption, hard_negative(pair.ask, random.Random(index))],
    }


def _render(
    name: str,
    render_row: Callable[[int], dict],
    columns: Columns,
    folder: Path,
    tokenizers: Path,
    count: int,
    num_workers: int,
) -> None:
    folder.mkdir(parents=True)
    for column, (dtype, shape) in columns.items():
        file = folder / f"{column}.npy"
        open_memmap(file, mode="w+", dtype=dtype, shape=(count, *shape))
        if hasattr(os, "posix_fallocate"):
            # A file made by mapping has holes. Fill them now: on a full disk this is an error, later a killed worker.
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    jobs = []
    for start in range(0, count, ROWS_PER_JOB):
        stop = min(start + ROWS_PER_JOB, count)
        jobs.append(Job(render_row, tuple(columns), folder, tokenizers, start, stop))
    num_workers = min(num_workers, len(jobs))
    with progress_bar(name, count, "row") as progress:
        if num_workers <= 1:
            for job in jobs:
                progress.update(_run(job))
            return
        # Spawned rather than forked: forking a process whose libraries run threads can hang.
        with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
            results = pool.imap_unordered(_run, jobs)
            try:
                for _ in jobs:
                    progress.update(results.next(timeout=SECONDS_TO_WAIT))
            except multiprocessing.TimeoutError:
                # A pool waits forever for a worker that was killed, for want of memory, say.
                raise RuntimeError(
                    f"No {name} came for {SECONDS_TO_WAIT} s: a rendering process was killed."
                ) from None


def _run(job: Job) -> int:
    """Render the rows of a job into the files of its folder; returns their number."""
    rows = [job.render_row(index) for index in range(job.start, job.stop)]
    texts = [text for row in rows for text in row["texts"]]
    for column in job.columns:
        target = np.load(job.folder / f"{column}.npy", mmap_mode="r+")
        if column in TOKENIZERS:
            name, padding_token = TOKENIZERS[column]
            tokenized = _tokenize(texts, job.tokenizers / name / "tokenizer.json", padding_token)
            target[job.start : job.stop] = tokenized.reshape(len(rows), -1, CONTEXT_LENGTH)
        else:
            target[job.start : job.stop] = [row[column] for row in rows]
        target.flush()
    return len(rows)


def _tokenize(texts: list[str], tokenizer_file: Path, padding_token: str) -> np.ndarray:
    """Token ids of shape `(len(texts), 32)`, int16."""
    tokenizer = _load_tokenizer(tokenizer_file, padding_token)
    # One by one: the batch method would start a pool of threads in every worker.
    return np.array([tokenizer.encode(text).ids for text in texts], dtype=np.int16)


@functools.cache
def _load_tokenizer(file: Path, padding_token: str) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(CONTEXT_LENGTH)
    padding_id = tokenizer.token_to_id(padding_token)
    tokenizer.enable_padding(length=CONTEXT_LENGTH, pad_id=padding_id, pad_token=padding_token)
    return tokenizer
