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

import os
from collections.abc import Callable
from typing import TypeVar

import torch

from .errors import UsageError


T = TypeVar("T")


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU. Processes of one machine, told apart by `LOCAL_RANK`, share the GPUs out."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count()
    return torch.device(torch.accelerator.current_accelerator().type, index)


def on_all_processes(work: Callable[[], T]) -> list[T]:
    """
    What `work` returns on each of the processes that were launched, for all of them. All must call this.

    An error on one of them ends all: it is raised there, and the others, which would wait for that process until a time limit,
    exit without a word of their own.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    if PartialState().num_processes == 1:
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


def on_main_process(work: Callable[[], T]) -> T:
    """What `work` returns on the main process, for all: see [`on_all_processes`]."""
    from accelerate import PartialState

    is_main = PartialState().is_main_process
    return on_all_processes(lambda: work() if is_main else None)[0]
