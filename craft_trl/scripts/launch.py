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

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, exit_code
from ..parser import CraftParser
from ..quiet import quiet_logs
from ..stages import Stage, stopwatch


if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from ..trainer.arguments import LaunchArguments


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
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from ..devices import accelerator

    if accelerator() is not None and num_processes > (count := torch.accelerator.device_count()):
        raise UsageError(f"num_processes is {num_processes}, but this machine has {count} {accelerator()} devices.")
    # Else it is 1, with a warning.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
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
            Its arguments.
        launch_args ([`LaunchArguments`]):
            How to start it.
    """
    options = []
    if launch_args.accelerate_config is not None:
        options += ["--config_file", str(find_accelerate_config(launch_args.accelerate_config))]
    if launch_args.num_processes is not None:
        options += ["--num_processes", str(launch_args.num_processes)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", module, *argv]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)  # the script has said why


def run_in_processes(work: Callable, arguments: Sequence[tuple], workers: int | None = None) -> dict[int, int]:
    """
    Call `work` with each of these arguments, each in a process of its own, and return the exit codes of those that failed.

    Not through `accelerate launch`: when one process is killed, say for its memory, it ends all others. Here they go on.

    Args:
        work (`Callable`):
            What to call.
        arguments (`Sequence[tuple]`):
            With what.
        workers (`int`, *optional*):
            Processes at the same time. Defaults to all of them.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(enumerate(arguments))
    places = list(range(workers or len(arguments)))  # each with a device
    running: dict[BaseProcess, tuple[int, int]] = {}
    failed: dict[int, int] = {}
    # Ctrl-C reaches every process of a terminal. The others are started with it blocked, and this one ends them.
    try:
        while waiting or running:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            while waiting and places:
                number, given = waiting.popleft()
                place = places.pop(0)
                process = context.Process(target=_in_process, args=(place, work, given), daemon=True)
                process.start()
                running[process] = number, place
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            ended = wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                number, place = running.pop(process)
                places.append(place)
                if process.exitcode:
                    failed[number] = process.exitcode
                if process.exitcode == 2:
                    waiting.clear()  # what is wrong for one is wrong for all
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return failed


def _in_process(place: int, work: Callable, arguments: tuple) -> None:
    os.environ["LOCAL_RANK"] = str(place)
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
    return exit_code(lambda: main(*make_parser().parse_args_and_config(args=argv)))
