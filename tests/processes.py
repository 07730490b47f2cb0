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
Programs that begin with their libraries imported. PyTorch, diffusers and transformers take a process about eight seconds
to import, more than most programs of the tests take for the rest. So they are imported once, by the server of
`multiprocessing`'s forkserver method, and every program is a fork of it: a process of its own, to be killed at will, with
nothing in it that another one has left. What belongs to the start of a process, such as its command line or variables
that a library reads when it is imported, is tested in processes that are started as users start them.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


ROOT = Path(__file__).parents[1]
RANK = Path(__file__).parent / "distributed" / "rank.py"
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.preload"])


class Program(FORKSERVER.Process):
    """
    A program that has been started.

    Args:
        main (`Callable`):
            Its main function, which reads `sys.argv`.
        *arguments (`str` or `Path`):
            Its arguments.
        **environment (`str`):
            Environment variables that it has beside those of this process.
    """

    def __init__(self, main: Callable[[], int | None], *arguments: str | Path, **environment: str):
        super().__init__()
        self.main, self.arguments = main, [str(argument) for argument in arguments]
        self.folder, self.environment = os.getcwd(), {**os.environ, **environment}
        descriptor, self.log = tempfile.mkstemp(suffix=".log")
        os.close(descriptor)
        self.start()

    def run(self):
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # A shell starts what runs in its background with Ctrl-C ignored, and so would be what that starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv[:] = [self.main.__module__, *self.arguments]
        sys.exit(self.main())

    @property
    def output(self) -> str:
        """What it has written, on both streams."""
        return Path(self.log).read_text()

    def finish(self, code: int = 0) -> str:
        """Wait until it ends, with this exit code, and return its output."""
        self.join(600)
        output = self.output
        assert self.exitcode == code, output
        os.unlink(self.log)
        return output


def launch(config: Path | str | None, *command: str | Path, script: Path = RANK) -> Program:
    """
    A command of `craft`, or another script, on two processes: through `accelerate launch` with this configuration, or this flag, or through
    `torchrun`, as `accelerate launch` starts a single process for MULTI_CPU (accelerate 1.15).
    """
    from accelerate.commands.launch import main as accelerate
    from torch.distributed.run import main as torchrun

    # torch.distributed.run, which both of them use, reads its options from these variables too.
    fork = {"PET_START_METHOD": "fork", "PET_RUN_PATH": "1"}
    if config is None:
        return Program(torchrun, "--nproc_per_node", "2", script, *command, **fork)
    options = [config, "--num_processes", "2"] if isinstance(config, str) else ["--config_file", config]
    return Program(accelerate, *options, "--main_process_port", "0", script, *command, **fork)
