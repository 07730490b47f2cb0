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

"""How the answer of a vision-language model becomes a number, from its probabilities or from its words. Pure functions."""

import re
from collections.abc import Sequence


NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
YES_NO = ("Yes", "No")
# Of the first token's probabilities; the others are of words.
OF_PROBABILITIES = ("mass", "token", "normalised", "normalised_exact")
OF_WORDS = ("text", "score")
READINGS = (*OF_PROBABILITIES, "systemone", *OF_WORDS)
IN_WORDS = {
    "mass": "the sum of the probabilities of {forms}",
    "token": "P({answer})",
    "normalised": "P({answer}) / (P of all answers), letters of either case and blanks alike",
    "normalised_exact": "P({answer}) / (P of all answers), as they are written",
    "systemone": "P({answer}) / (P of all answers), by /v1/systemone",
    "text": "whether it says {answer}",
    "score": "the number it says",
}
THOUGHT = re.compile(r"^\s*<think>.*?(?:</think>|\Z)", re.DOTALL)

First = Sequence[Sequence]  # tokens and their probabilities: what an answer may begin with


class NoAnswer(ValueError):
    """What came holds no answer to the question, which is not an answer of 0."""


def alternatives(answer: str) -> tuple[str, ...]:
    """The answers that a question may have, of which one is expected."""
    return NUMBERS if answer in NUMBERS else YES_NO


def forms(answer: str) -> list[str]:
    """The tokens that count as an answer, as GenEval 2 has them, but for the lone blank that one tokenizer puts before a digit."""
    words = [answer.lower(), answer.lower().capitalize()]
    digits = [str(NUMBERS.index(answer) + 1)] if answer in NUMBERS else []
    return [blank + form for form in (*words, *digits) for blank in ("", " ")]


def plain(token: str) -> str:
    """A token with a blank for what tokenizers write instead of one."""
    return token.replace("Ġ", " ").replace("▁", " ")


def unseen(first: First) -> float:
    """The most probability that a token which is not among the likeliest can have."""
    return min(min(value for _, value in first), max(0.0, 1.0 - sum(value for _, value in first)))


def read_first(first: First, answer: str, reading: str = "normalised") -> float:
    """
    Probability of an answer, from what it may begin with.

    An answer that is not among the likeliest tokens, while another one to the question is, has the most that it can have
    beside them by `mass` and `token`, and 0 by the normalised readings. If none is, that is a [`NoAnswer`].

    Args:
        first (`Sequence[tuple[str, float]]`):
            The likeliest tokens with their probabilities.
        answer (`str`):
            The answer that is expected: `Yes`, `No`, or a number from `one` to `ten`.
        reading (`str`, *optional*, defaults to `"normalised"`):
            One of `OF_PROBABILITIES`: the sum over [`forms`], the one token, or its share among all answers, by what
            tokens say without blanks and capitals or as they are written.
    """
    listed = [(plain(token), value) for token, value in first]
    known = {other: {*forms(other)} for other in alternatives(answer)}
    words = {form.strip().lower() for tokens in known.values() for form in tokens}
    if not any(token.strip().lower() in words for token, _ in listed):
        likely = ", ".join(f"{token!r} {value:.2f}" for token, value in listed[:3]) or "nothing"
        raise NoAnswer(f"{' or '.join(_short(alternatives(answer)))} is not among the likeliest answers: {likely}")
    if reading == "mass":
        found = [value for token, value in listed if token in known[answer]]
        return min(1.0, sum(found)) if found else unseen(first)
    if reading == "token":
        return next((value for token, value in listed if token == answer), unseen(first))
    if reading == "normalised":
        known = {other: {token.strip().lower() for token in tokens} for other, tokens in known.items()}
        listed = [(token.strip().lower(), value) for token, value in listed]
    elif reading == "normalised_exact":
        known = {other: {other} for other in known}
    else:
        raise ValueError(f"The reading must be one of {', '.join(OF_PROBABILITIES)}, got {reading!r}.")
    mass = {other: sum(value for token, value in listed if token in tokens) for other, tokens in known.items()}
    if not sum(mass.values()):
        raise NoAnswer(f"none of {', '.join(_short(alternatives(answer)))} has a probability")
    return mass[answer] / sum(mass.values())


def read_words(text: str, answer: str) -> float:
    """
    1 if a text gives the expected answer, 0 if it gives another one; a [`NoAnswer`] if it gives none, or several.

    The first word counts, or else the only answer among all words. What a model thinks in `<think>` is passed over.
    """
    words = re.findall(r"[^\W_]+", THOUGHT.sub("", text).lower())
    said = {form.strip().lower(): other for other in alternatives(answer) for form in forms(other)}
    if words and words[0] in said:
        return float(said[words[0]] == answer)
    found = {said[word] for word in words if word in said}
    if len(found) != 1:
        raise NoAnswer(f"it says {_quoted(text)}, neither {' nor '.join(_short(alternatives(answer)))}")
    return float(found.pop() == answer)


def read_score(text: str, low: float, high: float, pattern: str | None = None, matches: int | None = None) -> float:
    """
    The number that a text gives, from 0 (`low`) to 1 (`high`).

    Args:
        text (`str`):
            The answer; what a model thinks in `<think>` is passed over.
        low (`float`):
            The worst.
        high (`float`):
            The best. A number outside is a [`NoAnswer`].
        pattern (`str`, *optional*):
            Regular expression with one group for the number. Of several matches, the mean counts. Defaults to the first
            number in the text.
        matches (`int`, *optional*):
            How many there must be.
    """
    text = THOUGHT.sub("", text)
    found = re.findall(pattern or r"[-+]?\d+(?:\.\d+)?", text, re.IGNORECASE if pattern else 0)
    found = found if pattern else found[:1]
    if not found or (matches is not None and len(found) != matches):
        wanted = "no number" if not found else f"{len(found)} numbers instead of {matches}"
        raise NoAnswer(f"it says {_quoted(text)}: {wanted}")
    try:
        values = [float(value) for value in found]
    except ValueError as error:
        raise NoAnswer(f"it says {_quoted(text)}: {error}") from error
    if not all(low <= value <= high for value in values):  # nor NaN
        raise NoAnswer(f"it says {_quoted(text)}, and the scale is {low:g} to {high:g}")
    return (sum(values) / len(values) - low) / (high - low)


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _short(answers: Sequence[str]) -> list[str]:
    return list(answers) if len(answers) < 4 else [f"{answers[0]} to {answers[-1]}"]
