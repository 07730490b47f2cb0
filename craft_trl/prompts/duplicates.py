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

"""Prompts that say the same: compared as normalised text, or by the share of words and word pairs they have in common."""

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence


def normalise(text: str) -> str:
    """
    What two equal prompts have in common: compatibility-normalised (NFKC), case-folded, punctuation as white space,
    white space collapsed. Symbols, such as emoji, are kept; a text of nothing but punctuation is kept as it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_PUNCTUATION).split()) or text


class _Punctuation(dict):
    """What `str.translate` replaces each character by. It grows with the characters that are met."""

    def __missing__(self, code: int) -> int | str:
        self[code] = " " if unicodedata.category(chr(code)).startswith("P") else code
        return self[code]


_PUNCTUATION = _Punctuation()


def find_near_duplicates(
    prompts: Sequence[str], threshold: float, against: Sequence[str] = ()
) -> list[tuple[int, bool] | None]:
    """
    For each prompt, the first one before it that is kept and close to it.

    A prompt is the set of its normalised words and of its neighbouring word pairs, so that the order of words counts.
    Two are near duplicates if the Jaccard similarity of their sets, common elements over all elements, reaches the
    threshold. A prompt with no near duplicate before it is kept.

    The comparison is exact and not quadratic: sets of that similarity share one of their rarest elements (prefix
    filtering, Bayardo et al., "Scaling up all pairs similarity search", WWW 2007).

    Args:
        prompts (`Sequence[str]`):
            Prompts.
        threshold (`float`):
            Similarity in (0, 1].
        against (`Sequence[str]`, *optional*):
            More prompts that stand before all others. They are not compared with each other.

    Returns:
        `list[tuple[int, bool] | None]`: `None` where a prompt is kept, else the index of its near duplicate and whether
        that is one of `against`.
    """
    sets = [_elements(text) for text in (*against, *prompts)]
    frequency = Counter(element for elements in sets for element in elements)
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    found: list[tuple[int, bool] | None] = []
    for number, elements in enumerate(sets):
        # Of n elements at least threshold * n are shared, so one of any n - that + 1 is. Rounding must not lose a match.
        length = len(elements) - math.ceil(threshold * len(elements) - 1e-9) + 1
        rarest = sorted(elements, key=lambda element: (frequency[element], element))[:length]
        match = None
        if number >= len(against):
            candidates = {other for element in rarest for other in index[element]}
            match = min((c for c in candidates if _similar(elements, sets[c], threshold)), default=None)
            before = match is not None and match < len(against)
            found.append(None if match is None else (match if before else match - len(against), before))
        if match is None:
            for element in rarest:
                index[element].append(number)
    return found


def _elements(text: str) -> set[tuple[str, ...]]:
    words = normalise(text).split()
    return {(word,) for word in words} | set(zip(words, words[1:], strict=False))


def _similar(a: set, b: set, threshold: float) -> bool:
    if min(len(a), len(b)) < threshold * max(len(a), len(b)) - 1e-9:
        return False
    common = len(a & b)
    return common >= threshold * (len(a) + len(b) - common) - 1e-9
