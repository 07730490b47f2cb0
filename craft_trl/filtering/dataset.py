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

from collections.abc import Sequence

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets

from ..candidates.config import FilterConfig
from ..candidates.groups import Group
from ..candidates.pool import CandidatePool
from ..errors import NothingToDoError, UsageError
from .filter import explain_nothing, filter_candidates, vetoed_itself
from .images import TrainingImages


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
        [`~datasets.DatasetDict`]: `train` holds the kept images; `candidates` holds a row for every image of every
        group, with scores, `keep`, `drop_reason` and `advantage`, but without the image, which is in the pool.
    """
    config = FilterConfig() if config is None else config
    candidates = filter_candidates(groups, pool, config)
    train = [row for row in candidates if row["keep"]]
    if not train:
        raise NothingToDoError(explain_nothing(groups, pool, config))
    return DatasetDict(
        {
            "train": with_images(train, pool),
            "candidates": Dataset.from_list(candidates, features=features(pool.rewards)),
        }
    )


def with_images(rows: Sequence[dict], pool: CandidatePool) -> Dataset:
    """Rows of [`filter_candidates`] with their pictures from the pool."""
    keys = [(row["prompt"], row["expanded_prompt"], row["seed"]) for row in rows]
    ordered = pool.by_shard(keys)
    images = dict(zip(ordered, pool.images(ordered), strict=True))
    rows = [row | {"image": {"bytes": images[key], "path": None}} for row, key in zip(rows, keys, strict=True)]
    return Dataset.from_list(rows, features=features(pool.rewards))


def build_pairs(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig | None = None) -> Dataset:
    """
    Preference pairs of a pool, for [`DiffusionDPOTrainer`]: at most one of each group.

    Of the pairs of a group's images in which one beats the other on every filter reward, the one whose summed, scaled
    rewards differ most. The original's image takes part like any other.

    Args:
        groups (`Sequence[Group]`):
            Prompts with their variants.
        pool ([`CandidatePool`]):
            Images and scores.
        config ([`FilterConfig`], *optional*):
            The filter's rewards and how rewards are summed. Defaults to all rewards of the pool.

    Returns:
        [`~datasets.Dataset`]: rows with `group_id`, `prompt`, the images `chosen` and `rejected`, and `margin`, the
        difference of their advantages.
    """
    config = FilterConfig() if config is None else config
    names = config.filter_rewards or pool.rewards
    columns = [pool.rewards.index(name) for name in names]
    rows = iter(filter_candidates(groups, pool, config))
    pairs = []
    for group in groups:
        images = {
            key: row
            for key, row in zip(group.keys, rows, strict=False)
            if key in pool and not vetoed_itself(row["drop_reason"])
        }
        quality = {key: pool.quality(key)[columns] for key in images}
        better = [(images[a], images[b]) for a in images for b in images if (quality[a] > quality[b]).all()]
        if better:
            pairs.append(max(better, key=lambda pair: pair[0]["advantage"] - pair[1]["advantage"]))
    if not pairs:
        raise NothingToDoError(f"In no group of {pool.folder} does one image beat another on {', '.join(names)}.")
    chosen, rejected = (with_images(half, pool) for half in zip(*pairs, strict=True))
    chosen = chosen.select_columns(["group_id", "prompt", "image"]).rename_column("image", "chosen")
    rejected = rejected.select_columns(["image"]).rename_column("image", "rejected")
    margins = np.array([a["advantage"] - b["advantage"] for a, b in pairs], dtype=np.float32)
    return concatenate_datasets([chosen, rejected], axis=1).add_column("margin", margins)


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
