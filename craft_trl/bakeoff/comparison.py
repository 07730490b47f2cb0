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


"""Baselines against each other: what their evaluation amounts to, over prompts and training seeds."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..evaluation.statistics import decide, holm, p_value
from .arms import describe_passes


def two_way_bootstrap(difference: np.ndarray, num_bootstrap: int = 2000, seed: int = 0) -> dict[str, float]:
    """
    Mean difference with a 95 % interval over prompts and training seeds.

    Args:
        difference (`np.ndarray` of shape `(K, P)`):
            Per training seed and prompt.
        num_bootstrap (`int`, *optional*, defaults to `2000`):
            Number of resamples. Each draws training seeds and prompts anew, with replacement.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.

    Returns:
        `dict[str, float]`: `delta`, `ci_low` and `ci_high`. Of few training seeds the interval is somewhat too narrow: of
        three, resampling finds two thirds of their variance.
    """
    difference = np.asarray(difference, dtype=np.float64)
    rng = np.random.default_rng(seed)
    k, p = difference.shape
    means = [
        difference[rng.integers(k, size=k)].mean(axis=0)[rng.integers(p, size=p)].mean() for _ in range(num_bootstrap)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"delta": float(difference.mean()), "ci_low": float(low), "ci_high": float(high)}


def two_way_p(difference: np.ndarray, seed_variance: float = 0.0, degrees: int = 1) -> float:
    """
    Two-sided p-value of the mean difference over prompts and training seeds, by Student's distribution.

    Prompts and training seeds are both taken for samples of more, and the variance of the mean is the sum of theirs, with
    Satterthwaite's degrees of freedom. Of one training seed nothing is known of others: it speaks of that model alone.

    Args:
        difference (`np.ndarray` of shape `(K, P)`):
            Per training seed and prompt.
        seed_variance (`float`, *optional*, defaults to `0.0`):
            Variance of the difference between training seeds. Two or three seeds of two arms alone say too little of it.
        degrees (`int`, *optional*, defaults to `1`):
            Its degrees of freedom.
    """
    difference = np.asarray(difference, dtype=np.float64)
    k, p = difference.shape
    parts = [(seed_variance / k, degrees)] if k > 1 else []
    if p > 1:
        parts.append((float(difference.mean(axis=0).var(ddof=1)) / p, p - 1))
    return p_value(float(difference.mean()), sum(part for part, _ in parts), parts) if parts else 1.0


def held_out_score(
    scores: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], higher_is_better: Mapping[str, bool]
) -> np.ndarray:
    """
    One number for several judges: the mean of their scores, each in units of its spread over the base model's images,
    and turned so that larger is better.

    Args:
        scores (`Mapping[str, np.ndarray]`):
            Per judge, shape `(..., P)`.
        base (`Mapping[str, np.ndarray]`):
            Per judge the base model's, shape `(P,)`.
        higher_is_better (`Mapping[str, bool]`):
            Per judge.

    Returns:
        `np.ndarray` of shape `(..., P)`.
    """
    parts = []
    for name, higher in higher_is_better.items():
        spread = base[name].std() if np.ptp(base[name]) > 0 else 1.0
        parts.append((1 if higher else -1) * (scores[name] - base[name].mean()) / spread)
    return np.mean(parts, axis=0)


HELD_OUT = "held_out_score"


def compare_arms(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    roles: Mapping[str, str],
    higher_is_better: Mapping[str, bool],
    num_bootstrap: int = 2000,
) -> list[dict]:
    """
    A row per arm and metric against the base model, and a row per arm and other arm by the held-out score.

    Args:
        scores (`Mapping[str, Mapping[str, np.ndarray]]`):
            Per arm and metric: shape `(K, P)`, training seeds and prompts. The first is the base model, of shape `(1, P)`.
        roles (`Mapping[str, str]`):
            `"training"` or `"held_out"`, by metric.
        higher_is_better (`Mapping[str, bool]`):
            By metric.
        num_bootstrap (`int`, *optional*, defaults to `2000`):
            Number of resamples.

    Returns:
        `list[dict]`: rows with `arm`, `against`, `metric`, `role`, `higher_is_better`, `mean`, `delta`, `ci_low`,
        `ci_high`, `deltas`, one per training seed, `p_value`, and `change`: `"better"`, `"worse"` or `""` by what may be said
        of all arms together. Of the held-out score, all differences between arms and from the base model are one family
        of [`holm`]; of the judges, those of an arm.
    """
    base_name = next(iter(scores))
    judges = {name: higher_is_better[name] for name, role in roles.items() if role == "held_out"}
    base = {name: values[0] for name, values in scores[base_name].items()}
    scores = {arm: {HELD_OUT: held_out_score(metrics, base, judges), **metrics} for arm, metrics in scores.items()}
    roles = {HELD_OUT: "held_out", **roles}
    higher_is_better = {HELD_OUT: True, **higher_is_better}
    # Of each arm there are few training seeds. Together they say how much one differs from another.
    arms = [metrics for arm, metrics in scores.items() if arm != base_name]
    k = len(arms[0][HELD_OUT])
    spread = {n: np.mean([m[n].mean(axis=1).var(ddof=1) for m in arms]) if k > 1 else 0.0 for n in roles}
    rows = []
    for arm, metrics in scores.items():
        for against, others in scores.items():
            if arm in (base_name, against):
                continue
            for metric in roles if against == base_name else (HELD_OUT,):
                difference = metrics[metric] - others[metric]  # (K, P); the base has one row for all training seeds
                rows.append(
                    {
                        "arm": arm,
                        "against": against,
                        "metric": metric,
                        "role": roles[metric],
                        "higher_is_better": higher_is_better[metric],
                        "mean": float(metrics[metric].mean(dtype=np.float64)),
                        **two_way_bootstrap(difference, num_bootstrap),
                        "deltas": difference.mean(axis=1, dtype=np.float64).tolist(),
                        "p_value": two_way_p(
                            difference, spread[metric] * (1 if against == base_name else 2), len(arms) * (k - 1)
                        ),
                    }
                )
    # A pair of arms has two rows of one difference.
    pairs = {frozenset((row["arm"], row["against"])): row["p_value"] for row in rows if row["metric"] == HELD_OUT}
    differ = dict(zip(pairs, holm(list(pairs.values())), strict=True))
    judged = decide([row | {"model": row["arm"] if row["metric"] != HELD_OUT else None} for row in rows])
    for row, change in zip(rows, judged, strict=True):
        if row["metric"] == HELD_OUT:
            change = "better" if row["delta"] > 0 else "worse"
            change = change if differ[frozenset((row["arm"], row["against"]))] else ""
        row["change"] = change
    return rows


def verdict(rows: Sequence[dict], base: str = "base") -> dict:
    """
    Which arm wins by the held-out score, which cannot be told from it, and where CRAFT stands.

    Args:
        rows (`Sequence[dict]`):
            Rows of [`compare_arms`].
        base (`str`, *optional*, defaults to `"base"`):
            Name of the base model.

    Returns:
        `dict`: `ranking`, the arms from best to worst; `winner`; `level_with`, the arms that differ from the winner within
        chance; and `sentences`. Where all arms are the base model, one of them says otherwise once in twenty times at most.
    """
    against = {(row["arm"], row["against"]): row for row in rows if row["metric"] == HELD_OUT}
    arms = [arm for arm, other in against if other == base]
    ranking = sorted(arms, key=lambda arm: -against[arm, base]["delta"])
    winner = ranking[0]
    level = [arm for arm in ranking[1:] if not against[winner, arm]["change"]]
    sentences = []
    best = against[winner, base]
    interval = f"{best['delta']:+.3f} [{best['ci_low']:+.3f}, {best['ci_high']:+.3f}] standard deviations"
    if best["change"] == "better":
        sentences.append(
            f"{winner} {'comes first' if level else 'wins'}: {interval} of held-out score against the base model."
        )
    else:
        sentences.append(f"No arm is better than the base model beyond chance; {winner} comes closest: {interval}.")
    if level:
        sentences.append(f"It cannot be told from {', '.join(level)}.")
    elif len(ranking) > 1:
        sentences.append("It is better than every other arm beyond chance.")
    if "craft" in ranking and winner != "craft":
        row = against["craft", winner]
        chance = "beyond chance" if row["change"] else "within chance"
        sentences.append(
            f"craft is number {ranking.index('craft') + 1} of {len(ranking)}, {row['delta']:+.3f} from {winner} ({chance})."
        )
    worse = [arm for arm in ranking if against[arm, base]["change"] == "worse"]
    if worse:
        sentences.append(f"Worse than the base model: {', '.join(worse)}.")
    return {"ranking": ranking, "winner": winner, "level_with": level, "sentences": sentences}


def format_arms(rows: Sequence[dict], ranking: Sequence[str], arms: Mapping[str, dict]) -> str:
    """The held-out score of every arm, and what its trainings took, as text for the terminal, best first."""
    lines = [["arm", "held-out score", "95 % interval", "per training seed", "denoiser passes", "seconds"]]
    for arm in ranking:
        row = next(r for r in rows if (r["arm"], r["against"], r["metric"]) == (arm, "base", HELD_OUT))
        seeds = " ".join(f"{delta:+.3f}" for delta in row["deltas"])
        trees = f", trees {arms[arm]['tree_passes']:,}" if "tree_passes" in arms[arm] else ""
        took = [describe_passes(arms[arm]["passes"]) + trees, " ".join(f"{s:.0f}" for s in arms[arm]["seconds"])]
        lines.append([arm, f"{row['delta']:+.3f}", f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]", seeds, *took])
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
