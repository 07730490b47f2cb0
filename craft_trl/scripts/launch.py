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


"""What the scripts share: how they start, and what they say."""

import argparse
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import UsageError, exit_code
from ..parser import CraftParser, check_recipe, describe_unexpected, without
from ..quiet import quiet_logs, quiet_offline
from ..stages import Stage, stopwatch


if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from ..trainer.arguments import LaunchArguments


ALIASES = {"ddp": "multi_gpu"}
SCRIPT = "the script"  # stands for it where options are checked


def start(script: ModuleType, argv: Sequence[str], parsed: Sequence[Any]) -> None:
    """
    Run a script's `main` here, or in processes of their own if its last arguments ask for that.

    Args:
        script (`ModuleType`):
            The script.
        argv (`Sequence[str]`):
            Its command line.
        parsed (`Sequence`):
            What its parser makes of that. The last one, [`LaunchArguments`] or [`EvaluateArguments`], says how to start it.
    """
    *configs, how = parsed
    if not how.given:
        # What is said of tasks is not for `accelerate launch`.
        script.main(*(configs if hasattr(how, "accelerate_config") else parsed))
    elif hasattr(how, "accelerate_config"):
        launch(script.__name__, list(argv), how)
    else:
        script.check_all(*configs)  # told once, before there are several to tell it
        launch_here(script.__name__, argv, how.num_processes)


def launch_here(module: str, argv: Sequence[str], num_processes: int) -> None:
    """
    Run a script in several processes on this machine, as `torchrun` does, and wait for it. Not by `accelerate launch`, which
    starts a single process on a machine without a GPU (accelerate 1.15).
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from ..devices import check_devices

    check_devices(num_processes)
    # Else it is 1, with a warning.
    os.environ.setdefault("OMP_NUM_THREADS", threads_of(num_processes))
    config = LaunchConfig(
        1, 1, num_processes, run_id=f"craft_trl-{os.getpid()}", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, local_addr="127.0.0.1",
    )  # fmt: skip
    try:
        with quiet_logs(logging.ERROR):
            elastic_launch(config, sys.executable)("-m", module, *argv)
    except ChildFailedError as error:  # the script has said why
        raise SystemExit(error.get_first_failure()[1].exitcode) from None
    except SignalException as error:
        if error.sigval is signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None


def launch(module: str, argv: list[str], launch_args: "LaunchArguments") -> None:
    """
    Run a script through `accelerate launch` and wait for it.

    Args:
        module (`str`):
            Import path of the script.
        argv (`list[str]`):
            Its arguments, among which those of `accelerate launch` may stand.
        launch_args ([`LaunchArguments`]):
            How to start it.
    """
    options = check_launch(launch_args)
    names = {option[2:].partition("=")[0].replace("-", "_") for option in launch_args.launch_options}
    argv = without({*names, "accelerate_config", "num_processes"}, argv)
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", module, *argv]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)  # the script has said why


def check_launch(launch_args: "LaunchArguments", on_one_machine: str | None = None) -> list[str]:
    """
    Options of `accelerate launch` for some arguments, or a [`UsageError`] for what it would misread or pass by.

    Args:
        launch_args ([`LaunchArguments`]):
            How to start a script.
        on_one_machine (`str`, *optional*):
            Name of a command that works on one machine only.
    """
    if not launch_args.given:
        return []
    from accelerate.commands.config.config_args import default_config_file
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    parser.error = _refuse
    config, options = {}, [*launch_args.launch_options]
    if launch_args.num_processes is not None:
        options += ["--num_processes", str(launch_args.num_processes)]
    if launch_args.accelerate_config is not None:
        path = find_accelerate_config(launch_args.accelerate_config)
        config = check_recipe(path)
        options += ["--config_file", str(path)]
    given = parser.parse_args([*options, SCRIPT])
    if given.training_script != SCRIPT or given.training_script_args:
        raise UsageError(describe_unexpected(given.training_script, ()))
    machines = check_machines(given, config)
    if machines > 1 and on_one_machine:
        raise UsageError(
            f"num_machines is {machines}, and `{on_one_machine}` works on one machine: run `craft train` on each of them, see "
            "docs/source/training.md."
        )
    kinds = (given.multi_gpu, given.cpu, given.tpu, given.use_deepspeed, given.use_fsdp, given.use_megatron_lm)
    if not config and not any(kinds) and (given.num_processes or 1) > 1 and not Path(default_config_file).is_file():
        options.append("--multi_gpu")  # without a GPU, or with one per machine, it would start one process of them
    return options


def check_machines(given: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Number of machines that `accelerate launch` is told of, or a [`UsageError`] for what it would hang at."""
    for name in ("num_machines", "num_processes", "machine_rank"):
        if type(value := config.get(name, 1)) is not int:
            raise UsageError(f"accelerate_config: {name} must be a whole number, got {value!r}.")
    machines = given.num_machines or config.get("num_machines") or 1
    if machines == 1:
        for name in ("machine_rank", "main_process_ip"):
            if getattr(given, name) is not None:
                raise UsageError(f"{name} has no effect on one machine: leave it out, or set num_machines.")
        return 1
    # A configuration for one machine, as the packaged ones are, says nothing of several.
    known = {name: value for name, value in config.items() if config.get("num_machines", 1) > 1}

    def needed(name: str, what: str) -> Any:
        value = getattr(given, name)
        value = known.get(name) if value is None else value
        if value in (None, -1):
            raise UsageError(f"{name} is missing: with num_machines {machines}, give {what}.")
        return value

    processes = needed("num_processes", f"the processes of all machines together, such as {8 * machines}")
    if processes < machines or processes % machines:
        raise UsageError(f"num_processes must be a multiple of the {machines} machines, got {processes}.")
    rank = needed("machine_rank", f"this machine's number, from 0 to {machines - 1}")
    if not 0 <= rank < machines:
        raise UsageError(f"machine_rank must be from 0 to {machines - 1}, got {rank}.")
    needed("main_process_ip", "the address of machine 0, which all of them reach")
    return machines


