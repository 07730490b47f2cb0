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


"""What must not leave with a push: keys of the environment, and those that stand in settings."""

import pytest

from craft_trl.errors import UsageError
from craft_trl.hub.cards import flat
from craft_trl.hub.upload import scan


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MY_API_KEY", "correct horse battery"),
        ("MY_API_KEY", "correct horse battery\n"),
        ("my_secret", " correct horse battery"),
        ("DB_PASSWORD", "correct horse battery"),
        ("GITHUB_PAT", "correct horse battery"),
        ("AWS_CREDENTIALS", "correct horse battery"),
        ("ANYTHING", "sk-" + "a" * 30),
    ],
)
def test_secrets_of_the_environment(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    scan({"README.md": b"correct horse"})
    with pytest.raises(UsageError, match="README.md holds what looks like a secret") as error:
        scan({"README.md": f"use {value.strip()} here".encode()})
    assert value.strip() not in str(error.value)


def test_settings_on_a_card():
    """Also those of a run that was made before they were masked where they are written."""
    settings = {"extra_body": {"api_key": "hunter2", "keys": ["a"], "max_tokens": 5}, "note": "hf_" + "a" * 34}
    assert flat(settings) == [
        ("extra_body.api_key", "***"), ("extra_body.keys", "`***`"), ("extra_body.max_tokens", "5"), ("note", "***"),
    ]  # fmt: skip
