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
import sys
from collections.abc import Callable


class UsageError(ValueError):
    """A setting, file or argument is wrong. The command line prints it in one line and exits with code 2."""


class NothingToDoError(RuntimeError):
    """The work was done and came out empty, such as a filter that no group passes. Exit code 1, nothing is lost."""


class TrainingDivergedError(RuntimeError):
    """The loss is no number any more, or worse than that of predicting nothing. Exit code 1, checkpoints are kept."""


class PushError(RuntimeError):
    """The Hub did not take an upload, after retries. Exit code 1; what it has already is not sent again."""


def check_platform() -> None:
    """Raise a [`UsageError`] where there are no locks of parts of a file, which processes that share a pool rely on."""
    if importlib.util.find_spec("fcntl") is None:
        raise UsageError(
            "craft_trl runs on Linux and macOS. On Windows, run it in WSL (the Windows Subsystem for Linux)."
        )


def exit_code(work: Callable[[], None]) -> int:
    """
    0, 1 if the work came out empty, training diverged or a push failed, 2 for a wrong setting, 130 after Ctrl-C; each with a
    line that says what now.
    """
    # Read when datasets is imported. Its bars would drown the lines that a run prints.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():  # the same of huggingface_hub: every state of them would be in the log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        check_platform()
        work()
    except UsageError as error:
        print(f"craft: error: {error}", file=sys.stderr)
        return 2
    except (NothingToDoError, PushError, TrainingDivergedError) as error:
        print(f"craft: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncraft: stopped. Run the same command again to go on from here.", file=sys.stderr)
        return 130
    return 0