def _refuse(message: str) -> NoReturn:
    raise UsageError(message[0].upper() + message[1:].rstrip(".") + ".")


def threads_of(num_processes: int) -> str:
    """How many threads each of so many processes has on this machine, as `OMP_NUM_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return str(max(1, (cores or 1) // num_processes))


def run_in_processes(
    work: Callable,
    arguments: Sequence[tuple],
    at_once: int | None = None,
    tell: Callable[[int, int | None], None] = lambda number, code: None,
) -> dict[int, int]:
    """
    Call `work` with each of these arguments, each in a process of its own, and return the exit codes of those that failed.

    Not through `accelerate launch`: when one process is killed, say for its memory, it ends all others. Here they go on.

    Args:
        work (`Callable`):
            A function that pickle finds by its name.
        arguments (`Sequence[tuple]`):
            What it is called with.
        at_once (`int`, *optional*):
            Processes at a time, which share out the devices: the next one begins when one has ended. Defaults to all.
        tell (`Callable[[int, int | None], None]`, *optional*):
            Called with a number among `arguments` and `None` when its process begins, and with its exit code when it has ended.
    """
    context = multiprocessing.get_context("spawn")
    waiting, places = deque(enumerate(arguments)), deque(range(at_once or len(arguments)))
    # With more threads than cores they get into each other's way.
    threads = {"OMP_NUM_THREADS": threads_of(len(places))} if len(places) > 1 else {}
    running: dict[BaseProcess, tuple[int, int]] = {}
    failed: dict[int, int] = {}
    # Ctrl-C reaches every process of a terminal. The others are started with it blocked, and this one ends them.
    try:
        while waiting or running:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            while waiting and places:
                (number, given), place = waiting.popleft(), places.popleft()
                # No daemon, which might not start what makes samples for a training.
                process = context.Process(target=_in_process, args=(place, threads, work, given), daemon=False)
                process.start()
                running[process] = number, place
                tell(number, None)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            ended = wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                number, place = running.pop(process)
                places.append(place)
                if process.exitcode:
                    failed[number] = process.exitcode
                tell(number, process.exitcode)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return failed


def describe_end(code: int) -> str:
    """How a process ended."""
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"


def _in_process(place: int, threads: Mapping[str, str], work: Callable, arguments: tuple) -> None:
    # Not LOCAL_RANK, by which accelerate would take it for one of several that are launched together, and look for the others.
    os.environ["CRAFT_TRL_PLACE"] = str(place)
    os.environ.update({**threads, **os.environ})
    # Ends in order: what has been drawn is still written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(exit_code(lambda: work(*arguments)))


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def find_accelerate_config(name: str) -> Path:
    """A path, or the name of one of the packaged configurations."""
    package = Path(__file__).parents[1]
    folders = (package.parent / "accelerate_configs", package / "accelerate_configs")
    known = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    name = ALIASES.get(name, name)
    if Path(name).is_file():
        return Path(name)
    if name not in known:
        raise UsageError(f"accelerate_config {name!r} is neither a file nor one of {', '.join(known)}.")
    return known[name]


def is_main_process() -> bool:
    """Whether this is the first of the processes that `accelerate launch` has started, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def say(message: str) -> None:
    """Print a line, once however many processes there are."""
    if is_main_process():
        print(message, flush=True)


def run_stage(stage: Stage, work: Callable[[], dict], report: Callable[[dict], str]) -> bool:
    """
    Do a stage's work unless it is done, and say so in one line.

    Args:
        stage ([`Stage`]):
            The stage.
        work (`Callable[[], dict]`):
            Does the work and returns its summary.
        report (`Callable[[dict], str]`):
            Says in a line what a summary says.

    Returns:
        `bool`: whether there was anything to do.
    """
    if stage.finished:
        say(f"[{stage.name}] done before: {report(stage.record['summary'])}")
        return False
    message = stage.begin()
    if message:
        say(f"[{stage.name}] {message}")
    with stopwatch(stage) as watch:
        summary = work()
    stage.finish(**summary)
    say(f"[{stage.name}] {report(summary)} ({watch.seconds:.0f} s)")
    return True


def run_script(main: Callable, make_parser: Callable[[], CraftParser], argv: list[str] | None = None) -> int:
    """
    Parse the command line, run, and turn errors that the user can mend into one line.

    Returns:
        `int`: exit code, see [`exit_code`].
    """
    argv = sys.argv[1:] if argv is None else argv
    quiet_offline()

    def work() -> None:
        parser = make_parser()
        for word in argv if parser.launches else ():
            key = word[2:].partition("=")[0].replace("-", "_")
            if word.startswith("--") and (key in ("accelerate_config", "num_processes") or parser.passes_on(key)):
                raise UsageError(
                    f"{word.partition('=')[0]} says how processes are started, and these have been: `craft` takes it, or accelerate "
                    f"before the script, accelerate launch ... -m {parser.launched} --config RECIPE."
                )
        main(*parser.parse_args_and_config(args=argv))

    return exit_code(work)
