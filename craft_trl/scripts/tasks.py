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

"""The step of a pipeline of datatrove that is a worker: it does tasks of a stage, one after another."""

import contextlib
import importlib
import itertools
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..candidates.executors import ExecutorArguments, as_task
from ..parser import ENVIRONMENT
from .launch import run_in_processes


if TYPE_CHECKING:
    from ..candidates.shared import SharedFolder


TAKEN = "taken"  # a file there, TASK-WORKER, for each task that a worker has taken
DONE = b"done"


@dataclass(repr=False)
class Worker:
    """
    The step of the pipeline: a call is a worker, in the folder and with the variables of whoever submitted it. It loads the
    models once, and takes tasks until none is left: those that nobody has taken, whichever machine is fast or slow.

    Args:
        script (`str`):
            Name of the script.
        parsed (`Sequence`):
            Arguments of its `main`.
        folder (`str`):
            Working directory, where there is such a folder.
        environment (`dict[str, str]`):
            The recipe's `env`.
        todo (`list[int]`):
            The tasks that are to be done.
        notes (`str`):
            A folder that all workers reach, where they note which tasks they take.
    """

    script: str
    parsed: Sequence[Any]
    folder: str
    environment: dict[str, str]
    todo: list[int]
    notes: str

    @classmethod
    def of(
        cls, script: str, parsed: Sequence[Any], work: ExecutorArguments, todo: Sequence[int], notes: str
    ) -> "Worker":
        """The step of these arguments, among which `work` is."""
        arguments = [as_task(part, 0) if part is work else part for part in parsed]
        return cls(script, arguments, os.getcwd(), dict(ENVIRONMENT), list(todo), notes)

    def __repr__(self) -> str:  # in datatrove's logs, where settings have no place
        return f"craft {self.script}"

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        if os.environ.get("DATATROVE_EXECUTOR") == "RAY":
            self.in_child(rank, world_size)
        else:
            with contextlib.redirect_stderr(sys.__stderr__):  # see `Here`
                self.work(rank, world_size)

    def work(self, worker: int, workers: int) -> None:
        """Do tasks in this process, until none is left."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        os.environ.update(self.environment)
        tasks = self.take(worker, workers)
        if (first := next(tasks, None)) is None:
            return  # others were faster: nothing is loaded
        main = importlib.import_module(f".{self.script}", __package__).main
        main(*self.parsed, tasks=itertools.chain([first], tasks))
        from ..devices import release_memory  # here: it imports PyTorch

        release_memory()

    def take(self, worker: int, workers: int) -> Iterator[int]:
        """
        The tasks of one of the workers, from 0: first those that it had taken and not done, if it is started again, then every
        `workers`-th, then whatever is left. With files alone, as a bucket has no locks: of workers that take a task at the
        same moment, each sees the other's file, and none does it.
        """
        from ..candidates.shared import SharedFolder  # here, for the sake of `craft --help`

        folder = SharedFolder(self.notes)
        for name in folder.names(f"{TAKEN}/*-{worker}"):
            if folder.read(name) != DONE:
                yield int(name.removeprefix(f"{TAKEN}/").partition("-")[0])
                folder.write(name, DONE)
        while free := self.free(folder):
            task = next((task for task in self.todo[worker::workers] if task in free), None)
            task = random.choice(sorted(free)) if task is None else task
            name = f"{TAKEN}/{task}-{worker}"
            folder.write(name, b"")
            if len(folder.names(f"{TAKEN}/{task}-*")) > 1:
                folder.remove(name)
                time.sleep(random.random())  # so that one of them is the first at the next attempt
                continue
            yield task
            folder.write(name, DONE)

    def free(self, folder: "SharedFolder") -> set[int]:
        """The tasks that nobody has taken."""
        found = (re.fullmatch(rf"{TAKEN}/(\d+)-\d+", name) for name in folder.names(f"{TAKEN}/*"))
        return set(self.todo) - {int(match[1]) for match in found if match}

    def in_child(self, worker: int, workers: int) -> None:
        """
        Work in a process of its own. Datatrove's actor (0.10.1) waits for ever for its process when that is killed, as the
        largest is when memory runs out; that of the actor itself, which Ray starts again, leaves it behind. To go when
        `RayPipelineExecutor` notices both.
        """
        parent = os.getppid()

        def end_with_actor() -> None:
            while os.getppid() == parent:
                time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)  # which the process that draws notices, and ends in order

        threading.Thread(target=end_with_actor, daemon=True).start()
        before = os.dup(2)
        with tempfile.TemporaryFile() as errors:
            os.dup2(errors.fileno(), 2)
            try:
                failed = run_in_processes(self.work, [(worker, workers)])
            finally:
                os.dup2(before, 2)
                os.close(before)
            if failed:
                errors.seek(0)
                said = errors.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"Worker {worker} ended with exit code {failed[0]}. It said:\n{said}")
