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


"""Paired statistics over prompts."""

from collections.abc import Mapping

import numpy as np


def stratified_mean(values: np.ndarray, strata: np.ndarray | None = None) -> float:
    """Mean of `values` of shape `(N,)`; with `strata`, a label of each, the mean of the means of all labels."""
    if strata is None:
        return float(values.mean())
    return float(np.mean([values[strata == label].mean() for label in dict.fromkeys(strata)]))


def paired_bootstrap(
    values: np.ndarray,
    base: np.ndarray,
    num_bootstrap: int = 2000,
    seed: int = 0,
    higher_is_better: bool = True,
    strata: np.ndarray | None = None,
) -> dict[str, float]:
    """
    Difference of two models on the same prompts and seeds, with a 95 % interval.

    Args:
        values (`np.ndarray` of shape `(N,)` or `(N, S)`):
            Scores of a model per prompt, and per image of a prompt.
        base (`np.ndarray` of the same shape):
            Scores of the base model.
        num_bootstrap (`int`, *optional*, defaults to `2000`):
            Number of resamples of the prompts.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.
        higher_is_better (`bool`, *optional*, defaults to `True`):
            Which way a win goes.
        strata (`np.ndarray` of shape `(N,)`, *optional*):
            Category of each prompt. If given, all means are of the categories' means, and prompts are resampled within
            their categories.

    Returns:
        `dict[str, float]`: `delta`, the mean difference; `ci_low` and `ci_high`, the 2.5 and 97.5 percentiles of its
        bootstrap distribution; `win_rate`, the share of images (paired by prompt and seed) that are better than the
        base's, ties counting half. The prompt is the unit that is resampled: images of a prompt are averaged first.
    """
    values, base = np.asarray(values, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if values.shape != base.shape or values.ndim not in (1, 2) or not len(values):
        raise ValueError(f"Paired scores need one shape (prompts, images), got {values.shape} and {base.shape}.")
    difference = values - base
    per_prompt = difference.reshape(len(difference), -1).mean(axis=1)
    rng = np.random.default_rng(seed)
    labels = [None] if strata is None else dict.fromkeys(strata)
    groups = [per_prompt if label is None else per_prompt[strata == label] for label in labels]
    means = np.zeros(num_bootstrap)
    for group in groups:
        # In slices: all resamples at once would take gigabytes for a large benchmark.
        size = max(1, 2**20 // len(group))
        for start in range(0, num_bootstrap, size):
            part = means[start : start + size]
            part += group[rng.integers(len(group), size=(len(part), len(group)))].mean(axis=1) / len(groups)
    wins = (difference > 0 if higher_is_better else difference < 0) + 0.5 * (difference == 0)
    return {
        "delta": stratified_mean(per_prompt, strata),
        "ci_low": float(np.percentile(means, 2.5)),
        "ci_high": float(np.percentile(means, 97.5)),
        "win_rate": stratified_mean(wins.reshape(len(wins), -1).mean(axis=1), strata),
    }


def compare(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    roles: Mapping[str, str],
    lower_is_better: set[str] = frozenset(),
    parts: list[str] | None = None,
    num_bootstrap: int = 2000,
    mean_of_parts: set[str] = frozenset(),
) -> list[dict]:
    """
    A row per model and metric.

    Args:
        scores (`Mapping[str, Mapping[str, np.ndarray]]`):
            Per model, the base first, and metric: scores of shape `(P, S)` for the same prompts and seeds.
        roles (`Mapping[str, str]`):
            `"training"`, `"held_out"` or `"diversity"`, by metric.
        lower_is_better (`set[str]`, *optional*):
            Metrics of which less is better.
        parts (`list[str]`, *optional*):
            Style or category of each prompt. If given, every part gets rows of its own.
        num_bootstrap (`int`, *optional*, defaults to `2000`):
            Bootstrap samples.
        mean_of_parts (`set[str]`, *optional*):
            Metrics whose value over all prompts is the mean of the parts' values, however many prompts each has.

    Returns:
        `list[dict]`: rows with `model`, `metric`, `role`, `higher_is_better`, `part` (`None` for all prompts), `n`
        (prompts), `mean`, `median`, and against the base `delta`, `ci_low`, `ci_high`, `win_rate` (`None` for the base).
    """
    # In double precision, so that scores read back from a file give the same numbers.
    scores = {model: {n: np.asarray(v, dtype=np.float64) for n, v in m.items()} for model, m in scores.items()}
    base = next(iter(scores.values()))
    everything = np.ones(len(next(iter(base.values()))), dtype=bool)
    masks = {None: everything} | {part: np.array(parts) == part for part in dict.fromkeys(parts or ())}
    rows = []
    for model, metrics in scores.items():
        for metric, values in metrics.items():
            for part, mask in masks.items():
                strata = np.array(parts) if metric in mean_of_parts and part is None and parts else None
                row = {
                    "model": model,
                    "metric": metric,
                    "role": roles[metric],
                    "higher_is_better": metric not in lower_is_better,
                    "part": part,
                    "n": int(mask.sum()),
                    "mean": stratified_mean(values[mask].mean(axis=1), strata),
                    "median": float(np.median(values[mask])),
                }
                nothing = dict.fromkeys(("delta", "ci_low", "ci_high", "win_rate"))
                paired = (
                    nothing
                    if metrics is base
                    else paired_bootstrap(
                        values[mask],
                        base[metric][mask],
                        num_bootstrap,
                        higher_is_better=row["higher_is_better"],
                        strata=strata,
                    )
                )
                rows.append(row | paired)
    return rows
