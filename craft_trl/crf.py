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
Composite Reward Filtering and group advantages: the first half of CRAFT (https://huggingface.co/papers/2603.18991).

Group `i` holds the images of one original prompt `c_i`: image `x_i0` was drawn from the prompt itself, images `x_i1` to
`x_in` from `n` expanded variants of it, all from the same noise, and all are scored under the original prompt. Every
function takes one array of shape `(G, 1 + n)` per reward, column 0 being the original. Groups may be incomplete (early
rejection stops a group at its first failure); `generated` then says which images exist, and the scores of the others
are never read.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np


def composite_reward_filter(
    rewards: Mapping[str, np.ndarray],
    filter_rewards: Sequence[str] | None = None,
    filter_level: Literal["group", "image"] = "group",
    generated: np.ndarray | None = None,
    vetoed: np.ndarray | None = None,
) -> np.ndarray:
    """
    Which variants survive Composite Reward Filtering.

    A variant passes when it beats the image of the original prompt on every filter reward: `I_S = prod_{r in S}
    1[r(x_ij, c_i) > r(x_i0, c_i)]`. The paper's `I_h`, `I_ha` and `I_hpa` are `S` = HPSv2.1; with the aesthetic score;
    with PickScore as well. Whether the paper keeps single images or only groups in which every variant passes is not
    public; its yields fit the group.

    Args:
        rewards (`Mapping[str, np.ndarray]`):
            Scores of shape `(G, 1 + n)` per reward, larger is better.
        filter_rewards (`Sequence[str]`, *optional*):
            Names of the rewards a variant must beat the original on. Defaults to all of `rewards`; none only if there are
            `vetoed` images, which are then all that does not pass.
        filter_level (`"group"` or `"image"`, *optional*, defaults to `"group"`):
            `"group"` keeps the variants of a group only if all `n` of them pass, `"image"` keeps each that passes.
        generated (`np.ndarray` of shape `(G, 1 + n)`, *optional*):
            Which images exist. Defaults to all. A group with a missing variant cannot pass at level `"group"`.
        vetoed (`np.ndarray` of shape `(G, 1 + n)`, *optional*):
            Images that a person, or a limit on a score, has struck out. A vetoed variant does not pass, whatever its scores; beside a vetoed
            original no variant does, since there is nothing fit to be compared with. Defaults to none.

    Returns:
        `np.ndarray` of shape `(G, 1 + n)`, bool: column 0 is always `False`, since no image beats itself.
    """
    filter_rewards = list(rewards) if filter_rewards is None else list(filter_rewards)
    if not (filter_rewards or vetoed is not None) or not set(filter_rewards) <= set(rewards):
        raise ValueError(f"filter_rewards must name at least one of {sorted(rewards)}, got {filter_rewards}.")
    if filter_level not in ("group", "image"):
        raise ValueError(f"filter_level must be 'group' or 'image', got {filter_level!r}.")
    scores, generated = _check(rewards, generated)
    passes = generated & np.logical_and.reduce([improves(scores[name]) for name in filter_rewards])
    if vetoed is not None:
        passes &= ~(vetoed | vetoed[:, :1])
    keep = passes & group_passes(passes)[:, None] if filter_level == "group" else passes
    keep[:, 0] = False
    return keep


def improves(scores: np.ndarray) -> np.ndarray:
    """`1[r(x_ij, c_i) > r(x_i0, c_i)]` in float32, shape `(G, 1 + n)`. Strict: a tie is no improvement."""
    scores = np.asarray(scores, dtype=np.float32)
    return scores > scores[:, :1]


def group_passes(passes: np.ndarray) -> np.ndarray:
    """Groups whose every variant passes: `(G, 1 + n)` bool, column 0 not looked at, to `(G,)` bool."""
    return passes[:, 1:].all(axis=1)


def group_advantages(
    rewards: Mapping[str, np.ndarray],
    reward_weights: Mapping[str, float] | None = None,
    scale_rewards: Literal["pool", "group", "none"] = "pool",
    advantage_eps: float = 1e-4,
    generated: np.ndarray | None = None,
) -> np.ndarray:
    """
    Group-normalised advantage of every image: `A_ij = (r_ij - mean_i) / (std_i + eps)`.

    `r_ij` is the weighted sum of the scaled rewards; mean and population standard deviation run over the images of
    group `i`, the original's included. Without it the advantages of a kept group would average zero and pull nowhere.

    Args:
        rewards (`Mapping[str, np.ndarray]`):
            Scores of shape `(G, 1 + n)` per reward, larger is better.
        reward_weights (`Mapping[str, float]`, *optional*):
            Weight of each reward in the sum. Defaults to 1 for every reward.
        scale_rewards (`"pool"`, `"group"` or `"none"`, *optional*, defaults to `"pool"`):
            What brings rewards of unlike scales (HPSv2.1 ~0.28, PickScore ~22, aesthetic ~6) together before the sum:
            z-scores over the pool, z-scores within the group, or nothing. The pool's statistics are those of the
            original images, which always exist, so that early rejection cannot change an advantage; only where these
            are all equal, as in a pool of one group, are they those of all images.
        advantage_eps (`float`, *optional*, defaults to `1e-4`):
            Added to the group's standard deviation. A group of equal rewards has advantage 0.
        generated (`np.ndarray` of shape `(G, 1 + n)`, *optional*):
            Which images exist. Defaults to all.

    Returns:
        `np.ndarray` of shape `(G, 1 + n)`, float32. Images that do not exist have advantage 0.
    """
    total, generated = total_rewards(rewards, reward_weights, scale_rewards, generated)
    mean, std = _group_statistics(total, generated)
    return np.where(generated, (total - mean) / (std + advantage_eps), 0.0).astype(np.float32)


def total_rewards(
    rewards: Mapping[str, np.ndarray],
    reward_weights: Mapping[str, float] | None = None,
    scale_rewards: Literal["pool", "group", "none"] = "pool",
    generated: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    `r_ij` of [`group_advantages`], the weighted sum of an image's scaled rewards, and which images exist; both of shape
    `(G, 1 + n)`. Where none does the sum means nothing.
    """
    reward_weights = dict.fromkeys(rewards, 1.0) if reward_weights is None else dict(reward_weights)
    if set(reward_weights) != set(rewards):
        raise ValueError(f"reward_weights must name exactly {sorted(rewards)}, got {sorted(reward_weights)}.")
    if scale_rewards not in ("pool", "group", "none"):
        raise ValueError(f"scale_rewards must be 'pool', 'group' or 'none', got {scale_rewards!r}.")
    scores, generated = _check(rewards, generated)
    total = np.zeros(generated.shape)
    for name, score in scores.items():
        if scale_rewards == "pool":
            pool = score[:, 0] if np.ptp(score[:, 0]) > 0 else score[generated]
            mean, std = pool.mean(), pool.std() if np.ptp(pool) > 0 else 0.0
        elif scale_rewards == "group":
            mean, std = _group_statistics(score, generated)
        else:
            mean, std = 0.0, 1.0
        total += reward_weights[name] * (score - mean) / np.where(std > 0, std, 1.0)
    return total, generated


def _group_statistics(values: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of each group's existing images, both of shape `(G, 1)`."""
    count = generated.sum(axis=1, keepdims=True)
    mean = np.where(generated, values, 0.0).sum(axis=1, keepdims=True) / count
    variance = np.where(generated, (values - mean) ** 2, 0.0).sum(axis=1, keepdims=True) / count
    # Equal rewards have no spread; the rounding of their mean must not make one.
    equal = np.where(generated, values, values[:, :1]) == values[:, :1]
    return mean, np.where(equal.all(axis=1, keepdims=True), 0.0, np.sqrt(variance))


def _check(
    rewards: Mapping[str, np.ndarray], generated: np.ndarray | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Scores as float64 of float32 values, zero where no image exists. A broken score raises, it is never replaced."""
    scores = {name: np.asarray(values, dtype=np.float32) for name, values in rewards.items()}
    shapes = {name: values.shape for name, values in scores.items()}
    shape = next(iter(shapes.values()), ())
    if len(set(shapes.values())) != 1 or len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
        raise ValueError(f"Every reward needs scores of one shape (groups, 1 + variants), got {shapes}.")
    generated = np.ones(shape, dtype=bool) if generated is None else np.asarray(generated, dtype=bool)
    if generated.shape != shape or not generated[:, 0].all():
        raise ValueError("`generated` must have the shape of the scores, and every group needs its original image.")
    for name, values in scores.items():
        broken = np.argwhere(generated & ~np.isfinite(values))
        if len(broken):
            group, variant = broken[0]
            raise ValueError(f"{name} is {values[group, variant]} for group {group}, variant {variant}: not a score.")
    return {name: np.where(generated, values, 0.0).astype(np.float64) for name, values in scores.items()}, generated
