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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets

from .crf import composite_reward_filter, group_advantages, improves
from .errors import NothingToDoError, UsageError
from .groups import Group
from .pool import CandidatePool
from .veto import load_vetoes, veto_mask


@dataclass
class FilterConfig:
    """
    What passes the filter, and how advantages are computed from the rewards.

    Parameters:
        filter_level (`"group"` or `"image"`, *optional*, defaults to `"group"`):
            Keep a group only if all its variants pass, or keep each variant that passes.
        filter_rewards (`list[str]`, *optional*):
            Rewards a variant must beat the original on. Defaults to all rewards of the pool.
        scale_rewards (`"pool"`, `"group"` or `"none"`, *optional*, defaults to `"pool"`):
            How rewards are brought to one scale before they are summed, see [`group_advantages`].
        reward_weights (`list[float]`, *optional*):
            Weights of the rewards in the sum, in the order of the pool's rewards. Defaults to 1 each.
        advantage_eps (`float`, *optional*, defaults to `1e-4`):
            Added to the standard deviation of a group.
        veto (`str`, *optional*):
            File of vetoed images, as `craft sheet` saves it, see [`load_vetoes`]. A vetoed variant counts as one that
            does not pass, and a vetoed original as one that no variant passes against.
    """

    filter_level: Literal["group", "image"] = field(
        default="group",
        metadata={"help": "Keep a group only if all its variants pass, or keep each variant that passes."},
    )
    filter_rewards: list[str] | None = field(
        default=None,
        metadata={"help": "Rewards a variant must beat the original on. Defaults to all of them."},
    )
    scale_rewards: Literal["pool", "group", "none"] = field(
        default="pool", metadata={"help": "How rewards are brought to one scale before they are summed."}
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weights of the rewards in the sum, in the order of `rewards`. Defaults to 1 each."},
    )
    advantage_eps: float = field(default=1e-4, metadata={"help": "Added to the standard deviation of a group."})
    veto: str | None = field(
        default=None, metadata={"help": "File of vetoed images, as `craft sheet` saves it. They count as not passing."}
    )

    def __post_init__(self):
        if self.advantage_eps <= 0:
            raise UsageError(f"advantage_eps must be above 0, got {self.advantage_eps}.")
        if self.veto is not None and not Path(self.veto).is_file():
            raise UsageError(f"veto: there is no file {self.veto}. `craft sheet` writes a page that saves one.")

    def check_rewards(self, names: Sequence[str]) -> None:
        """Raise a [`UsageError`] unless the filter fits a pool with rewards of these names."""
        chosen = names if self.filter_rewards is None else self.filter_rewards
        if not chosen or not set(chosen) <= set(names):
            raise UsageError(
                f"filter_rewards must be among the rewards {', '.join(names)}; got {self.filter_rewards}."
            )
        if self.reward_weights is not None and len(self.reward_weights) != len(names):
            raise UsageError(
                f"reward_weights must have one number for each of {', '.join(names)}; got {self.reward_weights}."
            )


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


def filter_candidates(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig) -> list[dict]:
    """
    What the filter says of every image of every group: the rows of `candidates`, with the columns of [`features`].

    Args:
        groups (`Sequence[Group]`):
            Prompts with their variants. The pool must have the original image of each.
        pool ([`CandidatePool`]):
            Scores.
        config ([`FilterConfig`]):
            What passes.
    """
    config.check_rewards(pool.rewards)
    filter_rewards = config.filter_rewards or pool.rewards
    scores, generated = pool.matrices(groups)
    if not generated[:, 0].all():
        group = groups[int(np.flatnonzero(~generated[:, 0])[0])]
        raise UsageError(f"The pool {pool.folder} has no image for {group.prompt!r}: run `craft generate` first.")
    vetoed = veto_mask(load_vetoes(config.veto, pool), groups)
    keep = composite_reward_filter(scores, filter_rewards, config.filter_level, generated, vetoed)
    weights = None if config.reward_weights is None else dict(zip(scores, config.reward_weights, strict=True))
    advantages = group_advantages(scores, weights, config.scale_rewards, config.advantage_eps, generated)
    reasons = drop_reasons(scores, keep, generated, filter_rewards, config.filter_level, vetoed)
    rows = []
    for i, group in enumerate(groups):
        for j, (prompt, expanded_prompt, seed) in enumerate(group.keys):
            row = {"group_id": group.group_id, "variant": j, "prompt": prompt, "expanded_prompt": expanded_prompt}
            row |= {"seed": seed, "image": None}
            row |= {name: float(values[i, j]) if generated[i, j] else None for name, values in scores.items()}
            row |= {"keep": bool(keep[i, j]), "drop_reason": reasons[i][j], "advantage": float(advantages[i, j])}
            rows.append(row)
    return rows


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
    columns = config.filter_rewards or pool.rewards
    rows = filter_candidates(groups, pool, config)
    pairs = []
    for group in groups:
        images = [row for row in rows if row["group_id"] == group.group_id and row[columns[0]] is not None]
        images = [row for row in images if not vetoed_itself(row["drop_reason"])]
        better = [(a, b) for a in images for b in images if all(a[name] > b[name] for name in columns)]
        if better:
            pairs.append(max(better, key=lambda pair: pair[0]["advantage"] - pair[1]["advantage"]))
    if not pairs:
        raise NothingToDoError(f"In no group of {pool.folder} does one image beat another on {', '.join(columns)}.")
    chosen, rejected = (with_images(half, pool) for half in zip(*pairs, strict=True))
    chosen = chosen.select_columns(["group_id", "prompt", "image"]).rename_column("image", "chosen")
    rejected = rejected.select_columns(["image"]).rename_column("image", "rejected")
    margins = np.array([a["advantage"] - b["advantage"] for a, b in pairs], dtype=np.float32)
    return concatenate_datasets([chosen, rejected], axis=1).add_column("margin", margins)


