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
Tasks: shares of a stage's drawing and judging, done one by one on machines that exchange nothing but files, and the
engines that start them.
"""

import importlib.util
import inspect
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ..errors import UsageError
from ..parser import suggest
from ..ranges import Count, CountFromZero, check_ranges
from ..sources import first_line
from .launch import say


if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor

    from ..candidates.shared import SharedFolder

EXTRAS = {"local": "executors", "slurm": "executors", "ray": "ray", "jobs": "executors"}
# By engine what has no default that could be right.
ASKED = {
    "slurm": {"partition": "gpu", "time": "12:00:00"},
    "jobs": {"flavor": "a100-large", "dependencies": '["craft_trl[executors] @ git+https://..."]'},
}
# A task draws on a GPU. The other defaults are datatrove's.
DEFAULTS = {"local": {}, "slurm": {"gpus_per_task": 1}, "ray": {"gpus_per_task": 1}, "jobs": {}}
# What is decided here, and tokens, which come from the environment.
RESERVED = {"pipeline", "tasks", "workers", "logging_dir", "skip_completed", "token", "job_id_retriever"}
RESERVED |= {"depends", "depends_job_id", "start_method", "local_tasks", "local_rank_offset"}


@dataclass
class ExecutorArguments:
    """
    Where a stage draws and judges, if not in this process.

    Args:
        executor (`"local"`, `"slurm"`, `"ray"` or `"jobs"`, *optional*):
            The engine of datatrove that does the work in tasks: processes of this machine, an array of Slurm, a Ray cluster, or
            Hugging Face Jobs.
        tasks (`int`, *optional*):
            Tasks that the work is divided into. Each loads the model once. Defaults to `workers`, or 1.
        workers (`int`, *optional*):
            Tasks at work at the same time. Defaults to all of them, with `local` to 1.
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
    workers: Count | None = field(default=None, metadata={"help": "Tasks at work at the same time."})
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
    def given(self) -> bool:
        """Whether the work is done in tasks."""
        return self.executor is not None or self.task is not None

    def options(self) -> dict[str, Any]:
        """`executor_args` as datatrove takes them; a [`UsageError`] for one that it does not."""
        extra = EXTRAS[self.executor]
        packages = ["datatrove", *(["ray"] if self.executor == "ray" else [])]
        if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
            raise UsageError(
                f"executor {self.executor} needs {' and '.join(missing)}, which is not installed: pip install "
                f'"craft_trl[{extra}]".'
            )
        from . import tasks

        known = {
            name: str(getattr(parameter.annotation, "__name__", parameter.annotation))
            for name, parameter in inspect.signature(tasks.EXECUTORS[self.executor]).parameters.items()
            if name not in RESERVED
        }
        if self.executor == "local":
            known = {}
        if self.executor == "ray":
            known["address"] = "str"
        options = dict(DEFAULTS[self.executor])
        for text in self.executor_args:
            name, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"executor_args: {text!r} is not NAME=VALUE.")
            if name not in known:
                remedy = suggest(name, known) if known else "It takes none."
                raise UsageError(f"executor_args: the executor {self.executor} of datatrove has no {name!r}. {remedy}")
            options[name] = _convert(name, value, known[name])
        for name, example in ASKED.get(self.executor, {}).items():
            if name not in options:
                raise UsageError(
                    f"executor {self.executor} needs {name}: give --executor_args {name}={example}, or whatever yours is."
                )
        return options


def _convert(name: str, text: str, annotation: str) -> Any:
    if name == "secrets":  # their names: the values are in the environment, as all secrets
        if missing := [key for key in text.split(",") if key not in os.environ]:
            raise UsageError(f"executor_args: secrets names {missing[0]}, and there is no such environment variable.")
        return {key: os.environ[key] for key in text.split(",")}
    words = {"dict": dict, "list": list, "tuple": list, "bool": bool, "int": int, "float": float}
    kinds = {kind for word, kind in words.items() if word in annotation} | ({int} if "float" in annotation else set())
    if "str" in annotation and not kinds & {dict, list}:
        return int(text) if int in kinds and text.isdecimal() else text  # not YAML's: 12:00:00 is a number there
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if kinds and value is not None and not isinstance(value, tuple(kinds)):
        raise UsageError(f"executor_args: {name} must be {annotation}, got {text!r}.")
    return value


def check_reached(executor: str | None, **sources: str | None) -> None:
    """Raise a [`UsageError`] if a source is a path of this machine, and the tasks are elsewhere."""
    for name, source in sources.items():
        if executor == "jobs" and source is not None and Path(source).exists():
            raise UsageError(
                f"{name} {source} is a path of this machine, which Jobs do not see: put it on the Hub and give its id."
            )


def launch_tasks(
    work: ExecutorArguments,
    script: str,
    parsed: Sequence[Any],
    folder: "SharedFolder",
    identity: str,
    unfinished: Callable[[], set[int]],
) -> bool:
    """
    Do a stage's tasks that are not done, and say what is left.

    Args:
        work ([`ExecutorArguments`]):
            How.
        script (`str`):
            Name of the script, whose `main` does a task when the [`ExecutorArguments`] among its arguments name one.
        parsed (`Sequence`):
            Its arguments.
        folder ([`SharedFolder`]):
            Where the tasks write. What datatrove notes, its logs among it, lies in `tasks/` there.
        identity (`str`):
            A hash of what the tasks make, so that other ones have notes of their own.
        unfinished (`Callable[[], set[int]]`):
            The tasks that lack an image, by the images themselves.

    Returns:
        `bool`: whether all is done.
    """
    from . import tasks

    options = work.options()
    logs = folder / f"tasks/{work.tasks}-{identity[:8]}"
    step = tasks.Task.of(script, parsed, work)
    executor = tasks.make(work, options, step, logs if folder.path is None else str(Path(logs).absolute()))
    left = unfinished()
    mark(executor, left)
    if left and not work.dry_run and (job := tasks.at_work(work, executor)):
        say(f"[{script}] {work.tasks - len(left)} of {work.tasks} tasks are done; {job}")
        return False
    if left:
        say(f"[{script}] {len(left)} of {work.tasks} tasks by the executor {work.executor}; logs in {logs}")
        try:
            tasks.run(work, executor, options)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            if work.executor != "slurm":
                raise
            raise UsageError(f"Slurm did not take the job: {first_line(error)}. Nothing is lost.") from error
        if work.dry_run:
            return False
        left = unfinished()
    if left and work.executor == "slurm":
        say(
            f"[{script}] submitted. Run the same command again to see how far it is, and at the end to go on from here."
        )
    elif left:
        which = ", ".join(map(str, sorted(left)[:8])) + (", ..." if len(left) > 8 else "")
        say(
            f"[{script}] {len(left)} of {work.tasks} tasks are left ({which}): run the same command again to do these."
        )
        raise SystemExit(max(getattr(executor, "failed", {}).values(), default=1) if work.executor == "local" else 1)
    return not left


def mark(executor: "PipelineExecutor", left: set[int]) -> None:
    """Let datatrove's marks of completion say what the images say: a task with a mark is not started."""
    for rank in range(executor.world_size):
        if executor.is_rank_completed(rank) and rank in left:
            executor.logging_dir.rm_file(f"completions/{rank:05d}")
        elif rank not in left and not executor.is_rank_completed(rank):
            executor.mark_rank_as_completed(rank)


def as_task(work: ExecutorArguments, task: int) -> ExecutorArguments:
    """The arguments of one of the tasks."""
    here = work.workers if work.executor == "local" else None  # they share this machine's devices out
    return replace(work, executor=None, executor_args=[], dry_run=False, task=task, workers=here)
