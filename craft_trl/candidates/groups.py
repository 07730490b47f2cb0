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

"""Groups: an original prompt with its variants and the seeds of their images."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import UsageError
from ..stages import write_atomically
from ..texts import read_json_lines
from .pool import Key


@dataclass(frozen=True)
class Group:
    """
    One original prompt and its variants.

    Args:
        group_id (`int`):
            Number of the group.
        prompt (`str`):
            Original prompt.
        expanded_prompts (`tuple[str, ...]`):
            Variants, without the original.
        seeds (`tuple[int, ...]`):
            Seed of the starting noise of each image, the original's first.
    """

    group_id: int
    prompt: str
    expanded_prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def keys(self) -> list[Key]:
        """Key of each image of the group, the original's first."""
        texts = (self.prompt, *self.expanded_prompts)
        return [(self.prompt, text, seed) for text, seed in zip(texts, self.seeds, strict=True)]


def make_groups(
    prompts: Sequence[str],
    variants: Sequence[Sequence[str]],
    seed: int = 0,
    group_seeds: Literal["same", "distinct"] = "same",
    seed_by: Literal["position", "prompt"] = "position",
) -> list[Group]:
    """
    Groups of prompts and their variants.

    Args:
        prompts (`Sequence[str]`):
            Original prompts.
        variants (`Sequence[Sequence[str]]`):
            Expanded variants of each.
        seed (`int`, *optional*, defaults to `0`):
            The images of group `i` start from noise `seed + i`, with `seed_by="position"`.
        group_seeds (`"same"` or `"distinct"`, *optional*, defaults to `"same"`):
            Whether all images of a group start from the same noise, so that only the prompt makes a difference, or
            variant `j` from noise `seed + i + 1000000 * j`, so that chance adds to the choice.
        seed_by (`"position"` or `"prompt"`, *optional*, defaults to `"position"`):
            Whether `i` is the number of the group, or a hash of its prompt, of 48 bits, so that prompts added anywhere
            in the list leave the seeds of the others as they are.
    """
    step = {"same": 0, "distinct": 1_000_000}[group_seeds]
    groups = []
    for number, (prompt, expanded) in enumerate(zip(prompts, variants, strict=True)):
        i = number if seed_by == "position" else int(hashlib.sha256(prompt.encode()).hexdigest()[:12], 16)
        seeds = tuple(seed + i + step * j for j in range(1 + len(expanded)))
        groups.append(Group(number, prompt, tuple(expanded), seeds))
    return groups


def save_groups(groups: Sequence[Group], path: Path) -> None:
    """Write groups as a `.jsonl` file, a line each."""
    lines = [json.dumps(asdict(group), ensure_ascii=False) + "\n" for group in groups]
    write_atomically(path, "".join(lines))


def load_groups(path: str | Path) -> list[Group]:
    """Read a file of [`save_groups`]; it may have been edited by hand."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no {path}: run `craft expand` first.")
    groups, line_of, number_of = [], {}, {}
    for number, row in read_json_lines(path, "the groups", "a group"):
        place = f"{path}, line {number}"
        group = _group(row, place)
        if len(group.seeds) != len((groups or [group])[0].seeds):
            raise UsageError(
                f"{place}: {len(group.expanded_prompts)} variants, but the group before has "
                f"{len(groups[0].expanded_prompts)}. All groups need as many."
            )
        if number_of.setdefault(group.group_id, number) != number:
            raise UsageError(
                f"{path}, lines {number_of[group.group_id]} and {number}: both have group_id {group.group_id}."
            )
        groups.append(group)
        for key in group.keys:
            if line_of.setdefault(key, number) != number:
                raise UsageError(
                    f"{path}, lines {line_of[key]} and {number}: both have the image of {key[1]!r} for {key[0]!r} with "
                    f"seed {key[2]}. Give one of them other seeds."
                )
    if not groups:
        raise UsageError(f"{path} holds no group.")
    return groups


def _group(row: Any, place: str) -> Group:
    """The group that a line holds, or a [`UsageError`] that says what it lacks."""
    names = [field.name for field in fields(Group)]
    if not isinstance(row, dict) or not row.keys() >= set(names):
        raise UsageError(f"{place}: not a group: it needs {', '.join(names)}.")
    group_id, prompt, variants, seeds = (row[name] for name in names)
    texts = [prompt, *variants] if isinstance(variants, list) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UsageError(f"{place}: not a group: prompt must be a text, and expanded_prompts a list of texts.")
    numbers = [group_id, *seeds] if isinstance(seeds, list) else []
    if not numbers or not all(type(number) is int and -(2**63) <= number < 2**63 for number in numbers):
        raise UsageError(f"{place}: not a group: group_id must be a whole number, and seeds a list of them.")
    if len(seeds) != len(texts):
        raise UsageError(f"{place}: {len(seeds)} seeds for {len(texts)} images, of the prompt and its variants.")
    group = Group(group_id, prompt, tuple(variants), tuple(seeds))
    if len(set(group.keys)) != len(texts):
        raise UsageError(f"{place}: two images of the same text and seed. Give one of them another seed.")
    return group
