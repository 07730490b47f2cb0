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
Benchmarks that ask a vision-language model: their questions, and the exact rules by which answers become scores.

GenEval 2 ([2512.16853](https://huggingface.co/papers/2512.16853)), DPG-Bench
([2403.05135](https://huggingface.co/papers/2403.05135)) and VQAScore ([2404.01291](https://huggingface.co/papers/2404.01291)).
Pure functions: numbers in, numbers out.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence


def soft_tifa(atoms: Sequence[float], mean: str = "arithmetic") -> float:
    """
    GenEval 2's score of an image.

    Args:
        atoms (`Sequence[float]`):
            Probability of the right answer to each question.
        mean (`"arithmetic"` or `"geometric"`, *optional*, defaults to `"arithmetic"`):
            Soft-TIFA AM or GM. One 0 makes the geometric mean 0.
    """
    if mean == "arithmetic":
        return sum(atoms) / len(atoms)
    return math.exp(sum(map(math.log, atoms)) / len(atoms)) if min(atoms) > 0 else 0.0


def tifa(first_words: Sequence[str], accepted: Sequence[Sequence[str]]) -> float:
    """TIFA: the share of questions whose likeliest token, in small letters, is one of the forms of the answer."""
    right = [word.lower() in forms for word, forms in zip(first_words, accepted, strict=True)]
    return sum(right) / len(right)


def skill_scores(atoms: Iterable[Sequence[float]], skills: Iterable[Sequence[str]]) -> dict[str, float]:
    """GenEval 2's score of each skill: the mean over all its questions, however many an image has."""
    pooled = defaultdict(list)
    for values, names in zip(atoms, skills, strict=True):
        for value, name in zip(values, names, strict=True):
            pooled[name].append(value)
    return {name: sum(values) / len(values) for name, values in pooled.items()}


def dpg_answers(
    raw: Mapping[int, float], parents: Mapping[int, Sequence[int]], transitive: bool = False
) -> dict[int, float]:
    """
    DPG-Bench's scores of the questions about an image: 0 where a question that it depends on is answered no.

    Args:
        raw (`Mapping[int, float]`):
            1 for yes and 0 for no by the question's id, in the order of the benchmark.
        parents (`Mapping[int, Sequence[int]]`):
            Ids of the questions that each depends on; 0 is none.
        transitive (`bool`, *optional*, defaults to `False`):
            Whether zeros travel down chains of any order. As published, they do only where parents stand before their
            children.
    """
    scores = dict(raw)
    for _ in range(len(scores) if transitive else 1):
        for number in scores:
            if any(parent and not scores[parent] for parent in parents[number]):
                scores[number] = 0.0
    return scores


def dpg_score(raw: Mapping[int, float], parents: Mapping[int, Sequence[int]], transitive: bool = False) -> float:
    """DPG-Bench's score of an image: the mean of [`dpg_answers`]."""
    scores = dpg_answers(raw, parents, transitive)
    return sum(scores.values()) / len(scores)


def dpg_categories(
    images: Sequence[Mapping[int, float]],
    parents: Mapping[int, Sequence[int]],
    tuples: Mapping[int, str],
    level: int = 1,
    dependencies: bool = False,
    last_image: bool = True,
) -> dict[str, list[float]]:
    """
    Answers to a prompt's questions by category; a category's score is the mean over all answers of all prompts.

    Args:
        images (`Sequence[Mapping[int, float]]`):
            Of each of the prompt's images, 1 or 0 by the question's id.
        parents (`Mapping[int, Sequence[int]]`):
            What each question depends on.
        tuples (`Mapping[int, str]`):
            Their tuples, such as `attribute - color (cube, red)`.
        level (`int`, *optional*, defaults to `1`):
            1 for `attribute`, 2 for `attribute - color`.
        dependencies (`bool`, *optional*, defaults to `False`):
            Whether to take answers after their dependencies. The published script takes them before.
        last_image (`bool`, *optional*, defaults to `True`):
            Whether the last image alone counts, as in the published script.
    """
    found = defaultdict(list)
    for raw in images[-1:] if last_image else images:
        for number, value in (dpg_answers(raw, parents) if dependencies else raw).items():
            category = tuples[number].partition("(")[0].strip()
            found[category.partition(" - ")[0].strip() if level == 1 else category].append(float(value))
    return dict(found)
