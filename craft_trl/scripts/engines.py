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

"""The engines of datatrove that do a stage's tasks. Imported where datatrove is installed."""

import contextlib
import inspect
import io
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from datatrove.executor import JobsPipelineExecutor, LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor

from ..candidates.executors import ExecutorArguments
from ..errors import UsageError
from ..parser import suggest
from ..sources import first_line
from .launch import describe_end, run_in_processes, say
from .tasks import TAKEN, Worker


if TYPE_CHECKING:
    from ..candidates.shared import SharedFolder

# By engine what has no default that could be right.
ASKED = {
    "slurm": {"partition": "gpu", "time": "12:00:00"},
    "jobs": {"flavor": "a100-large", "dependencies": '["craft_trl[executors] @ git+https://..."]'},
}
# A worker draws on a GPU. The other defaults are datatrove's.
DEFAULTS = {"local": {}, "slurm": {"gpus_per_task": 1}, "ray": {"gpus_per_task": 1}, "jobs": {}}
# What is decided here, and tokens, which come from the environment.
RESERVED = {"pipeline", "tasks", "workers", "logging_dir", "skip_completed", "token", "job_id_retriever"}
RESERVED |= {"depends", "depends_job_id", "start_method", "local_tasks", "local_rank_offset", "tasks_per_job"}


class Here(LocalPipelineExecutor):
    """
    Workers on this machine, each in a process of its own; a single one in this process. Not in the `multiprocess.Pool` of the
    parent (datatrove 0.10.1), which waits for ever for the task of a process that was killed, and ends all when one fails.
    """

    def run(self):
        self.save_executor_as_json()
        if self.world_size == 1:
            self.work(0)
            return
        failed = run_in_processes(self.work, [(worker,) for worker in range(self.world_size)])
        for worker, code in failed.items():
            say(f"[{self.pipeline[0].script}] worker {worker} ended {describe_end(code)}")
        if 2 in failed.values():
            raise SystemExit(2)

    def work(self, worker: int) -> None:
        """Be a worker."""
        # Of an error there is a line. Datatrove's traceback of it is in the worker's log.
        with contextlib.redirect_stderr(io.StringIO()):
            self._run_for_rank(worker, local_rank=1)


class Dry(JobsPipelineExecutor):
    """Prints what each Job would be submitted with. The pickle and the ranks are written, as they are for real."""

    def _launch_and_wait(self, nb_jobs: int, pik_path: str, max_concurrent: int, token: str) -> list[int]:
        said = {
            "jobs": nb_jobs, "at once": max_concurrent, "command": ["launch_pickled_pipeline.py", pik_path],
            "dependencies": self.dependencies, "python": self.python, "image": self.image, "flavor": self.flavor,
            "timeout": self.timeout, "env": self.env, "secrets": ["HF_TOKEN", *(self.secrets or {})],
            "namespace": self.namespace, "labels": {"datatrove_job_name": self.job_name, **(self.labels or {})},
        }  # fmt: skip
        print(json.dumps(said, indent=1))
        return list(range(nb_jobs))


EXECUTORS: dict[str, type[PipelineExecutor]] = {
    "local": Here,
    "slurm": SlurmPipelineExecutor,
    "ray": RayPipelineExecutor,
    "jobs": JobsPipelineExecutor,
}


