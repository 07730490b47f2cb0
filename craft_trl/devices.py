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
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from .errors import UsageError


if TYPE_CHECKING:
    from accelerate import PartialState

DEVICE = "CRAFT_TRL_DEVICE"


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
    """The GPU if there is one, else the CPU. Processes of one machine, told apart by `LOCAL_RANK`, share the GPUs out."""
    kind = accelerator()
    if kind is None:
        return torch.device("cpu")
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())


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
