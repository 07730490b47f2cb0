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

"""What progress bars leave behind, and that a library's own are there again after a model was loaded."""

import io
import sys

import diffusers.utils.logging
import pytest
import transformers.utils.logging

from craft_trl.progress import progress_bar
from craft_trl.quiet import quiet_bars


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


def test_a_log_file_gets_a_line(monkeypatch):
    stream = Stream(terminal=False)
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in progress_bar(range(50), desc="Images", unit="image"):
        pass
    assert stream.getvalue().count("\n") == 1 and "\r" not in stream.getvalue()
    assert stream.getvalue().startswith("Images: 100%") and "50/50" in stream.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in progress_bar(range(3), desc="Images"):
        pass
    assert stream.getvalue().count("\r") > 1 and stream.getvalue().endswith("\n")


def test_bars_of_libraries_come_back():
    libraries = diffusers.utils.logging, transformers.utils.logging
    before = [library.is_progress_bar_enabled() for library in libraries]
    with pytest.raises(KeyError), quiet_bars():
        assert not any(library.is_progress_bar_enabled() for library in libraries)
        raise KeyError
    assert [library.is_progress_bar_enabled() for library in libraries] == before