def make_options(work: ExecutorArguments) -> dict[str, Any]:
    """`executor_args` as datatrove takes them; a [`UsageError`] for one that it does not."""
    known = {
        name: str(getattr(parameter.annotation, "__name__", parameter.annotation))
        for name, parameter in inspect.signature(EXECUTORS[work.executor]).parameters.items()
        if name not in RESERVED
    }
    if work.executor == "local":
        known = {}
    if work.executor == "ray":
        known["address"] = "str"
    options = dict(DEFAULTS[work.executor])
    for text in work.executor_args:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"executor_args: {text!r} is not NAME=VALUE.")
        if name not in known:
            remedy = suggest(name, known) if known else "It takes none."
            raise UsageError(f"executor_args: the executor {work.executor} of datatrove has no {name!r}. {remedy}")
        options[name] = _convert(name, value, known[name])
    for name, example in ASKED.get(work.executor, {}).items():
        if name not in options:
            raise UsageError(
                f"executor {work.executor} needs {name}: give --executor_args {name}={example}, or whatever yours is."
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


def make(work: ExecutorArguments, options: dict[str, Any], step: Worker) -> PipelineExecutor:
    """The executor of datatrove, whose tasks are our workers."""
    arguments = {name: value for name, value in options.items() if name != "address"}
    if work.executor in ("slurm", "jobs"):
        arguments.setdefault("job_name", f"craft-{step.script}-{Path(step.notes).name}")
    if work.executor == "slurm" and not {"env_command", "condaenv", "venv_path"} & set(options):
        arguments["env_command"] = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    cls = Dry if work.executor == "jobs" and work.dry_run else EXECUTORS[work.executor]
    workers = min(work.workers or len(step.todo), len(step.todo))
    try:
        # What is done is known from the images.
        return cls([step], tasks=workers, workers=workers, logging_dir=step.notes, skip_completed=False, **arguments)
    except ValueError as error:
        raise UsageError(f"executor {work.executor}: {first_line(error)}") from error


def run(work: ExecutorArguments, executor: PipelineExecutor, options: dict[str, Any]) -> None:
    """Run it: until all workers have ended, but with Slurm until they are submitted."""
    if work.executor == "slurm" and work.dry_run:
        command = f"launch_pickled_pipeline {executor.logging_dir.resolve_paths('executor.pik')}"
        print(executor.get_launch_file_contents(executor.get_sbatch_args(executor.world_size), command))
    elif work.executor == "ray":
        with ray_cluster(options):
            executor.run()
    else:
        executor.run()
        if work.executor == "slurm":
            with executor.logging_dir.open("job_id", "w", encoding="utf-8") as file:
                file.write(str(executor.job_id))


def at_work(work: ExecutorArguments, executor: PipelineExecutor) -> str | None:
    """The job of Slurm that was submitted before, if it is not at its end."""
    if work.executor != "slurm" or not executor.logging_dir.isfile("job_id"):
        return None
    with executor.logging_dir.open("job_id", "r", encoding="utf-8") as file:
        job = file.read()
    found = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
    return job if found.stdout else None  # of one that is long gone it says so on the other stream


@contextlib.contextmanager
def ray_cluster(options: dict[str, Any]):
    """The cluster at the `address`, that of this machine, or a new one on it."""
    import ray

    address = options.get("address") or os.environ.get("RAY_ADDRESS")
    if address not in (None, "auto", "local"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise UsageError(f"There is no Ray cluster at {address}: {first_line(error)}. Nothing is lost.") from error
    try:
        ray.init(
            address, log_to_driver=False, logging_level="ERROR", include_dashboard=False if address is None else None
        )
    except Exception as error:  # Ray has errors of its own
        raise UsageError(f"There is no Ray cluster at {address}: {first_line(error)}. Nothing is lost.") from error
    try:
        has, wanted = (
            ray.cluster_resources(),
            {"CPU": options.get("cpus_per_task", 1), "GPU": options["gpus_per_task"]},
        )
        for kind, number in wanted.items():
            if has.get(kind, 0) < number:
                raise UsageError(
                    f"A worker wants {number} {kind} and the Ray cluster has {has.get(kind, 0):g}: give --executor_args "
                    f"{kind.lower()}s_per_task=N."
                )
        yield
    finally:
        ray.shutdown()


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
            Name of the script, whose `main` does those `tasks` when the [`ExecutorArguments`] among its arguments name one.
        parsed (`Sequence`):
            Its arguments.
        folder ([`SharedFolder`]):
            Where the tasks write. What the workers and datatrove note, its logs among it, lies in `tasks/` there.
        identity (`str`):
            A hash of what the tasks make, so that other ones have notes of their own.
        unfinished (`Callable[[], set[int]]`):
            The tasks that lack an image, by the images themselves.

    Returns:
        `bool`: whether all is done.
    """
    options = make_options(work)
    notes = f"tasks/{work.tasks}-{identity[:8]}"
    logs = folder / notes if folder.path is None else str(folder.path / notes)
    left = unfinished()
    if left:
        executor = make(work, options, Worker.of(script, parsed, work, sorted(left), logs))
        say(
            f"[{script}] {len(left)} of {work.tasks} tasks are to be done by the executor {work.executor}; logs in {logs}"
        )
        try:
            if not work.dry_run and (job := at_work(work, executor)):
                say(
                    f"[{script}] job {job} is at work. To submit what it leaves, run the same command when it has ended."
                )
                return False
            if not work.dry_run:
                folder.remove(f"{notes}/{TAKEN}")  # by workers that have ended
            run(work, executor, options)
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
        raise SystemExit(1)
    return not left
