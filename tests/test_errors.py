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


"""How a command ends: an exit code and one line."""

import pytest

from craft_trl.errors import NothingToDoError, ServerError, UsageError, exit_code


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("x must be y."), 2, "craft: error: x must be y.\n"),
        (NothingToDoError("no group passed."), 1, "craft: no group passed.\n"),
        (ServerError("the reward failed."), 1, "craft: the reward failed.\n"),
        (UsageError("got 'a\nb\u2028c'."), 2, "craft: error: got 'a b c'.\n"),
        (UsageError(f"got {'a' * 5000!r}; it must be short."), 2, f"craft: error: got '{'a' * 495} ... {'a' * 230}'; it must be short.\n"),
    ],
)  # fmt: skip
def test_one_line(capsys, error, code, said):
    def work():
        raise error

    assert exit_code(work) == code
    assert capsys.readouterr().err == said
