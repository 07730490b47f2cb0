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

"""Progress bars that leave one line behind, in a terminal, a notebook or a log file."""

import sys
from typing import Any, TextIO

import tqdm.auto
import tqdm.std


def progress_bar(*args: Any, **kwargs: Any) -> "tqdm.std.tqdm":
    """
    A `tqdm` of these arguments. Where its stream is neither a terminal nor a notebook, it is not drawn over and over: there is
    a line at the end, and one every 15 seconds of longer work.
    """
    in_notebook = tqdm.auto.notebook_tqdm is not tqdm.std.tqdm
    if in_notebook or sys.stderr.isatty():
        return tqdm.auto.tqdm(*args, **kwargs)
    # `delay`: without it, there would be a line of nothing done.
    return tqdm.std.tqdm(*args, **kwargs, file=_Lines(sys.stderr), mininterval=15, maxinterval=15, delay=1e-9)


class _Lines:
    """A stream on which every state of a bar, which tqdm writes over the one before, is a line."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None)  # by which tqdm chooses the bar's characters

    def write(self, text: str) -> None:
        if text.strip():
            self.stream.write(f"{text.strip()}\n")

    def flush(self) -> None:
        self.stream.flush()
