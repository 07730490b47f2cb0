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

"""Originals of another pool: what a tuned model's variants are compared with stays the base model's."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..stages import read_record
from .groups import Group
from .pool import CandidatePool


def record_of(run_dir: str) -> dict[str, Any]:
    """Record of the pool that originals are taken from."""
    record = read_record(Path(run_dir) / "pool")
    if record is None or record["stage"] != "generate":
        raise UsageError(
            f"originals_from: there is no pool in {Path(run_dir) / 'pool'}: run `craft generate` there first."
        )
    return record


def check_originals(run_dir: str, rewards: dict[str, Any], sampling: dict[str, Any]) -> None:
    """
    Raise a [`UsageError`] unless the images of a run's pool can stand beside new ones: scored by the same rewards, and of one
    size.
    """
    settings = record_of(run_dir)["settings"]
    if settings["rewards"] != rewards:
        theirs = ", ".join(sorted(settings["rewards"]))
        raise UsageError(
            f"originals_from: the pool in {run_dir} was scored by other rewards ({theirs}, or other weights of these): they must be the "
            "same to be compared."
        )
    for side in ("height", "width"):
        if settings["sampling"][side] != sampling[side]:
            raise UsageError(
                f"originals_from: {side} of the images in {run_dir} is {settings['sampling'][side]}, and here {sampling[side]}."
            )


def adopt_originals(run_dir: str, groups: Sequence[Group], pool: CandidatePool) -> int:
    """Copy the originals of groups that are not there yet from the pool of another run, to the byte; how many these were."""
    source = CandidatePool(Path(run_dir) / "pool", pool.rewards, verify=False)
    wanted = {key for group in groups if (key := group.keys[0]) in source and key not in pool}
    pool.orient(source.lower_is_better)
    for shard in dict.fromkeys(source.shard_of[key] for key in source.by_shard(wanted)):
        table = source.read_shard(shard)
        rows = list(zip(*(table[name].to_pylist() for name in ("prompt", "expanded_prompt", "seed")), strict=True))
        chosen = [i for i, key in enumerate(rows) if key in wanted and source.shard_of[key] == shard]
        table, keys = table.take(chosen), [rows[i] for i in chosen]
        scores = {name: table[name].to_pylist() for name in pool.rewards}
        pool.add(keys, scores, pool.write_table(len(pool), table))
    return len(wanted)


def with_originals(groups: Sequence[Group], pool: CandidatePool) -> list[Group]:
    """The groups up to the first one without an original: a pool that had a target has none of those behind."""
    found = list(takewhile(lambda group: group.keys[0] in pool, groups))
    if not found:
        raise UsageError(
            f"originals_from: its pool has no image for {groups[0].prompt!r}, seed {groups[0].seeds[0]}: it must be of a run of the "
            "same prompts and seed."
        )
    return found
