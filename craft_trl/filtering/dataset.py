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


"""The training set: what passes the filter, with its advantages, as a `datasets` DatasetDict."""

import json
import shutil
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets

from ..candidates.filter_config import FilterConfig
from ..candidates.groups import Group
from ..candidates.pool import CandidatePool, Key
from ..conditions import compared_on, split_conditions
from ..errors import NothingToDoError, UsageError
from ..progress import progress_bar
from ..stages import check_writable, fingerprint
from .filter import each_candidate, explain_nothing, train_rows, vetoed_itself
from .images import TrainingImages
from .votes import HUMAN, with_votes


def features(rewards: Sequence[str]) -> Features:
    """Columns of the dataset; one row per image."""
    return Features(
        {
            "group_id": Value("int64"),
            "variant": Value("int64"),  # 0 = the original prompt
            "prompt": Value("string"),  # original
            "expanded_prompt": Value("string"),  # equal to `prompt` for variant 0
            "seed": Value("int64"),
            "image": datasets.Image(),
            **{name: Value("float32") for name in rewards},
            "keep": Value("bool"),
            "drop_reason": Value("string"),
            "advantage": Value("float32"),
        }
    )


# Bytes of images that are held in memory at a time, in a few copies, and rows. Arrow's columns end at 2 GiB.
PIECE = 1 << 27
ROWS = 100_000


def build_dataset_dict(
    groups: Sequence[Group], pool: CandidatePool, config: FilterConfig | None = None
) -> DatasetDict:
    """
    Filter a pool and compute the advantages.

    Args:
        groups (`Sequence[Group]`):
            Prompts with their variants.
        pool ([`CandidatePool`]):
            Images and scores.
        config ([`FilterConfig`], *optional*):
            What passes. Defaults to the paper's triple filter on groups.

    Returns:
        [`~datasets.DatasetDict`]: `train` holds the images to train on, those that are kept if not said otherwise; `candidates` holds a row for every image of every
        group, with scores, `keep`, `drop_reason` and `advantage`, but without the image, which is in the pool.
    """
    config = FilterConfig() if config is None else config
    pool = with_votes(pool, config)
    train, candidates = _filter(groups, pool, config)
    return DatasetDict({"train": with_images(train, pool), "candidates": candidates})


def save_dataset_dict(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig, folder: Path) -> list[dict]:
    """
    What `build_dataset_dict(groups, pool, config).save_to_disk(folder)` would do, with one piece of the images in memory
    at a time. Returns the rows that are trained on.
    """
    pool = with_votes(pool, config)
    train, candidates = _filter(groups, pool, config)
    check_writable(folder, int(1.1 * _expected_bytes(train, pool).sum()))
    folder.mkdir(parents=True)
    (folder / datasets.config.DATASETDICT_JSON_FILENAME).write_text(
        json.dumps({"splits": ["train", "candidates"]}), encoding="utf-8"
    )
    save_pieces(in_pieces(train, pool), folder / "train")
    candidates.save_to_disk(str(folder / "candidates"))
    return train


def _filter(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig) -> tuple[list[dict], Dataset]:
    rows, pieces = each_candidate(groups, pool, config), []

    def passing() -> Iterator[dict]:
        while piece := list(islice(rows, ROWS)):
            pieces.append(Dataset.from_list(piece, features=features(pool.rewards)))
            yield from piece

    train = list(train_rows(passing(), pool, config))
    if not train:
        raise NothingToDoError(explain_nothing(groups, pool, config))
    return train, pieces[0] if len(pieces) == 1 else concatenate_datasets(pieces)


def with_images(
    rows: Sequence[dict], pool: CandidatePool, pictured: Container[Key] | None = None, scratch: Path | None = None
) -> Dataset:
    """
    Rows of [`filter_candidates`] with their pictures from the pool.

    Args:
        rows (`Sequence[dict]`):
            Rows.
        pool ([`CandidatePool`]):
            Images.
        pictured (`Container[Key]`, *optional*):
            Rows that are to have their picture. Defaults to all.
        scratch (`Path`, *optional*):
            Folder for what does not fit into one piece, which lies on the disk and is read from there. It must stay as
            long as the dataset is used. Defaults to a folder of the system's for temporary files (`TMPDIR`), which goes
            when the process ends.
    """
    pieces = in_pieces(rows, pool, pictured)
    first, second = next(pieces), next(pieces, None)
    if second is None:
        return first
    if scratch is None:
        _temporary.append(TemporaryDirectory(prefix="craft_trl-"))
        scratch = Path(_temporary[-1].name)
    folder = Path(mkdtemp(dir=scratch))
    save_pieces(chain([first, second], pieces), folder)
    return Dataset.load_from_disk(str(folder))


_temporary: list[TemporaryDirectory] = []  # removed when the process ends


