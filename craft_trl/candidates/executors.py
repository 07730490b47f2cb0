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
Tasks: shares of a stage's drawing and judging, done one by one on machines that exchange nothing but files. What the command
line says of them; datatrove, whose engines start them, is imported by `engines` alone.
"""

import importlib.util
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..errors import UsageError
from ..ranges import Count, CountFromZero, check_ranges


@dataclass
class ExecutorArguments:
    """
    Where a stage draws and judges, if not in this process.

    Args:
        executor (`"local"`, `"slurm"`, `"ray"` or `"jobs"`, *optional*):
            The engine of datatrove that does the work in tasks: processes of this machine, an array of Slurm, a Ray cluster, or
            Hugging Face Jobs.
        tasks (`int`, *optional*):
            Tasks that the work is divided into. Defaults to `workers`, or 1.
        workers (`int`, *optional*):
            Processes that do them, each one task after another. Defaults to one for each task, with `local` to 1.
        shared_dir (`str`, *optional*):
            Folder that all machines reach, which fsspec can open: `s3://bucket/run`, `hf://buckets/org/bucket/run`. The tasks
            fill a pool there, and this command fetches what they have made. Defaults to the folder of the images itself,
            for machines with a common file system.
        executor_args (`list[str]`, *optional*):
            Arguments of datatrove's executor, as `NAME=VALUE`, such as `partition=gpu`; of Ray also `address=HOST:PORT`.
        task (`int`, *optional*):
            Do this one of the `tasks` in this process, from 0, and no more: for engines that start programs by themselves.
        dry_run (`bool`, *optional*, defaults to `False`):
            Print what would be submitted to Slurm or Jobs, and submit nothing.
    """

    executor: Literal["local", "slurm", "ray", "jobs"] | None = field(
        default=None, metadata={"help": "The engine of datatrove that does the work in tasks."}
    )
    tasks: Count | None = field(default=None, metadata={"help": "Tasks that the work is divided into."})
    workers: Count | None = field(
        default=None, metadata={"help": "Processes that do the tasks, each one after another."}
    )
    shared_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that all machines reach, such as s3://bucket/run or hf://buckets/org/bucket/run."},
    )
    executor_args: list[str] = field(
        default_factory=list,
        metadata={"help": "Arguments of datatrove's executor, as NAME=VALUE, such as partition=gpu."},
    )
    task: CountFromZero | None = field(
        default=None, metadata={"help": "Do this one of the tasks in this process, from 0, and no more."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Print what would be submitted to Slurm or Jobs, and submit nothing."}
    )

    def __post_init__(self):
        check_ranges(self)
        if self.executor is not None and self.task is not None:
            raise UsageError("executor starts all tasks, and task does one of them: leave one of them out.")
        if self.task is not None and (self.tasks is None or self.task >= self.tasks):
            raise UsageError(f"task is {self.task}, of tasks {self.tasks}: it must be from 0 to one less than tasks.")
        if self.executor is None:
            unused = {"executor_args": self.executor_args, "dry_run": self.dry_run}
            if self.task is None:
                unused |= {"tasks": self.tasks, "workers": self.workers}
            for name, value in unused.items():
                if value:
                    raise UsageError(f"{name} has no effect without an executor: give --executor, or leave it out.")
            return
        if self.dry_run and self.executor not in ("slurm", "jobs"):
            raise UsageError(f"dry_run is of slurm and jobs; executor {self.executor} submits nothing.")
        if self.executor == "jobs" and "://" not in (self.shared_dir or ""):
            raise UsageError(
                "executor jobs needs a folder that the Jobs reach: --shared_dir hf://buckets/org/bucket/run or s3://..."
            )
        self.tasks = self.tasks or self.workers or 1
        if self.executor == "local":
            self.workers = min(self.workers or 1, self.tasks)

    @property
    def in_tasks(self) -> bool:
        """Whether the work is done in tasks."""
        return self.executor is not None or self.task is not None

    def check_installed(self) -> None:
        """Raise a [`UsageError`] unless the packages of the engine are there."""
        packages = ["datatrove", *(["ray"] if self.executor == "ray" else [])]
        if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
            extra = "ray" if self.executor == "ray" else "executors"
            raise UsageError(
                f"executor {self.executor} needs {' and '.join(missing)}, which is not installed: pip install "
                f'"craft_trl[{extra}]".'
            )


def check_reached(executor: str | None, **sources: str | None) -> None:
    """Raise a [`UsageError`] if a source is a path of this machine, and the tasks are elsewhere."""
    for name, source in sources.items():
        if executor == "jobs" and source is not None and Path(source).exists():
            raise UsageError(
                f"{name} {source} is a path of this machine, which Jobs do not see: put it on the Hub and give its id."
            )


def as_task(work: ExecutorArguments, task: int) -> ExecutorArguments:
    """The arguments of one of the tasks."""
    here = work.workers if work.executor == "local" else None  # they share this machine's devices out
    return replace(work, executor=None, executor_args=[], dry_run=False, task=task, workers=here)
