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

"""Pairs of transitions from trees: of each step the branch that the rewards like best, against the one they like least."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, Features, Value
from safetensors import safe_open

from ..candidates.filter_config import FilterConfig
from ..candidates.groups import Group
from ..candidates.pool import CandidatePool
from ..candidates.tree_config import TreeConfig
from ..candidates.trees import read_facts
from ..errors import NothingToDoError, UsageError
from ..stages import fingerprint


def reward_scales(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig) -> dict[str, float]:
    """
    What a point of each reward counts: its weight, over its standard deviation among the originals of the pool, as for
    advantages; `scale_rewards: none` leaves rewards as they are.
    """
    scores, generated = pool.matrices(groups)
    there = generated[:, 0]
    if not there.any():
        raise UsageError(f"The pool {pool.folder} has no image of these prompts: run `craft generate` first.")
    weights, scales = config.weights(pool.rewards), {}
    for name, values in scores.items():
        spread = values[there, 0] if np.ptp(values[there, 0]) > 0 else values[generated]
        std = float(spread.std(dtype=np.float64)) if config.scale_rewards != "none" else 1.0
        scales[name] = weights[name] / (std if std > 0 else 1.0)
    return scales


def preferred(totals: np.ndarray, min_preference: float = TreeConfig.min_preference) -> list[tuple[int, int, int]]:
    """
    Of each step, the best branch and the worst, if they differ enough.

    Args:
        totals (`np.ndarray` of shape `(S, K)`):
            Score of each step's branches.
        min_preference (`float`, *optional*, defaults to `0.3`):
            By how much the shares of a softmax over the two must differ, `tanh(gap / 2)`: 0.3 is a gap of 0.619.

    Returns:
        `list[tuple[int, int, int]]`: step, best and worst branch.
    """
    best, worst = totals.argmax(axis=1), totals.argmin(axis=1)
    gaps = totals.max(axis=1) - totals.min(axis=1)
    return [(s, int(best[s]), int(worst[s])) for s in np.flatnonzero(np.tanh(gaps / 2) > min_preference).tolist()]


def build_transitions(
    files: Sequence[Path],
    scales: Mapping[str, float],
    min_preference: float = TreeConfig.min_preference,
    scratch: Path | None = None,
) -> Dataset:
    """
    Pairs of transitions, for [`SPOTrainer`], from the files of trees.

    Args:
        files (`Sequence[Path]`):
            Files of [`draw_trees`].
        scales (`Mapping[str, float]`):
            What a point of each reward counts in the sum that decides.
        min_preference (`float`, *optional*, defaults to `0.3`):
            See [`preferred`].
        scratch (`Path`, *optional*):
            Folder for the rows, of which the memory does not hold many. Defaults to the cache of `datasets`.

    Returns:
        [`~datasets.Dataset`]: rows with `prompt`, `x_t`, its next latents `x_w` and `x_l`, the better and the worse, of shape
        `(C, h, w)` and in 16 bits, `t` and `t_prev`, `margin`, by how much their scores differ, and `guidance_scale`. The first
        row of each tree has its `image`, what the walk ended in.
    """
    with safe_open(files[0], "np") as file:
        shape = tuple(file.get_slice("latents").get_shape()[1:])
    latents = datasets.Array3D(shape, "float16")
    features = Features(
        {
            "prompt": Value("string"),
            "t": Value("int64"),
            "t_prev": Value("int64"),
            **dict.fromkeys(("x_t", "x_w", "x_l"), latents),
            "margin": Value("float32"),
            "guidance_scale": Value("float32"),
            "image": datasets.Image(),
        }
    )
    key = fingerprint([[path.name for path in files], dict(scales), min_preference])[:16]
    if not any(True for _ in transition_rows(files, scales, min_preference)):
        raise NothingToDoError(
            f"In no step of {len(files)} trees do the best branch and the worst differ enough: their preference is "
            f"{min_preference:g} at most. Draw more prompts, or more branches."
        )
    return Dataset.from_generator(
        transition_rows,
        features=features,
        cache_dir=None if scratch is None else str(scratch),
        gen_kwargs={"files": list(files), "scales": dict(scales), "min_preference": min_preference},
        fingerprint=key,
    )


def transition_rows(files: Sequence[Path], scales: Mapping[str, float], min_preference: float) -> Iterator[dict]:
    """The rows of [`build_transitions`], one at a time."""
    for path in files:
        with safe_open(path, "np") as file:
            facts = read_facts(file)
            totals = sum(scales[name] * file.get_tensor(f"score/{name}").astype(np.float64) for name in scales)
            image = {"bytes": file.get_tensor("end").tobytes(), "path": None}
            timesteps, next_timesteps = file.get_tensor("timesteps"), file.get_tensor("next_timesteps")
            latents, branches = file.get_slice("latents"), file.get_slice("branches")
            for step, best, worst in preferred(totals, min_preference):
                yield {
                    "prompt": facts["prompt"],
                    "t": int(timesteps[step]),
                    "t_prev": int(next_timesteps[step]),
                    "x_t": latents[step],
                    "x_w": branches[step, best],
                    "x_l": branches[step, worst],
                    "margin": float(totals[step, best] - totals[step, worst]),
                    "guidance_scale": facts["guidance_scale"],
                    "image": image,
                }
                image = None
