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
What a gain costs: gain in score against the variety of a prompt's images, for models and for ways that train nothing.

The measure is the best of `k`: draw `k` images of the base model, keep the one that the rewards like best. It costs variety as
well, and needs no training. A model that gains as much and is as varied keeps all that could be kept by choosing; how much
of that it has is its **kept variety**.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb

import numpy as np


# --- the best of k ---


def winner_weights(n: int, k: int) -> np.ndarray:
    """
    How often each of `n` images, the best first, is the best of a set of `k` of them: shape `(n,)`, over all sets, which sums
    up to 1.
    """
    return np.array([comb(n - 1 - r, k - 1) / comb(n, k) for r in range(n)])


def pair_weights(n: int, k: int) -> np.ndarray:
    """
    How often each two of `n >= 2 k` images, the best first, are the best of two sets of `k` that have none in common: shape
    `(n, n)`, above the diagonal, over all such sets, which sums up to 1.

    If the set of the worse one, at `s`, has its others from the `n - 1 - s` below it, there are `n - 1 - r - k` left
    below the better one, at `r`, for those of its own.
    """
    weights = np.zeros((n, n))
    for r in range(n):
        for s in range(r + 1, n):
            weights[r, s] = 2 * comb(n - 1 - s, k - 1) * comb(max(0, n - 1 - r - k), k - 1)
    return weights / (comb(n, k) * comb(n - k, k))


