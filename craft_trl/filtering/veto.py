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

"""Vetoes: images that a person has struck out of the training set."""

import json
from collections.abc import Collection, Container, Sequence
from pathlib import Path

import numpy as np

from ..candidates.groups import Group
from ..candidates.pool import Key
from ..errors import UsageError
from ..texts import read_json_lines


COLUMNS = {"prompt": str, "expanded_prompt": str, "seed": int}


def veto_line(key: Key) -> str:
    """The line that vetoes an image."""
    return json.dumps(dict(zip(COLUMNS, key, strict=True)), ensure_ascii=False)


def load_vetoes(path: str | Path | None, pool: Container[Key]) -> list[Key]:
    """
    Keys of the vetoed images.

    Args:
        path (`str` or `Path`, *optional*):
            A `.jsonl` file with `prompt`, `expanded_prompt` and `seed` of an image in each line. Other columns, such as
            a note, are not read. Defaults to no file and so no vetoes.
        pool (`Container[Key]`):
            What there is to veto, such as a [`CandidatePool`]. A veto of anything else is an error that names its line.
    """
    if path is None:
        return []
    what = f"a veto, it needs {', '.join(COLUMNS)}"
    keys: dict[Key, None] = {}
    for number, row in read_json_lines(path, "the vetoes", what):
        if not isinstance(row, dict) or not COLUMNS.keys() <= row.keys():
            raise UsageError(f"{path}, line {number}: not {what}.")
        key = tuple(row[name] for name in COLUMNS)
        if [type(value) for value in key] != list(COLUMNS.values()):
            raise UsageError(f"{path}, line {number}: a veto has two texts and a whole number, got {list(key)}.")
        if key not in pool:
            raise UsageError(
                f"{path}, line {number}: the pool has no image of {key[1]!r} for {key[0]!r} with seed {key[2]}. Was it "
                "made for another pool?"
            )
        keys[key] = None
    return list(keys)


def veto_mask(vetoes: Collection[Key], groups: Sequence[Group]) -> np.ndarray:
    """Which images of the groups are vetoed, bool of shape `(G, 1 + n)`, column 0 being the originals."""
    vetoed = set(vetoes)
    return np.array([[key in vetoed for key in group.keys] for group in groups])
