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


"""Bad inputs of every kind are one line, or done right, and nothing is lost. `benchmarks/bad_inputs.py` tries thousands."""

import pytest
from benchmarks import bad_inputs

from .processes import Program


# Left out: kinds whose inputs take training or drawing.
KINDS = (
    "recipe_text", "recipe_value", "numbers", "options", "groups", "vetoes", "votes", "pool", "records", "dataset", "rewards",
    "models", "prompts", "servers",
)  # fmt: skip


def test_none_is_a_fault():
    output = Program(bad_inputs.main, "--count", "70", "--seed", "0", "--kinds", *KINDS, OMP_NUM_THREADS="1").finish()
    assert "70 inputs in " in output and ", 0 faults" in output, output


@pytest.mark.parametrize(
    ("code", "said", "result"),
    [
        (0, "Downloading: 100%|####| 1/1 [00:01<00:00, 1.0it/s]\nanything\n", "done"),
        (2, "craft: error: x must be y.\n", "one line"),
        (1, "\rImages: 50%|## | 1/2\rImages: 100%|####| 2/2\ncraft: nothing passed.\n", "one line"),
        (2, "a warning\ncraft: error: x must be y.\n", "fault: 2 lines"),
        (2, "x must be y\n", "fault: 1 lines"),
        (1, "Traceback (most recent call last):\n", "fault: a traceback"),
        (-9, "", "fault: exit code -9"),
        (None, "", "fault: it did not end"),
    ],
)
def test_what_counts(code, said, result):
    files = bad_inputs.Counter({"a": 1})
    assert bad_inputs.classify(code, said, files, files) == result
    if result == "one line":
        assert bad_inputs.classify(code, said, files, bad_inputs.Counter()) == "fault: files are lost"
