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

"""The errors a person at the terminal can mend, and how a command ends. Anything else is a bug and keeps its traceback."""

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable


class UsageError(ValueError):
    """A setting, file or argument is wrong. The command line prints it in one line and exits with code 2."""


class NothingToDoError(RuntimeError):
    """The work was done and came out empty, such as a filter that no group passes. Exit code 1, nothing is lost."""


class TrainingDivergedError(RuntimeError):
    """The loss is no number any more, or worse than that of predicting nothing. Exit code 1, checkpoints are kept."""


class ServerError(RuntimeError):
    """A server that scores failed, or answered what is no answer. Exit code 1; what was scored before is kept."""


class PushError(RuntimeError):
    """The Hub did not take an upload, after retries. Exit code 1; what it has already is not sent again."""


def check_platform() -> None:
    """Raise a [`UsageError`] where there are no locks of parts of a file, which processes that share a pool rely on."""
    if importlib.util.find_spec("fcntl") is None:
        raise UsageError(
            "craft_trl runs on Linux and macOS. On Windows, run it in WSL (the Windows Subsystem for Linux)."
        )


# What takes the memory, by the module in which it ran out; the first that is under way.
MEMORY_REMEDIES = {
    "expansion.local": "Lower expander_batch_size, or name a smaller expander_model.",
    "trainer.guard": "Name fewer or smaller guard_rewards and held_out_rewards, lower per_device_train_batch_size, or train "
    "without the guard.",
    "trainer": "Lower per_device_train_batch_size, which changes no result; set activation_checkpointing: true; shard or "
    "offload the optimizer, accelerate_config: zero2 on several GPUs and zero2_offload on one; or train an adapter, "
    "use_peft: true.",
    "evaluation": "Lower batch_size, set reward_device: offload, or halve the judges with reward_dtype: bfloat16.",
    "candidates": "Lower batch_size, set reward_device: offload, or halve the rewards with reward_dtype: bfloat16.",
    "rewards": "Score fewer images at a time, or in 16 bits.",
}


def out_of_memory(error: BaseException) -> str | None:
    """
    What to say in a line where the memory of a GPU or of this machine has run out, `None` of any other error.

    PyTorch is not imported for it: of the GPU's it raises an `OutOfMemoryError`, of the CPU's and of MPS's a `RuntimeError`.
    """
    said = " ".join(str(error).split())
    known = r"out of memory|can't allocate memory|_STATUS_ALLOC_FAILED"
    names = {cls.__name__ for cls in type(error).__mro__}
    if not names & {"OutOfMemoryError", "MemoryError"} and not (
        isinstance(error, RuntimeError) and re.search(known, said)
    ):
        return None
    modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)}
    under_way = (
        remedy
        for name, remedy in MEMORY_REMEDIES.items()
        if any(f"{module}.".startswith(f"{__package__}.{name}.") for module in modules)
    )
    remedy = next(under_way, "`craft plan` computes what each stage takes.")
    # Of the GPU's there are several sentences more, on PyTorch's own settings.
    what = re.match(r".*?ried to allocate [\d.]+ \w+", said)
    what = what.group() if what else said[:160] or type(error).__name__
    return f"The memory ran out ({what}). {remedy}"


def _line(error: Exception) -> str:
    """What an error says, in one line, also where a value in it is of several or is a page long."""
    text = " ".join(str(error).splitlines())
    return text if len(text) <= 800 else f"{text[:500]} ... {text[-250:]}"


def exit_code(work: Callable[[], None]) -> int:
    """
    0, 1 if the work came out empty, training diverged, a push failed or the memory ran out, 2 for a wrong setting, 130 after
    Ctrl-C; each with a line that says what now.
    """
    # Read when datasets is imported. Its bars would drown the lines that a run prints.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():  # the same of huggingface_hub: every state of them would be in the log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        check_platform()
        work()
    except UsageError as error:
        print(f"craft: error: {_line(error)}", file=sys.stderr)
        return 2
    except (NothingToDoError, PushError, ServerError, TrainingDivergedError) as error:
        print(f"craft: {_line(error)}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if (said := out_of_memory(error)) is None:
            raise
        print(f"craft: {said} What is done is kept: the same command goes on from there.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncraft: stopped. Run the same command again to go on from here.", file=sys.stderr)
        return 130
    return 0
