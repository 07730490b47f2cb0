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

"""The step of a pipeline of datatrove that does one task of a stage."""

import contextlib
import importlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..candidates.executors import ExecutorArguments, as_task
from ..parser import ENVIRONMENT
from .launch import run_in_processes


@dataclass(repr=False)
class Task:
    """
    The step of the pipeline: a call does one task, in the folder and with the variables of whoever submitted it.

    Args:
        script (`str`):
            Name of the script.
        parsed (`Sequence`):
            Arguments of its `main`.
        folder (`str`):
            Working directory, where there is such a folder.
        environment (`dict[str, str]`):
            The recipe's `env`.
    """

    script: str
    parsed: Sequence[Any]
    folder: str
    environment: dict[str, str]

    @classmethod
    def of(cls, script: str, parsed: Sequence[Any], work: ExecutorArguments) -> "Task":
        """The step of these arguments, among which `work` is."""
        return cls(
            script, [as_task(work, 0) if part is work else part for part in parsed], os.getcwd(), dict(ENVIRONMENT)
        )

    def __repr__(self) -> str:  # in datatrove's logs, where settings have no place
        return f"craft {self.script}"

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        if os.environ.get("DATATROVE_EXECUTOR") == "RAY":
            self.in_child(rank)
        else:
            with contextlib.redirect_stderr(sys.__stderr__):  # see `Here`
                self.work(rank)

    def work(self, rank: int) -> None:
        """Do a task in this process."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        os.environ.update(self.environment)
        parsed = [as_task(part, rank) if isinstance(part, ExecutorArguments) else part for part in self.parsed]
        importlib.import_module(f".{self.script}", __package__).main(*parsed)
        from ..devices import release_memory  # here: it imports PyTorch

        release_memory()  # for the next one

    def in_child(self, rank: int) -> None:
        """
        Do a task in a process of its own. Datatrove's actor (0.10.1) waits for ever for its process when that is killed, as the
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
                failed = run_in_processes(self.work, [(rank,)])
            finally:
                os.dup2(before, 2)
                os.close(before)
            if failed:
                errors.seek(0)
                said = errors.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"Task {rank} ended with exit code {failed[0]}. It said:\n{said}")
