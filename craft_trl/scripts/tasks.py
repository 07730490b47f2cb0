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

"""The engines of datatrove, and the step that they run: one task of a stage. Imported where datatrove is installed."""

import contextlib
import importlib
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.executor import (
    JobsPipelineExecutor,
    LocalPipelineExecutor,
    RayPipelineExecutor,
    SlurmPipelineExecutor,
)
from datatrove.executor.base import PipelineExecutor

from ..errors import UsageError, exit_code
from ..parser import ENVIRONMENT
from ..sources import first_line
from .executors import ExecutorArguments, as_task
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

    def in_child(self, rank: int) -> None:
        """
        Do a task in a process of its own. Datatrove's actor (0.10.1) waits for ever for its process when that is killed, as the
        largest is when memory runs out; that of the actor itself, which Ray starts again, leaves it behind. To go when
        `RayPipelineExecutor` notices both.
        """
        parent = os.getppid()
        child = subprocess.Popen([sys.executable, "-m", __spec__.name], stdin=subprocess.PIPE)
        with contextlib.suppress(BrokenPipeError), child.stdin:
            pickle.dump((self, rank), child.stdin)
        while child.poll() is None:
            if os.getppid() != parent:
                child.terminate()
            time.sleep(0.2)
        if child.returncode:
            raise RuntimeError(f"Task {rank} ended with exit code {child.returncode}.")


class Here(LocalPipelineExecutor):
    """
    Tasks in processes of this machine. Not in the `multiprocess.Pool` of the parent (datatrove 0.10.1), which waits for ever
    for the task of a process that was killed, and ends all when one fails.
    """

    failed: dict[int, int]

    def run(self):
        self.failed = {}
        self.save_executor_as_json()
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            self.work(ranks)
        else:
            self.failed = run_in_processes(self.work, [(ranks[n :: self.workers],) for n in range(self.workers)])

    def work(self, ranks: Sequence[int]) -> None:
        """Do tasks one after the other."""
        for rank in ranks:
            # Of an error there is a line. Datatrove's traceback of it is in the task's log.
            with contextlib.redirect_stderr(io.StringIO()):
                self._run_for_rank(rank, local_rank=1)


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


def make(work: ExecutorArguments, options: dict[str, Any], step: Task, logs: str) -> PipelineExecutor:
    """The executor of datatrove."""
    arguments = {name: value for name, value in options.items() if name != "address"}
    if work.executor in ("slurm", "jobs"):
        arguments.setdefault("job_name", f"craft-{step.script}-{Path(logs).name}")
    if work.executor == "slurm" and not {"env_command", "condaenv", "venv_path"} & set(options):
        arguments["env_command"] = f"export PATH={Path(sys.executable).parent}:$PATH"
    cls = Dry if work.executor == "jobs" and work.dry_run else EXECUTORS[work.executor]
    try:
        return cls([step], tasks=work.tasks, workers=work.workers or -1, logging_dir=logs, **arguments)
    except ValueError as error:
        raise UsageError(f"executor {work.executor}: {first_line(error)}") from error


def run(work: ExecutorArguments, executor: PipelineExecutor, options: dict[str, Any]) -> None:
    """Run it: until all tasks have ended, but with Slurm until they are submitted."""
    if work.executor == "slurm" and work.dry_run:
        ranks = executor.get_incomplete_ranks()
        command = f"launch_pickled_pipeline {executor.logging_dir.resolve_paths('executor.pik')}"
        print(executor.get_launch_file_contents(executor.get_sbatch_args(len(ranks)), command))
    elif work.executor == "ray":
        with ray_cluster(options):
            executor.run()
    else:
        executor.run()
        if work.executor == "slurm":
            with executor.logging_dir.open("job_id", "w") as file:
                file.write(str(executor.job_id))


def at_work(work: ExecutorArguments, executor: PipelineExecutor) -> str | None:
    """What is to be said if tasks that were submitted before are not at their end; else `None`."""
    if work.executor != "slurm" or not executor.logging_dir.isfile("job_id"):
        return None
    job = executor.logging_dir.read_text("job_id")
    found = subprocess.run(
        ["squeue", "-h", "-j", job], capture_output=True, text=True, check=False
    )  # an error: unknown
    return (
        f"job {job} is at work. To submit what it leaves, run the same command when it has ended."
        if found.stdout
        else None
    )


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
                    f"A task wants {number} {kind} and the Ray cluster has {has.get(kind, 0):g}: give --executor_args "
                    f"{kind.lower()}s_per_task=N."
                )
        yield
    finally:
        ray.shutdown()


def main() -> None:
    """The child of a task, which is on its standard input."""
    task, rank = pickle.load(sys.stdin.buffer)
    raise SystemExit(exit_code(lambda: task.work(rank)))


if __name__ == "__main__":
    main()
