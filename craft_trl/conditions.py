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
What a variant must meet to pass: rewards on which it beats the original, and limits.

`hpsv2` asks for a better score than the original image has; `nsfw<0.5` for a score below 0.5, whatever the original has.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import UsageError


@dataclass(frozen=True)
class Limit:
    """
    A bound on a score, `nsfw<0.5` or `aesthetic>6`, in the units that the reward gives; the bound itself is outside.

    Args:
        reward (`str`):
            Name of the reward.
        sign (`"<"` or `">"`):
            On which side of `value` a score must be.
        value (`float`):
            The bound.
    """

    reward: str
    sign: str
    value: float

    def __str__(self) -> str:
        return f"{self.reward}{self.sign}{self.value:g}"

    def holds(self, scores: np.ndarray) -> np.ndarray:
        """Which scores, of any shape, are within the limit. A score that is missing (NaN) is not."""
        return scores < self.value if self.sign == "<" else scores > self.value


def split_conditions(conditions: Iterable[str]) -> tuple[list[str], list[Limit]]:
    """
    Conditions as a recipe writes them: the names of the rewards on which to beat the original, and the limits. Raises a
    [`UsageError`] for a limit that is none.
    """
    compared, limits = [], []
    for text in conditions:
        name, sign, value = re.fullmatch(r"([^<>]*)([<>]?)(.*)", text, flags=re.DOTALL).groups()
        if not sign:
            compared.append(name)
            continue
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(
                f"filter_rewards: {text!r} is no limit; write NAME<NUMBER or NAME>NUMBER, such as nsfw<0.5."
            )
        limits.append(Limit(name.strip(), sign, number))
    return compared, limits


def describe(conditions: Sequence[str]) -> str:
    """The conditions as the end of a sentence about a variant: `must ...`."""
    compared, limits = split_conditions(conditions)
    said = [f"beat the image of the original prompt on {', '.join(compared)}"] if compared else []
    said += [f"have {limit.reward} {limit.sign} {limit.value:g}" for limit in limits]
    return " and ".join(said)
