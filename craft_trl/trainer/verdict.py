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
The guard's rule: what scores of the same prompts at several steps say about going on. docs/source/guard.md states it and its error
rate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..evaluation.statistics import holm, paired_bootstrap, paired_p


CONFIDENCE = 0.95

Scores = Mapping[str, np.ndarray]  # metric -> shape (prompts, images per prompt)


@dataclass(frozen=True)
class Verdict:
    """
    What the guard thinks at a step.

    Args:
        step (`int`):
            The step.
        gain (`float`):
            Mean improvement of the held-out rewards on the base model, in standard deviations of its images.
        best (`int`):
            The trained step with the largest gain so far.
        stop (`bool`):
            Whether held-out rewards fall while training rewards rise.
        sentence (`str`):
            All of it in words.
    """

    step: int
    gain: float
    best: int
    stop: bool
    sentence: str


@dataclass(frozen=True)
class Finding:
    """
    What the scores of a step say about going on.

    Args:
        reference (`int`):
            The step before that the held-out judges liked best, 0 for the base model.
        fell (`list[str]`):
            Held-out rewards that have fallen since.
        rose (`list[str]`):
            Training rewards that have risen since, looked at only if a held-out one fell.
        stop (`bool`):
            Whether to stop.
    """

    reference: int
    fell: list[str]
    rose: list[str]
    stop: bool


def find_hacking(
    history: Mapping[int, Scores],
    roles: Mapping[str, str],
    lower_is_better: set[str] = frozenset(),
    num_measurements: int = 2,
) -> Finding:
    """
    Whether training should stop at the last step of a history: a held-out reward has fallen since the step that was best
    before, and a training reward has risen.

    Fallen means that an interval of the paired difference over prompts lies below zero. It is Student's, at a level divided
    by the number of held-out rewards and of all pairs of measurements, so that all statements of a run hold at once with
    95 %: where nothing changes, a run is stopped by chance once in twenty at most, although the step to compare with was
    itself chosen for its scores.

    Args:
        history (`Mapping[int, Scores]`):
            Scores by step, the base model's at step 0 first.
        roles (`Mapping[str, str]`):
            `"training"`, `"held_out"` or `"image"` by metric.
        lower_is_better (`set[str]`, *optional*):
            Metrics of which less is better.
        num_measurements (`int`, *optional*, defaults to `2`):
            Measurements that the run will have, with the base model's.
    """
    held_out = [name for name, role in roles.items() if role == "held_out"]
    training = [name for name, role in roles.items() if role == "training"]
    *before, step = history
    reference = max(before, key=lambda s: gain(history, s, roles, lower_is_better))
    now, then = history[step], history[reference]
    comparisons = len(held_out) * num_measurements * (num_measurements - 1) / 2
    fell = [name for name in held_out if _fell(now[name], then[name], name in lower_is_better, comparisons)]
    rose = [name for name in training if fell and _change(now, then, name, lower_is_better) == "rose"]
    return Finding(reference, fell, rose, stop=bool(fell and (rose or not training)))


def gain(
    history: Mapping[int, Scores], step: int, roles: Mapping[str, str], lower_is_better: set[str] = frozenset()
) -> float:
    """Mean improvement of the held-out rewards on the base model, in standard deviations of the base model's images."""
    gains = []
    for name in (name for name, role in roles.items() if role == "held_out"):
        sign = -1 if name in lower_is_better else 1
        base = history[0][name]
        gains.append(sign * (history[step][name].mean() - base.mean()) / (base.std() or 1.0))
    return float(np.mean(gains))


def judge(
    history: Mapping[int, Scores],
    roles: Mapping[str, str],
    lower_is_better: set[str] = frozenset(),
    num_measurements: int = 2,
) -> Verdict:
    """The guard's verdict on the last step of a history, in words; arguments as of [`find_hacking`]."""
    step = list(history)[-1]
    if step == 0:
        return Verdict(0, 0.0, 0, False, "step 0: the base model, measured.")
    gains = {s: gain(history, s, roles, lower_is_better) for s in history if s}
    best = max(gains, key=gains.get)  # the first of equals
    finding = find_hacking(history, roles, lower_is_better, num_measurements)
    now, base = history[step], history[0]
    held_out = [name for name, role in roles.items() if role == "held_out"]

    words = _words(now, base, [name for name, role in roles.items() if role != "image"], lower_is_better)
    parts = []
    for label, role in (("training", "training"), ("held-out", "held_out")):
        changes = [_describe(now, base, name, words.get(name, "")) for name, r in roles.items() if r == role]
        parts += [f"{label} {', '.join(changes)}"] if changes else []
    shifts = []
    for name in (name for name, role in roles.items() if role == "image"):
        before, after = base[name].mean(), now[name].mean()
        if _change(now, base, name) and abs(after - before) > 0.1 * abs(before):
            shifts.append(f"{name} {before:.3g} -> {after:.3g}")
    parts += [f"images {', '.join(shifts)}"] if shifts else []
    if finding.stop:
        since = f"step {finding.reference}" if finding.reference else "the base model"
        rising = f" while {' and '.join(finding.rose)} rose" if finding.rose else ""
        parts.append(f"{' and '.join(finding.fell)} fell since {since}{rising}: the rewards are being hacked")
    elif not any(words[name] for name in held_out):
        parts.append("no held-out change beyond chance")
    unloved = "" if gains[best] > 0 else ", which the held-out judges do not prefer to the base model"
    parts.append(f"best is step {best}{unloved}")
    return Verdict(step, gains[step], best, finding.stop, f"step {step}: {'; '.join(parts)}.")


def _fell(now: np.ndarray, then: np.ndarray, lower_is_better: bool, comparisons: float) -> bool:
    difference = (now - then).mean(axis=1) * (-1 if lower_is_better else 1)  # (prompts,)
    n = len(difference)
    error = difference.std(ddof=1) / math.sqrt(n)
    return bool(difference.mean() + student_quantile(1 - (1 - CONFIDENCE) / comparisons, n - 1) * error < 0)


def _change(now: Scores, then: Scores, name: str, lower_is_better: set[str] = frozenset()) -> str | None:
    """`"rose"` or `"fell"` in quality where the 95 % interval over prompts excludes 0."""
    interval = paired_bootstrap(now[name], then[name])
    if interval["ci_low"] <= 0 <= interval["ci_high"]:
        return None
    return "rose" if (interval["delta"] > 0) != (name in lower_is_better) else "fell"


def _words(now: Scores, base: Scores, names: list[str], lower_is_better: set[str]) -> dict[str, str]:
    """What to call the change of each metric: a word where it is beyond chance among all of them together ([`holm`])."""
    beyond = holm([paired_p(now[name], base[name]) for name in names])
    rose = [now[name].mean() > base[name].mean() for name in names]
    return {
        name: (" better" if up != (name in lower_is_better) else " worse") if certain else ""
        for name, up, certain in zip(names, rose, beyond, strict=True)
    }


def _describe(now: Scores, base: Scores, name: str, word: str) -> str:
    interval = paired_bootstrap(now[name], base[name])
    return f"{name} {interval['delta']:+.3g} [{interval['ci_low']:+.3g}, {interval['ci_high']:+.3g}]{word}"


def student_quantile(probability: float, degrees: int) -> float:
    """
    Quantile of Student's distribution, by the expansion of Abramowitz and Stegun 26.7.5; to 1 % from seven degrees of
    freedom on for what is needed here.
    """
    z, v = NormalDist().inv_cdf(probability), degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