def drop_reasons(
    scores: Mapping[str, np.ndarray],
    keep: np.ndarray,
    generated: np.ndarray,
    filter_rewards: Sequence[str],
    filter_level: str,
    vetoed: np.ndarray,
) -> list[list[str]]:
    """
    Why each image is not in the training set, `""` for those that are.

    `original` (it is what the others are compared with), `not_generated` (its group had failed before), the rewards on
    which it does not beat the original and `vetoed`, such as `hpsv2, vetoed`, or, for a variant that passes in a group
    that fails, `variant 3: pickscore`, the first variant that failed and why, or `original: vetoed`.
    """
    failures = {name: ~improves(scores[name]) for name in filter_rewards} | {"vetoed": vetoed}
    reasons = [["vetoed" if veto else "original"] + [""] * (keep.shape[1] - 1) for veto in vetoed[:, 0]]
    for i, j in np.argwhere(~keep[:, 1:]) + [0, 1]:
        failed = [name for name, fails in failures.items() if fails[i, j]]
        reasons[i][j] = ", ".join(failed) if generated[i, j] else "not_generated"
    for group in reasons:
        culprit = next((j for j, reason in enumerate(group) if j and reason not in ("", "not_generated")), None)
        for j in range(1, len(group)):
            if group[j] == "" and group[0] == "vetoed":
                group[j] = "original: vetoed"
            elif group[j] == "" and culprit is not None and filter_level == "group":
                group[j] = f"variant {culprit}: {group[culprit]}"
    return reasons


def vetoed_itself(drop_reason: str) -> bool:
    """Whether an image was vetoed, and not dropped for another's sake (`variant 3: vetoed`)."""
    return ":" not in drop_reason and "vetoed" in drop_reason.split(", ")


def explain_nothing(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig) -> str:
    """What passed how far when nothing passed the whole filter, and what to relax."""
    filter_rewards = config.filter_rewards or pool.rewards
    scores, generated = pool.matrices(groups)
    one = [f"{name} {composite_reward_filter(scores, [name], 'image', generated).sum()}" for name in filter_rewards]
    variants = int(generated[:, 1:].sum())
    images = int(composite_reward_filter(scores, filter_rewards, "image", generated).sum())
    relax = ["fewer filter_rewards", "more prompts", "milder templates"]
    if config.filter_level == "group":
        relax = ["filter_level: image", "a smaller num_variants", *relax]
    vetoed = veto_mask(load_vetoes(config.veto, pool), groups).sum()
    struck = f"; {vetoed} images are vetoed" if vetoed else ""
    return (
        f"No {config.filter_level} passed the filter: of {variants} variants of {len(generated)} prompts, "
        f"{', '.join(one)} beat their original, and {images} did on all of them{struck}. To relax: {'; '.join(relax)}. "
        "The pool is kept."
    )


def validate(dataset: Dataset, prompt_column: str = "prompt") -> None:
    """Raise a [`UsageError`] unless a dataset can be trained on: its columns, their types and their values."""
    for column in ("image", prompt_column, "advantage"):
        if column not in dataset.column_names:
            raise UsageError(f"The dataset has no column {column!r}; it has {', '.join(dataset.column_names)}.")
    if not isinstance(dataset.features["image"], datasets.Image):
        raise UsageError(f"The column 'image' must hold images, got {dataset.features['image']}.")
    if len(dataset) == 0:
        raise UsageError("The dataset has no rows.")
    advantages = np.array(dataset["advantage"], dtype=np.float64)
    if not np.isfinite(advantages).all():
        row = int(np.flatnonzero(~np.isfinite(advantages))[0])
        raise UsageError(f"The advantage of row {row} is {advantages[row]}; it must be a finite number.")
    sizes: dict[tuple[int, int], int] = {}
    for row, image in enumerate(dataset["image"]):
        if image is None:
            raise UsageError(f"Row {row} of the dataset has no image.")
        sizes.setdefault(image.size, row)
    (width, height), *others = sizes
    if others:
        size = f"{others[0][0]}x{others[0][1]}"
        raise UsageError(f"All images must have one size: row 0 has {width}x{height}, row {sizes[others[0]]} {size}.")
    if width % 8 or height % 8:
        raise UsageError(f"Width and height of the images must be multiples of 8, got {width}x{height}.")
