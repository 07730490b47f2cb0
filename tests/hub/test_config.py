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


"""What is wrong with a push is told before anything is made, also where nothing is to be uploaded."""

import pytest

from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.hub.config import PushConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repo_id": "org/my model"}, "repo_id 'org/my model' is no name for a repository: "),
        ({"repo_id": "model"}, "repo_id must be org/name or user/name, got 'model'"),
        ({"repo_id": "org/name", "dataset_repo_id": "org/a..b"}, "dataset_repo_id 'org/a..b' is no name for a repository"),
        ({"repo_id": "org/name", "base_model": "./folder/of/it"}, "base_model './folder/of/it' is no name for a repository"),
        ({"repo_id": "org/name", "license": "Apache 2.0"}, "license 'Apache 2.0' is no identifier of the Hub: those are like apache-2.0"),
        ({"repo_id": "org/name", "license": "CreativeML"}, "and other for what is not in the list"),
        ({"repo_id": "org/name", "license": ""}, "is no identifier of the Hub"),
    ],
)  # fmt: skip
def test_wrong(capsys, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        PushConfig(**settings)
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    assert main(["push", str(tmp_path), *options, "--dry_run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("craft: error: ") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    "license", [None, "apache-2.0", "openrail++", "creativeml-openrail-m", "lppl-1.3c", "llama3.1"]
)
def test_right(license):
    assert PushConfig("org/name", base_model="stabilityai/sdxl-turbo", license=license).license == license
