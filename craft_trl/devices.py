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


"""Where the work is done."""

import gc
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from .errors import UsageError


if TYPE_CHECKING:
    from accelerate import PartialState

DEVICE = "CRAFT_TRL_DEVICE"
PLACE = "CRAFT_TRL_PLACE"  # set by `run_in_processes`
# Which devices there are for a process, if it is set before it uses the first one.
VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
T = TypeVar("T")


def accelerator() -> str | None:
    """
    Kind of device that the work is done on, such as `"cuda"` or `"xpu"`, or `None` for the CPU.

    Apple's MPS, on which nothing here was tested, is taken only where the environment variable `CRAFT_TRL_DEVICE` says
    `mps`; with `cpu` no accelerator is.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = device.type if device is not None else None
    asked = os.environ.get(DEVICE) or "auto"
    if asked == "auto":
        return None if here == "mps" else here
    if asked not in ("cpu", here):
        known = ", ".join(["auto", "cpu", *([here] if here else [])])
        raise UsageError(f"{DEVICE} is {asked!r}; on this machine it may be {known}.")
    return None if asked == "cpu" else here


def default_device() -> torch.device:
    """
    The GPU if there is one, else the CPU. Processes of one machine, told apart by `LOCAL_RANK`, or by `CRAFT_TRL_PLACE` if they work
    apart, share the GPUs out.
    """
    kind = accelerator()
    if kind is None:
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK") or os.environ.get(PLACE) or 0)
    return torch.device(kind, number % torch.accelerator.device_count())


def check_devices(num_processes: int) -> None:
    """Raise a [`UsageError`] unless each of so many processes can have a GPU of its own, if there are any."""
    kind = accelerator()
    if kind is not None and num_processes > (count := torch.accelerator.device_count()):
        raise UsageError(f"num_processes is {num_processes}, but this machine has {count} {kind} devices.")


def single_devices() -> list[dict[str, str]]:
    """
    For each GPU of this machine the variables that show a process this one alone, for libraries that take the first they see; nothing
    where there is none.
    """
    kind = accelerator()
    if kind is None:
        return []
    if kind not in VISIBLE:
        raise UsageError(f"num_processes must be 1 on {kind} devices: trainings are not spread over them.")
    seen = os.environ.get(VISIBLE[kind])
    count = torch.accelerator.device_count()
    names = seen.split(",") if seen else map(str, range(count))
    return [{VISIBLE[kind]: name.strip()} for name in names][:count]


def process_state() -> "PartialState":
    """What accelerate knows of the processes that work together, with [`default_device`] as the device of this one."""
    from accelerate import PartialState  # here: only the stages that several processes share pay for it

    # Without `cpu`, accelerate (1.15) takes each of several processes on a machine without a GPU for the only one, and
    # chooses MPS by itself. Processes wait for the slowest one, and for the first one to download models: longer than the
    # default of minutes.
    return PartialState(cpu=accelerator() is None, timeout=timedelta(days=7))


def release_memory() -> None:
    """
    Give back the device memory of what is no longer used: at the end of a stage, whose networks a cycle may keep alive,
    and before a process begins that needs the device for itself.
    """
    gc.collect()
    torch.accelerator.empty_cache()


def on_all_processes(work: Callable[[], T]) -> list[T]:
    """
    What `work` returns on each of the processes that were launched, for all of them. All must call this.

    An error on one of them ends all: it is raised there, and the others, which would wait for that process until a time limit,
    exit without a word of their own.
    """
    from accelerate.utils import gather_object

    if process_state().num_processes == 1:
        return [work()]
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    code = 0 if error is None else 2 if isinstance(error, UsageError) else 1
    outcomes = gather_object([(result, code)])
    if error is not None:
        raise error
    if failed := max(code for _, code in outcomes):
        raise SystemExit(failed)
    return [result for result, _ in outcomes]


def main_process_first(work: Callable[[], T]) -> T:
    """
    What `work` returns on this process, done by the main one before the others begin: it downloads, or mends, what the others then
    find. All must call this; an error ends all, see [`on_all_processes`].
    """
    done: list[T] = []
    is_main = process_state().is_main_process
    for turn in (is_main, not is_main):
        on_all_processes(lambda turn=turn: done.append(work()) if turn else None)
    return done[0]


def on_main_process(work: Callable[[], T]) -> T:
    """What `work` returns on the main process, for all: see [`on_all_processes`]."""
    is_main = process_state().is_main_process
    return on_all_processes(lambda: work() if is_main else None)[0]


def check_shared(folder: Path, patience: float = 5) -> None:
    """
    Raise a [`UsageError`], on each machine, unless all processes that were launched see the same folder, which the main one has
    made. All must call this.

    Args:
        folder (`Path`):
            The folder.
        patience (`float`, *optional*, defaults to `5`):
            Seconds that a network drive may take to show a new file.
    """
    if process_state().num_processes == 1:
        return

    def seen() -> bool:
        end = time.monotonic() + patience
        while not mark.exists() and time.monotonic() < end:
            time.sleep(0.1)
        return mark.exists()

    mark = folder / on_main_process(lambda: Path(tempfile.mkstemp(prefix=".shared-", dir=folder)[1]).name)
    all_see = all(on_all_processes(seen))
    on_main_process(mark.unlink)
    if not all_see and process_state().is_local_main_process:
        raise UsageError(
            f"The machines do not share {folder}: each sees another folder of that name. Name an output_dir on a disk that all of them "
            "have."
        )
    if not all_see:
        raise SystemExit(2)
