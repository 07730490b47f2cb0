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
"""A task reads of a pool what may be its own, and nothing else."""

from pathlib import Path

import pytest

from craft_trl.candidates.drawing import generate_candidates
from craft_trl.candidates.pool import CandidatePool
from craft_trl.candidates.shared import SharedFolder, open_shared
from craft_trl.candidates.shares import Share
from craft_trl.stages import fingerprint

from ..helpers import REWARDS, SCORERS, Draw, groups_of


def test_may_be_in():
    """By counting: whether two shares of 200 groups have one in common."""
    for tasks in range(1, 13):
        for others in range(1, 13):
            for task in range(tasks):
                for other in range(others):
                    name = (
                        f"shard-00000032-{Share(other, others, '12ab34cd')}-0123456789abcdef-fedcba9876543210.parquet"
                    )
                    common = set(range(task, 200, tasks)) & set(range(other, 200, others))
                    assert Share(task, tasks, "12ab34cd").may_be_in(name) == bool(common), (task, tasks, name)
    # Of another list of groups, or of one process: nobody knows.
    assert Share(0, 2, "00000000").may_be_in("shard-00000032-1of2x12ab34cd-0123456789abcdef-fedcba9876543210.parquet")
    assert Share(0, 2, "12ab34cd").may_be_in("shard-00000032-0123456789abcdef-fedcba9876543210.parquet")
    assert Share(0, 2, "12ab34cd").may_be_in("shard-00000032-fedcba9876543210.parquet")


@pytest.mark.parametrize("kind", ["path", "bucket"])
def test_what_a_task_reads(tmp_path, kind):
    """What it must not read is damaged here, which is noticed if it is read, and set aside."""
    url = str(tmp_path / "pool") if kind == "path" else f"memory://{tmp_path.name}/pool"
    groups, folder = groups_of(8, 2), SharedFolder(url)
    listed = fingerprint([group.keys for group in groups])[:8]

    def task(number: int, tasks: int, groups=groups, listed=listed) -> tuple[CandidatePool, int]:
        """The pool of a task, and how many images it has drawn."""
        pool, draw = open_shared(url, REWARDS, Share(number, tasks, listed)), Draw()
        generate_candidates(pool, groups, draw, SCORERS, 4, show_progress=False, task=(number, tasks))
        return pool, sum(draw.batches)

    def rows(numbers) -> set:
        return {key for i in numbers for key in groups[i].keys}

    # One process has drawn groups 0 and 1, and the tasks the rest.
    generate_candidates(open_shared(url, REWARDS), groups[:2], Draw(), SCORERS, 2, show_progress=False, task=(0, 1))
    (*_, first) = folder.names("shard-*")
    assert len(Path(first).stem.split("-")) == 4  # a name as ever
    for number, missing in enumerate([3, 3, 6, 6]):
        assert task(number, 4)[1] == missing
    assert {Path(name).stem.split("-")[2] for name in folder.names("shard-*of*")} == {
        f"{number}of4x{listed}" for number in range(4)
    }
    whole = open_shared(url, REWARDS)
    assert whole.scores.keys() == rows(range(8))
    for number in (0, 2, 3):
        for name in folder.names(f"shard-*-{number}of4x*"):
            folder.write(name, folder.read(name)[:-100])
    pool, drawn = task(1, 4)
    assert pool.scores.keys() == rows([0, 1, 5]) and not pool.damaged and not drawn
    # Task 5 of 8 has group 5 only, task 1 of 2 the groups of 1 and 3 of 4, of which the latter are damaged.
    pool, drawn = task(5, 8)
    assert pool.scores.keys() == rows([0, 1, 5]) and not pool.damaged and not drawn
    pool, drawn = task(1, 2)
    assert drawn == 6 and {Path(path).name.split("-")[2] for path in pool.damaged} == {f"3of4x{listed}"}
    assert pool.scores.keys() == rows([0, 1, 3, 5, 7])
    # In another list, group 5 is number 6, and task 2 of 4 finds what task 1 of 4 has drawn.
    later = [*groups_of(9, 2)[8:], *groups]
    pool, drawn = task(2, 4, later, fingerprint([group.keys for group in later])[:8])
    assert rows([1, 5]) <= pool.scores.keys() and drawn == 0 and len(pool.damaged) > 0