def in_pieces(rows: Sequence[dict], pool: CandidatePool, pictured: Container[Key] | None = None) -> Iterator[Dataset]:
    """
    Rows with their pictures as datasets of at most [`PIECE`] bytes of images and [`ROWS`] rows each, at least one. Where one
    ends depends on the images alone, and not on how they lie in shards.
    """
    columns = features(pool.rewards)  # rows that were filtered by votes have one more
    part, size = [], 0
    for row, image in _read(rows, pool, pictured):
        if part and (size + len(image or b"") > PIECE or len(part) == ROWS):
            piece, part, size = Dataset.from_list(part, features=columns), [], 0
            yield piece
        stored = None if image is None else {"bytes": image, "path": None}
        part.append({name: row[name] for name in columns} | {"image": stored})
        size += len(image or b"")
    yield Dataset.from_list(part, features=columns)


def _read(
    rows: Sequence[dict], pool: CandidatePool, pictured: Container[Key] | None
) -> Iterator[tuple[dict, bytes | None]]:
    """Rows in their order, each with its PNG, or without one if it is not among `pictured`."""
    expected = _expected_bytes(rows, pool, pictured)
    # Of rows that are read together, no shard is read twice.
    windows = np.stack([np.cumsum(expected) // PIECE, np.arange(len(rows)) // ROWS], axis=1).astype(int)
    with progress_bar(total=len(rows), unit="image", desc="Copying images", disable=expected.sum() < PIECE) as bar:
        for _, numbers in groupby(range(len(rows)), key=lambda i: tuple(windows[i])):
            window = [rows[i] for i in numbers]
            keys = [_key(row) for row in window]
            wanted = pool.by_shard(key for key in keys if pictured is None or key in pictured)
            images = dict(zip(wanted, pool.images(wanted), strict=True))
            for row, key in zip(window, keys, strict=True):
                yield row, images.get(key)
                bar.update()


def _expected_bytes(rows: Sequence[dict], pool: CandidatePool, pictured: Container[Key] | None = None) -> np.ndarray:
    """About how large the picture of each row is: as large as the mean of its shard."""
    shards = [pool.shard_of[key] if pictured is None or key in pictured else None for key in map(_key, rows)]
    counts, means = Counter(pool.shard_of.values()), {None: 0.0}
    for shard in set(shards) - {None}:
        with suppress(OSError):  # gone: reading its images says so
            means[shard] = shard.stat().st_size / counts[shard]
    return np.array([means.get(shard, 0.0) for shard in shards])


def _key(row: dict) -> Key:
    return row["prompt"], row["expanded_prompt"], row["seed"]


def save_pieces(pieces: Iterable[Dataset], folder: Path) -> None:
    """What `save_to_disk` would write of the pieces as one dataset, a file each, without ever having them together."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, fingerprints = [], []
    for number, piece in enumerate(pieces):
        parts.append(folder / f".part-{number}")
        piece.save_to_disk(str(parts[-1]), num_shards=1)
        fingerprints.append(piece._fingerprint)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        (part / "data-00000-of-00001.arrow").rename(folder / name)
    for name in (datasets.config.DATASET_STATE_JSON_FILENAME, datasets.config.DATASET_INFO_FILENAME):
        (parts[0] / name).rename(folder / name)
    if len(parts) > 1:
        path = folder / datasets.config.DATASET_STATE_JSON_FILENAME
        state = json.loads(path.read_text(encoding="utf-8"))
        state |= {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": fingerprint(fingerprints)[:16],
        }
        path.write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
    for part in parts:
        shutil.rmtree(part)


def build_pairs(
    groups: Sequence[Group], pool: CandidatePool, config: FilterConfig | None = None, scratch: Path | None = None
) -> Dataset:
    """
    Preference pairs of a pool, for [`DiffusionDPOTrainer`]: at most one of each group.

    Of the pairs of a group's images in which one beats the other on every filter reward, the one whose summed, scaled
    rewards differ most. The original's image takes part like any other. What is chosen is within all limits. A vetoed image
    is in no pair, but as the rejected one where `human`, which votes make, is among those rewards.

    Args:
        groups (`Sequence[Group]`):
            Prompts with their variants.
        pool ([`CandidatePool`]):
            Images and scores.
        config ([`FilterConfig`], *optional*):
            The filter's rewards and how rewards are summed. Defaults to all rewards of the pool.
        scratch (`Path`, *optional*):
            Where images lie that are too many for the memory, see [`with_images`].

    Returns:
        [`~datasets.Dataset`]: rows with `group_id`, `prompt`, the images `chosen` and `rejected`, and `margin`, the
        difference of their advantages.
    """
    config = FilterConfig() if config is None else config
    pool = with_votes(pool, config)
    config.check_rewards(pool.rewards)
    names, limits = split_conditions(config.conditions(pool.rewards))
    bounds = [(limit, pool.rewards.index(limit.reward)) for limit in limits]
    # Of `human` a vetoed image has the least, so that it beats none.
    with_vetoed = config.votes is not None and HUMAN in names
    rows = each_candidate(groups, pool, config)
    pairs = []
    for group in groups:
        made = zip(group.keys, islice(rows, len(group.keys)), strict=True)
        columns = [pool.rewards.index(name) for name in compared_on(group.prompt, names)]
        images = {
            key: row for key, row in made if key in pool and (with_vetoed or not vetoed_itself(row["drop_reason"]))
        }
        quality = {key: pool.quality(key)[columns] for key in images}
        fit = [key for key in images if all(limit.holds(pool.scores[key][column]) for limit, column in bounds)]
        better = [(images[a], images[b]) for a in fit for b in images if (quality[a] > quality[b]).all()]
        if better:
            pairs.append(max(better, key=lambda pair: pair[0]["advantage"] - pair[1]["advantage"]))
    if not pairs:
        raise NothingToDoError(f"In no group of {pool.folder} does one image beat another on {', '.join(names)}.")
    chosen, rejected = (with_images(half, pool, scratch=scratch) for half in zip(*pairs, strict=True))
    chosen = chosen.select_columns(["group_id", "prompt", "image"]).rename_column("image", "chosen")
    rejected = rejected.select_columns(["image"]).rename_column("image", "rejected")
    margins = np.array([a["advantage"] - b["advantage"] for a, b in pairs], dtype=np.float32)
    return concatenate_datasets([chosen, rejected], axis=1).add_column("margin", margins)


def build_lists(
    groups: Sequence[Group], pool: CandidatePool, config: FilterConfig | None = None, scratch: Path | None = None
) -> Dataset:
    """
    Ranked lists of a pool, for [`DiffusionDPOTrainer`]: of each group all images that are not vetoed, the original's among them,
    whether they pass a filter or not. Groups whose images are all equally good are left out.

    Args:
        groups (`Sequence[Group]`):
            Prompts with their variants.
        pool ([`CandidatePool`]):
            Images and scores.
        config ([`FilterConfig`], *optional*):
            How rewards are summed. Defaults to all rewards of the pool.
        scratch (`Path`, *optional*):
            Where images lie that are too many for the memory, see [`with_images`].

    Returns:
        [`~datasets.Dataset`]: a row per image, with `group_id`, which says what is one list, `prompt`, `image` and `advantage`, which
        ranks it.
    """
    rows = each_candidate(groups, pool, FilterConfig() if config is None else config)
    lists = []
    for group in groups:
        made = zip(group.keys, islice(rows, len(group.keys)), strict=True)
        images = [row for key, row in made if key in pool and not vetoed_itself(row["drop_reason"])]
        if len({row["advantage"] for row in images}) > 1:
            lists += images
    if not lists:
        raise NothingToDoError(f"In no group of {pool.folder} is one image better than another.")
    return with_images(lists, pool, scratch=scratch)


def validate(dataset: Dataset, prompt_column: str = "prompt") -> None:
    """
    Raise a [`UsageError`] unless a dataset can be trained on: its columns, their types and their values. It names the
    column, and the row.
    """
    for column in ("image", prompt_column, "advantage"):
        if column not in dataset.column_names:
            raise UsageError(f"The dataset has no column {column!r}; it has {', '.join(dataset.column_names)}.")
    check_image_column(dataset, "image")
    for column, wanted, fits in (
        (prompt_column, "text", lambda dtype: dtype in ("string", "large_string", "string_view")),
        ("advantage", "numbers", lambda dtype: dtype.startswith(("float", "int", "uint"))),
    ):
        feature = dataset.features[column]
        if not isinstance(feature, Value) or not fits(feature.dtype):
            raise UsageError(f"The column {column!r} must hold {wanted}, got {feature}.")
    if len(dataset) == 0:
        raise UsageError("The dataset has no rows.")
    plain = dataset.with_format(None) if dataset.format["type"] is not None else dataset
    for row, prompt in enumerate(plain[prompt_column]):
        if prompt is None or not prompt.strip():
            raise UsageError(f"The {prompt_column} of row {row} is {'null' if prompt is None else 'empty'}.")
    largest = float(np.finfo(np.float32).max)
    for row, advantage in enumerate(plain["advantage"]):
        if advantage is None or not abs(advantage) <= largest:
            said = "null" if advantage is None else f"{advantage:g}"
            raise UsageError(f"The advantage of row {row} is {said}; it must be a finite number.")
    sizes = TrainingImages(plain).check()
    (width, height), *others = sizes
    if others:
        size = f"{others[0][0]}x{others[0][1]}"
        raise UsageError(f"All images must have one size: row 0 has {width}x{height}, row {sizes[others[0]]} {size}.")
    if width % 8 or height % 8 or not width * height:
        raise UsageError(f"Width and height of the images must be multiples of 8, got {width}x{height}.")


def check_image_column(dataset: Dataset, column: str) -> None:
    """Raise a [`UsageError`] unless a column is of images."""
    if not isinstance(dataset.features[column], datasets.Image):
        raise UsageError(
            f"The column {column!r} must hold images, got {dataset.features[column]}. Where those are files or their bytes: "
            f"dataset.cast_column({column!r}, datasets.Image())."
        )
