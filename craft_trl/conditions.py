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
`ocr` is only of prompts that ask for text in quotes: on the others no variant is compared by it.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import UsageError


# Rewards that have something to say of a prompt only where it asks for text.
OF_TEXT = ("ocr",)
# A straight quote after a digit is an inch, and single ones are apostrophes too often.
QUOTED = re.compile(r'(?<!\d)"([^"]*)"|[“„]([^“”„]+)[”“]|«([^«»]+)»|「([^「」]+)」|『([^『』]+)』')


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


def quoted_texts(prompt: str) -> list[str]:
    """
    Texts that a prompt asks to be seen: what stands in `"…"`, `“…”`, `„…“`, `«…»`, `「…」` or `『…』` and has a letter or a digit.
    """
    found = (match[match.lastindex].strip() for match in QUOTED.finditer(prompt))
    return [text for text in found if re.search(r"[^\W_]", text)]


def compared_on(prompt: str, compared: Sequence[str]) -> list[str]:
    """
    Those of the rewards by which the images of a prompt are compared: all of them, but for `ocr` where the prompt asks for no
    text. Where nothing else is compared, `ocr` stays, and no variant beats another by it.
    """
    return [name for name in compared if name not in OF_TEXT or quoted_texts(prompt)] or list(compared)


def describe(conditions: Sequence[str]) -> str:
    """The conditions as the end of a sentence about a variant: `must ...`."""
    compared, limits = split_conditions(conditions)
    names = [f"{name} (where the prompt asks for text)" if name in OF_TEXT else name for name in compared]
    said = [f"beat the image of the original prompt on {', '.join(names)}"] if names else []
    said += [f"have {limit.reward} {limit.sign} {limit.value:g}" for limit in limits]
    return " and ".join(said)
