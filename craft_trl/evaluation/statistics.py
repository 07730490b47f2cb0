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


"""Paired statistics over prompts, and which differences are said to be one."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


LEVEL = 0.05  # of all that is said of a model together: so often, at most, is anything said of one that is the same


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


def wilson(share: float, n: int) -> tuple[float, float]:
    """
    Wilson's 95 % interval of a share of `n` that are independent of each other, from 0 to 1 (Wilson 1927). Where ties count
    half it is too wide rather than too narrow: they vary less than wins and losses do.
    """
    z2 = 1.959964**2
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of so many wins and losses where both are as likely, exact; ties have no part in it."""
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n)


def student_p(t: float, degrees: float) -> float:
    """
    Two-sided p-value of Student's distribution: Abramowitz and Stegun 26.7.3 and 26.7.4, for whole degrees of freedom, to
    which others are rounded down.
    """
    degrees = max(1, math.floor(degrees))
    angle = math.atan2(abs(t), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = total = cosine if degrees % 2 else 1.0
    for k in range(3 if degrees % 2 else 2, degrees, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if degrees % 2:
        inside = 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
    else:
        inside = sine * total
    return min(1.0, max(0.0, 1.0 - inside))


def paired_p(values: np.ndarray, base: np.ndarray, strata: np.ndarray | None = None) -> float:
    """
    Two-sided p-value of the difference that [`paired_bootstrap`] gives, by Student's distribution.

    Where two models are the same it is below 0.05 for one comparison in twenty, from 24 prompts on, for scores of all
    shapes that were tried. The percentiles of a bootstrap are too close for that, the more so the fewer prompts there are
    and the further out one looks.
    """
    difference = np.asarray(values, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    per_prompt = difference.reshape(len(difference), -1).mean(axis=1)
    labels = np.zeros(len(per_prompt)) if strata is None else np.asarray(strata)
    groups = [per_prompt[labels == label] for label in dict.fromkeys(labels.tolist())]
    if min(map(len, groups)) < 2:
        groups = [per_prompt]  # no spread within a stratum is known
    if min(map(len, groups)) < 2:
        return 1.0
    # Welch and Satterthwaite; of one group, n - 1 degrees of freedom.
    parts = [group.var(ddof=1) / len(group) / len(groups) ** 2 for group in groups]
    return p_value(
        stratified_mean(per_prompt, strata), sum(parts), [(v, len(g) - 1) for v, g in zip(parts, groups, strict=True)]
    )


def p_value(delta: float, variance: float, parts: Sequence[tuple[float, int]]) -> float:
    """
    Two-sided p-value of an estimate.

    Args:
        delta (`float`):
            The estimate.
        variance (`float`):
            Its variance.
        parts (`Sequence[tuple[float, int]]`):
            What the variance is the sum of, each with its degrees of freedom, after Satterthwaite.
    """
    if variance <= 0:
        return 0.0 if delta else 1.0
    return student_p(
        delta / math.sqrt(variance), variance**2 / sum(part**2 / degrees for part, degrees in parts if part)
    )


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """
    Which of several null hypotheses are rejected so that a true one is among them with probability `level` at most, however
    they hang together (Holm 1979).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected


def decide(rows: Sequence[dict], level: float = LEVEL) -> list[str]:
    """
    `"better"`, `"worse"` or `""` for each row of [`compare`].

    What is said of one model, by whatever judges, holds at once: a model that is the same as the base is called better or
    worse by any of them once in twenty times at most ([`holm`] over the judges, training rewards among them). Diversity,
    and the parts of the prompts, are looked at besides, each with the same care among themselves.

    Args:
        rows (`Sequence[dict]`):
            Rows of [`compare`]. Those of results that have no `p_value` yet have it from their interval.
        level (`float`, *optional*, defaults to `0.05`):
            How often anything may be said of a model that is the same.
    """
    families: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        if row["delta"] is not None:
            family = row["model"], row.get("part") is None, row["role"] == "diversity"
            families.setdefault(family, []).append(i)
    words = [""] * len(rows)
    for numbers in families.values():
        for i, rejected in zip(numbers, holm([_p_of(rows[i]) for i in numbers], level), strict=True):
            if rejected:
                words[i] = "better" if (rows[i]["delta"] > 0) == rows[i]["higher_is_better"] else "worse"
    return words


def _p_of(row: dict) -> float:
    if row.get("p_value") is not None:
        return row["p_value"]
    half = (row["ci_high"] - row["ci_low"]) / 2
    degrees = row.get("n", 1000) - 1
    return p_value(row["delta"], (half / 1.96) ** 2, [((half / 1.96) ** 2, degrees)])


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
        (prompts), `mean`, `median`, and against the base `delta`, `ci_low`, `ci_high`, `win_rate` and `p_value` (`None`
        for the base), the last one by itself: [`decide`] says what may be made of them together.
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
                nothing = dict.fromkeys(("delta", "ci_low", "ci_high", "win_rate", "p_value"))
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
                    | {"p_value": paired_p(values[mask], base[metric][mask], strata)}
                )
                rows.append(row | paired)
    return rows
