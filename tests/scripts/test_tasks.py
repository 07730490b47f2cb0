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
"""Which tasks a worker takes."""

import threading

from craft_trl.candidates.executors import ExecutorArguments
from craft_trl.candidates.shared import SharedFolder
from craft_trl.scripts.tasks import TAKEN, Worker


def make(tmp_path, todo) -> Worker:
    return Worker.of("generate", [], ExecutorArguments(executor="local", tasks=100), todo, str(tmp_path / "notes"))


def test_each_task_is_taken_once(tmp_path):
    worker = make(tmp_path, [3, 5, 8, 9, 12])
    first, second = worker.take(0, 2), worker.take(1, 2)
    assert [next(first), next(second), next(first), next(first)] == [3, 5, 8, 12]  # the second one is slow
    assert next(first) == 9 and next(first, None) is None and next(second, None) is None
    assert next(worker.take(7, 8), None) is None  # one that comes when all is taken


def test_started_again(tmp_path):
    """It goes on with what it was at, and leaves what others are at."""
    worker = make(tmp_path, range(5))
    killed, other = worker.take(0, 2), worker.take(1, 2)
    assert [next(killed), next(killed), next(other)] == [0, 2, 1]
    again = worker.take(0, 2)
    assert [next(again), next(again), next(again)] == [2, 4, 3] and next(again, None) is None
    folder = SharedFolder(worker.notes)
    assert {name: folder.read(name) for name in folder.names(f"{TAKEN}/*")} == {
        f"{TAKEN}/0-0": b"done", f"{TAKEN}/1-1": b"", f"{TAKEN}/2-0": b"done", f"{TAKEN}/3-0": b"done", f"{TAKEN}/4-0": b"done",
    }  # fmt: skip


def test_at_the_same_moment(tmp_path):
    """Six workers that all want any of twelve tasks: a bucket has no locks, and yet each is done once."""
    worker, barrier, done = make(tmp_path, range(12)), threading.Barrier(6), []

    def work(number):
        barrier.wait()
        for task in worker.take(number, 100):
            done.append(task)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20, 26)]
    for step in (threading.Thread.start, threading.Thread.join):
        list(map(step, threads))
    assert sorted(done) == list(range(12))
    assert {name.partition("-")[0] for name in SharedFolder(worker.notes).names(f"{TAKEN}/*")} == {
        f"{TAKEN}/{task}" for task in range(12)
    }


def test_both_see_the_other(tmp_path):
    """Then neither does the task, until one of them is alone with it."""
    worker = make(tmp_path, [0, 1])
    folder = SharedFolder(worker.notes)
    folder.write(f"{TAKEN}/0-5", b"")
    before = [{0, 1}]  # what it saw the moment before
    worker.free = lambda folder: before.pop() if before else Worker.free(worker, folder)
    assert next(worker.take(0, 2)) == 1
    assert folder.names(f"{TAKEN}/*") == [f"{TAKEN}/0-5", f"{TAKEN}/1-0"]