def best_of(
    k: int, total: np.ndarray, values: Mapping[str, np.ndarray], distances: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """
    What the best of `k` images has of each value, and how much two such choices differ.

    Both are means over all ways to choose one set of `k` from the `n` images of a prompt, or two sets that have none in
    common. They are what sets of `k` fresh images would have on average, without bias, for every `k` up to `n / 2`.

    Args:
        k (`int`):
            Images of a set.
        total (`np.ndarray` of shape `(P, n)`):
            What is chosen by, larger being better. Of equal images the first one is taken.
        values (`Mapping[str, np.ndarray]`):
            Per name, shape `(P, n)`.
        distances (`Mapping[str, np.ndarray]`):
            Per name, shape `(P, n, n)`.

    Returns:
        `tuple[dict, dict]`: the values and the distances per name, each of shape `(P,)`.
    """
    n = total.shape[1]
    order = np.argsort(-total, axis=1, kind="stable")
    single, double = winner_weights(n, k), pair_weights(n, k)
    kept = {name: np.take_along_axis(array, order, axis=1) @ single for name, array in values.items()}
    apart = {}
    for name, array in distances.items():
        ordered = np.take_along_axis(np.take_along_axis(array, order[:, :, None], axis=1), order[:, None, :], axis=2)
        apart[name] = (ordered * double).sum(axis=(1, 2))
    return kept, apart


# --- kept variety ---


def variety_at(
    gain: np.ndarray, gains: np.ndarray, varieties: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    What a curve costs at a gain: the variety where it first gains as much, on the straight line between two of its points.

    Args:
        gain (`np.ndarray` of shape `(B,)`):
            Gains that are asked for.
        gains, varieties (`np.ndarray` of shape `(B, K)`):
            The curve of each.

    Returns:
        `tuple`, each of shape `(B,)`: the variety; the number of the point, from 0, between two where it lies between them;
        and whether the curve never gains as much. Then it is the point of the largest gain. Below the first point it is the first.
    """
    rows = np.arange(len(gain))
    reached = gains >= gain[:, None]
    beyond = ~reached.any(axis=1)
    right = np.where(beyond, gains.argmax(axis=1), reached.argmax(axis=1))
    left = np.where(beyond | (right == 0), right, right - 1)
    step = gains[rows, right] - gains[rows, left]
    share = np.divide(gain - gains[rows, left], step, out=np.zeros(len(gain)), where=step > 0)
    variety = varieties[rows, left] + share * (varieties[rows, right] - varieties[rows, left])
    return variety, left + share, beyond


def kept_variety(
    gain: np.ndarray,
    variety: np.ndarray,
    curve_gains: np.ndarray,
    curve_varieties: np.ndarray,
    base_variety: np.ndarray | None = None,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, float | bool]:
    """
    Variety of a model as a share of that of the best of k where that gains as much, with a 95 % interval.

    Args:
        gain, variety (`np.ndarray` of shape `(P,)`):
            What the model gains on each prompt, and how varied its images of it are.
        curve_gains, curve_varieties (`np.ndarray` of shape `(K, P)`):
            The same of the best of 1 to K.
        base_variety (`np.ndarray` of shape `(P,)`, *optional*):
            How varied the base's images of the model's noise are. Both sides are then shares of the base's on noise of their
            own, so that noise by which all models are more varied counts for none.
        num_bootstrap (`int`, *optional*, defaults to `2000`):
            Number of resamples of the prompts, each of which moves the curve too.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.

    Returns:
        `dict`: `kept`; `ci_low` and `ci_high`, the 2.5 and 97.5 percentiles of its bootstrap distribution; `best_of`, the k that
        gains as much, between two where it lies between them; and `beyond`, whether no k of the curve does. Then `best_of` is the
        last one, whose variety more choice would only lower, and `kept` is a lower bound.
    """
    row, _ = _kept(gain, variety, curve_gains, curve_varieties, base_variety, num_bootstrap, seed)
    return row


def _kept(
    gain: np.ndarray,
    variety: np.ndarray,
    curve_gains: np.ndarray,
    curve_varieties: np.ndarray,
    base_variety: np.ndarray | None,
    num_bootstrap: int,
    seed: int = 0,
) -> tuple[dict[str, float | bool], np.ndarray]:
    """[`kept_variety`], and it in each resample, which are the same prompts for every model of as many."""
    base_variety = curve_varieties[0] if base_variety is None else base_variety
    given = (gain, variety, base_variety, curve_gains, curve_varieties)
    arrays = [np.asarray(array, dtype=np.float64) for array in given]
    num_prompts = len(arrays[0])
    rng = np.random.default_rng(seed)

    def shares(weights: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of weights of the prompts, shape `(B, P)`."""
        mean_gain, mean_variety, mean_base, gains, varieties = (weights @ array.T for array in arrays)
        at, position, beyond = variety_at(mean_gain, gains, varieties)
        at = at * mean_base  # over that of any image, below: nothing where there is none to keep
        ours = mean_variety * varieties[:, 0]
        return np.divide(ours, at, out=np.ones_like(at), where=at > 0), position, beyond

    (kept,), (position,), (beyond,) = shares(np.full((1, num_prompts), 1 / num_prompts))
    resampled = []
    size = max(1, 2**20 // num_prompts)  # in slices, as all at once could take gigabytes
    for start in range(0, num_bootstrap, size):
        draws = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), min(size, num_bootstrap - start))
        resampled.append(shares(draws / num_prompts)[0])
    resampled = np.concatenate(resampled)
    low, high = np.percentile(resampled, [2.5, 97.5])
    row = {
        "kept": float(kept),
        "ci_low": float(low),
        "ci_high": float(high),
        "best_of": float(position + 1),
        "beyond": bool(beyond),
    }
    return row, resampled


# --- all of it ---

HELD_OUT, TRAINING = "held_out_score", "training_score"


@dataclass(frozen=True)
class Frontier:
    """
    Models, and ways that train nothing, by what they gain over the base model and by what is left of its variety.

    Args:
        draws (`Mapping[str, np.ndarray]`):
            Scores of the base model's images by judge, shape `(P, n)`.
        distances (`Mapping[str, np.ndarray]`):
            How much each two of these images differ, by kind of distance, shape `(P, n, n)`.
        arms (`Mapping[str, Mapping[str, np.ndarray]]`):
            By name, the base first: scores by judge, and variety by kind of distance, each of shape `(P, m)`, of the same
            prompts and seeds.
        ways (`Mapping[str, str]`):
            What each arm is: `"base"`, `"model"`, `"guidance"` or `"expanded prompt"`.
        labels (`Mapping[str, str]`):
            What is written beside each in the figure.
        roles (`Mapping[str, str]`):
            `"training"` or `"held_out"`, by judge. The former choose the best of k.
        lower_is_better (`frozenset[str]`, *optional*):
            Judges of which less is better.
    """

    draws: Mapping[str, np.ndarray]
    distances: Mapping[str, np.ndarray]
    arms: Mapping[str, Mapping[str, np.ndarray]]
    ways: Mapping[str, str]
    labels: Mapping[str, str]
    roles: Mapping[str, str]
    lower_is_better: frozenset[str] = frozenset()

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Weight of each judge in each score: a judge by itself, and all of a role, each in units of its spread over the draws."""
        signs = {name: -1.0 if name in self.lower_is_better else 1.0 for name in self.roles}
        spread = {name: float(self.draws[name].std()) or 1.0 for name in self.roles}
        combined = {}
        for score, role in ((HELD_OUT, "held_out"), (TRAINING, "training")):
            names = [name for name in self.roles if self.roles[name] == role]
            if names:
                combined[score] = {name: signs[name] / spread[name] / len(names) for name in names}
        return combined | {name: {name: signs[name]} for name in self.roles}

    def score(self, name: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """A score of these values by judge, of their shape, turned so that larger is better."""
        return sum(weight * np.asarray(values[judge], dtype=np.float64) for judge, weight in self.scores[name].items())

    @cached_property
    def curve(self) -> dict[str, np.ndarray]:
        """Gains by score and variety by kind of the best of 1 to K, shape `(K, P)`, against any of the images."""
        n = next(iter(self.draws.values())).shape[1]
        values = {name: self.score(name, self.draws) for name in self.scores}
        points = [best_of(k, values[TRAINING], values, self.distances) for k in range(1, n // 2 + 1)]
        gains = {name: np.stack([kept[name] - values[name].mean(axis=1) for kept, _ in points]) for name in values}
        return gains | {name: np.stack([apart[name] for _, apart in points]) for name in self.distances}

    def of_arm(self, arm: str) -> dict[str, np.ndarray]:
        """Gains by score and variety by kind of an arm, shape `(P,)`, against the base on the same seeds."""
        own, base = self.arms[arm], next(iter(self.arms.values()))
        gains = {name: (self.score(name, own) - self.score(name, base)).mean(axis=1) for name in self.scores}
        return gains | {name: np.asarray(own[name], dtype=np.float64).mean(axis=1) for name in self.distances}

    def results(self, num_bootstrap: int = 2000) -> dict:
        """
        JSON values: `points`, each of a `way`, with `name`, `label`, gains by score and variety by kind; `kept`, a row
        for each point but the base and the best of k, score and kind of variety, see [`kept_variety`]; and `differences`, a row for each
        two models and kind, of how much more the one keeps at the first of the scores, paired by prompt. There is none
        for a model that gains more than the best of k, of which only the least that it keeps is known.
        """
        points = [
            {"way": "best of k", "name": f"best of {k + 1}", "label": str(k + 1)}
            | {name: float(array[k].mean()) for name, array in self.curve.items()}
            for k in range(len(next(iter(self.curve.values()))))
        ]
        kept, resampled, base = [], {}, self.of_arm(next(iter(self.arms)))
        for arm in self.arms:
            own = self.of_arm(arm)
            means = {name: float(values.mean()) for name, values in own.items()}
            for (
                kind
            ) in self.distances:  # as a share of the base's from the same noise, of what any two of the draws differ
                means[kind] *= points[0][kind] / (float(base[kind].mean()) or 1.0)
            points.append({"way": self.ways[arm], "name": arm, "label": self.labels[arm]} | means)
            if self.ways[arm] == "base":
                continue
            for score in self.scores:
                for kind in self.distances:
                    curve = self.curve[score], self.curve[kind]
                    row, resamples = _kept(own[score], own[kind], *curve, base[kind], num_bootstrap)
                    kept.append({"name": arm, "way": self.ways[arm], "score": score, "variety": kind} | row)
                    if self.ways[arm] == "model" and score == next(iter(self.scores)) and not row["beyond"]:
                        resampled.setdefault(kind, {})[arm] = row["kept"], resamples
        differences = []
        for kind, models in resampled.items():
            for one, other in combinations(models, 2):
                (mine, my_resamples), (theirs, their_resamples) = models[one], models[other]
                low, high = np.percentile(my_resamples - their_resamples, [2.5, 97.5])
                difference = {"difference": mine - theirs, "ci_low": float(low), "ci_high": float(high)}
                differences.append({"name": one, "against": other, "variety": kind} | difference)
        return {
            "images": next(iter(self.draws.values())).shape[1],
            "score": next(iter(self.scores)),
            "scores": [*self.scores],
            "variety": [*self.distances],
            "points": points,
            "kept": kept,
            "differences": differences,
        }


def in_words(results: Mapping, names: Sequence[str]) -> list[str]:
    """
    A sentence for each of these models: the one number, its interval, and what it is the share of. And one about the model that keeps
    most, beside each of the others.
    """
    rows = [
        row
        for row in results["kept"]
        if row["name"] in names and row["score"] == results["score"] and row["variety"] == results["variety"][0]
    ]
    said = []
    for row in rows:
        least, k = ("at least ", f"{row['best_of']:.0f}") if row["beyond"] else ("", f"{row['best_of']:.1f}")
        end = "and gains more" if row["beyond"] else "at the same gain"
        said.append(
            f"{row['name']} keeps {least}{row['kept']:.0%} [{row['ci_low']:.0%}, {row['ci_high']:.0%}] of the variety of the "
            f"best of {k} images of the base, {end}."
        )
    told = [row for row in rows if not row["beyond"]]
    if len(told) > 1 and "differences" in results:  # a file of before has none
        most = max(told, key=lambda row: row["kept"])["name"]
        pairs = [row for row in results["differences"] if row["variety"] == results["variety"][0]]
        more = [
            _more(row, most)
            for row in pairs
            if most in (row["name"], row["against"]) and {row["name"], row["against"]} <= {*names}
        ]
        said.append(f"{most} keeps most, in points of that share: {', '.join(more)}.")
    return said


def _more(row: Mapping, model: str) -> str:
    """How much more of its variety one model of the row keeps than the other one, in points."""
    sign, other = (100, row["against"]) if row["name"] == model else (-100, row["name"])
    low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
    return f"{sign * row['difference']:+.0f} [{low:+.0f}, {high:+.0f}] beside {other}"
