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

"""What the command line imports before work begins: by modules, since a time says as much of the machine."""

import importlib.util

import pytest

from ..conftest import ROOT


spec = importlib.util.spec_from_file_location("benchmark_startup", ROOT / "benchmarks" / "startup.py")
startup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(startup)

# What the options of a `TrainingArguments` need. Peft is not among it, nor diffusers.
TRAINING = {"torch", "transformers", "accelerate"}
IMPORTED = {
    "craft train --help": TRAINING,
    "craft dpo --help": TRAINING,
    "craft scored --help": TRAINING,
    "craft spo --help": TRAINING,
    "craft train, no such dataset": TRAINING,
    # It makes a dataset.
    "craft filter, a pool of 36 images": {"datasets"},
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("startup")
    return folder, startup.cases(folder)


NAMES = [f"craft {command} --help" for command in startup.COMMANDS]
NAMES += [
    "craft generate, a key misspelt",
    "craft expand, no such prompts",
    "craft filter, no pool",
    "craft evaluate, no such model",
    "craft evaluate, too many prompts",
    "craft plan, no such GPU",
    "craft run, no such folder",
    "craft train, no such dataset",
    "craft filter, a pool of 36 images",
]


@pytest.mark.parametrize("name", NAMES)
def test_imports(name, cases):
    folder, commands = cases
    _, code, imported = startup.measure(commands[name], folder)
    assert set(imported) <= IMPORTED.get(name, set())
    assert code == (2 if ", no such" in name or "misspelt" in name or ", no pool" in name or "too many" in name else 0)


def test_every_case_is_tested(cases):
    assert list(cases[1]) == NAMES
