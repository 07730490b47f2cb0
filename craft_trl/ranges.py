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
The numbers that a setting may be, written where the setting is: `num_prompts: Count | None`.

Python passes over what `Annotated` adds to a type, and so do argparse and the parser of the recipes; [`check_ranges`] reads
it, in the `__post_init__` of every configuration.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from .errors import UsageError


@dataclass(frozen=True)
class Range:
    """
    Numbers from `low` to `high`, always finite.

    Args:
        low (`float`):
            Smallest number, or what all are above.
        high (`float`, *optional*, defaults to `1e9`):
            Largest number, or what all are below. The default is beyond what anyone means, and short of what overflows.
        ends (`str`, *optional*, defaults to `"[]"`):
            Whether the two belong to the range: `"["` and `"]"` do, `"("` and `")"` do not.
    """

    low: float
    high: float = 10**9
    ends: str = "[]"

    def __contains__(self, value: float) -> bool:
        low = value > self.low if self.ends[0] == "(" else value >= self.low  # also false for NaN
        return low and (value < self.high if self.ends[1] == ")" else value <= self.high)

    def wanted(self, value: float) -> str:
        """What a number that is not in the range should have been, in words."""
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if self.high <= LARGEST_NAMED:
            words = {
                "[]": "from {} to {}",
                "()": "between {} and {}",
                "(]": "above {} and at most {}",
                "[)": "at least {} and below {}",
            }
            return words[self.ends].format(f"{self.low:g}", f"{self.high:g}")
        if value > self.low:
            return f"at most {self.high}"
        return f"above {self.low:g}" if self.ends[0] == "(" else f"at least {self.low:g}"


LARGEST_NAMED = 65535  # ends of ranges that mean something; larger ones only keep what overflows out

Count = Annotated[int, Range(1)]
CountFromZero = Annotated[int, Range(0)]
Pixels = Annotated[int, Range(1, 2**17)]
Processes = Annotated[int, Range(1, 10**5 + 1)]
Finite = Annotated[float, Range(-1e9, 1e9)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, ends="(]")]
Share = Annotated[float, Range(0, 1)]
# Images are numbered from it on, and their seeds are kept as int64.
Seed = Annotated[int, Range(0, 2**62)]


def check_ranges(config: Any) -> None:
    """Raise a [`UsageError`] unless every number of a dataclass, or of a list in it, is in the range of its type."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name, None)
        numbers = value if isinstance(value, list) else [value]
        for allowed in ranges(hint):
            for number in numbers:
                if isinstance(number, int | float) and number not in allowed:
                    which = f"every number of {name}" if isinstance(value, list) else name
                    raise UsageError(f"{which} must be {allowed.wanted(number)}, got {number}.")


def ranges(hint: Any) -> Iterator[Range]:
    """The ranges in a type, also in a list's or an optional one."""
    if get_origin(hint) is Annotated:
        yield from (extra for extra in hint.__metadata__ if isinstance(extra, Range))
    for part in get_args(hint):
        if part is not hint and not isinstance(part, Range):
            yield from ranges(part)
