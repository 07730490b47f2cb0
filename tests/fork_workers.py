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
Workers that fill a pool together, and that are killed. A [`Program`] of its own, since a process can be forked safely
only before it has threads: it prints what it saw as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from craft_trl.candidates.drawing import generate_candidates
from craft_trl.candidates.pool import CLAIMS, CandidatePool

from .helpers import REWARDS, SCORERS, Draw, groups_of


GROUPS = groups_of(60, 3)
MOMENTS = 20


class SlowDraw(Draw):
    """Slow enough that a kill finds work under way wherever it falls."""

    def __call__(self, prompts, seeds):
        time.sleep(0.01)
        return super().__call__(prompts, seeds)


def start(folder: Path, task: tuple[int, int] | None = None) -> int:
    """A worker, or one of so many tasks, as its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        pool = CandidatePool(folder, REWARDS)
        generate_candidates(
            pool, GROUPS, SlowDraw(), SCORERS, 3, list(REWARDS), draw_ahead=True, show_progress=False, task=task
        )
        os._exit(0)
    finally:
        os._exit(1)


def wait(*pids: int) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def shards(folder: Path) -> int:
    return len(list(folder.glob("shard-*.parquet")))


def describe(folder: Path, reference: CandidatePool) -> dict:
    """How a pool differs from the reference."""
    pool = CandidatePool(folder, REWARDS)
    same = pool.scores.keys() == reference.scores.keys()
    return {
        "same_rows": same,
        "same_scores": same and all(pool.scores[k].tobytes() == reference.scores[k].tobytes() for k in pool.scores),
        "same_images": same and list(pool.images(reference.scores)) == list(reference.images(reference.scores)),
        "doubles": sum(pq.read_metadata(path).num_rows for path in folder.glob("shard-*.parquet")) - len(pool),
        "damaged": len(pool.damaged),
        "leftovers": len(list(folder.glob(".*"))),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    codes = {"one": wait(start(folder / "one"))}
    for name, number in (("two", 2), ("three", 3)):
        codes[name] = wait(*[start(folder / name) for _ in range(number)])

    # Killed at random moments, both workers or one, over and over; a new pool whenever one is nearly complete.
    chance, names, seen = random.Random(0), ["killed 0"], []
    for moment in range(MOMENTS):
        if shards(folder / names[-1]) > 30:
            names.append(f"killed {len(names)}")
        target = folder / names[-1]
        wanted = shards(target) + chance.randrange(8)
        workers = [start(target), start(target)]
        while shards(target) < wanted:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        doomed = workers if chance.random() < 0.7 else workers[:1]
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        seen.append(shards(target))
        codes[f"moment {moment}"] = wait(*workers)
    for name in names:
        wait(start(folder / name), start(folder / name))

    # Tasks, which know their groups beforehand: one of two is killed at random moments and done again.
    tasks = [start(folder / "tasks", (number, 2)) for number in range(2)]
    for _ in range(5):
        wanted = shards(folder / "tasks") + 1 + chance.randrange(3)
        while shards(folder / "tasks") < wanted:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(tasks[0], signal.SIGKILL)
        wait(tasks[0])
        tasks[0] = start(folder / "tasks", (0, 2))
    codes["tasks"] = wait(*tasks)
    locked = (folder / "tasks" / CLAIMS).exists()

    # The work of a dead worker is done by the other one before it ends.
    first, second = start(folder / "taken over"), start(folder / "taken over")
    while not shards(folder / "taken over"):
        time.sleep(0.001)
    os.kill(first, signal.SIGKILL)
    codes["taken over"] = wait(first, second)
    # One that stands still holds nobody up, and keeps what it has claimed.
    first = start(folder / "stopped")
    while not shards(folder / "stopped"):
        time.sleep(0.001)
    os.kill(first, signal.SIGSTOP)
    codes["beside one that stands still"] = wait(start(folder / "stopped"))
    rows = len(CandidatePool(folder / "stopped", REWARDS))
    os.kill(first, signal.SIGCONT)
    codes["stopped"] = wait(first)

    reference = CandidatePool(folder / "one", REWARDS)
    pools = {path.name: describe(path, reference) for path in sorted(folder.iterdir()) if path.is_dir()}
    print(
        json.dumps(
            {
                "codes": codes,
                "pools": pools,
                "seen": seen,
                "rows": len(reference),
                "rows_beside": rows,
                "tasks_lock": locked,
            }
        )
    )
