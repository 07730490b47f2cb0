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

"""Every number that a setting outside of the trainer may be given has a range, checked before anything else is done."""

import dataclasses
import importlib
import math
import pkgutil
from typing import get_args, get_type_hints

import pytest

import craft_trl
from craft_trl.errors import UsageError
from craft_trl.parser import CraftParser
from craft_trl.ranges import Range, ranges


NEEDED = {  # what a configuration cannot do without, good enough to be made
    "BakeoffConfig": {"candidates": "c", "training": "t", "evaluation": "e", "output_dir": "o"},
    "CandidatesConfig": {"prompts": "p", "model_name_or_path": "m", "output_dir": "o", "templates": ["t"]},
    "EvaluationConfig": {"models": ["a=b"], "prompts": "p", "output_dir": "o", "rewards": ["pickscore"]},
    "ExpansionConfig": {"templates": ["t"]},
    "ExportArguments": {"model": "m", "format": "diffusers", "output": "o"},
    "PromptsConfig": {"prompts": "p"},
    "PushConfig": {"repo_id": "org/name"},
}


def configurations():
    for _, name, _ in pkgutil.walk_packages(craft_trl.__path__, "craft_trl."):
        if name.endswith(("config", "arguments")) or ".scripts." in name:
            for thing in vars(importlib.import_module(name)).values():
                if dataclasses.is_dataclass(thing) and thing.__name__.endswith(("Config", "Arguments")):
                    if thing.__module__.startswith("craft_trl.") and ".trainer." not in thing.__module__:
                        yield thing


def numbers(config):
    for name, hint in get_type_hints(config).items():
        types = {hint, *get_args(hint), *(part for option in get_args(hint) for part in get_args(option))}
        if types & {int, float}:
            yield name, hint


CASES = sorted({(config.__name__, name) for config in configurations() for name, _ in numbers(config)})
BY_NAME = {config.__name__: config for config in configurations()}


def test_the_walk_finds_them():
    assert len(CASES) > 50 and ("EvaluationConfig", "seed") in CASES and ("ServeRewardArguments", "port") in CASES


@pytest.mark.parametrize(("config", "name"), CASES)
def test_every_number(config, name):
    config = BY_NAME[config]
    kind = get_type_hints(config)[name]
    listed = "list" in str(kind)
    assert list(ranges(get_type_hints(config, include_extras=True)[name])), "it has no range"
    wrong = [math.nan, math.inf, -math.inf] if "float" in str(kind) else []
    wrong += [10**30, -(10**30)] + [-1]
    for value in wrong:
        with pytest.raises(UsageError, match=rf"\b{name} must be .*[,;] got .*\.$") as error:
            config(**{**NEEDED.get(config.__name__, {}), name: [value] if listed else value})
        assert "\n" not in str(error.value) and len(str(error.value)) < 150


@pytest.mark.parametrize(
    ("allowed", "value", "said"),
    [
        (Range(1), 0, "at least 1"),
        (Range(1), 10**12, "at most 1000000000"),
        (Range(0, ends="(]"), 0.0, "above 0"),
        (Range(0, ends="(]"), math.nan, "a finite number"),
        (Range(0, 1, "()"), 1, "between 0 and 1"),
        (Range(0, 1, "(]"), 1.5, "above 0 and at most 1"),
        (Range(0, 1, "[)"), 1, "at least 0 and below 1"),
        (Range(16, 1024), 8, "from 16 to 1024"),
        (Range(0, 2**62), 2**63, "at most 4611686018427387904"),
    ],
)
def test_in_words(allowed, value, said):
    assert value not in allowed and allowed.wanted(value) == said


def test_ends():
    assert [value in Range(0, 1) for value in (0, 1)] == [True, True]
    assert [value in Range(0, 1, "()") for value in (0, 0.5, 1)] == [False, True, False]
    assert [value in Range(0, 1, "(]") for value in (0, 1)] == [False, True]
    assert [value in Range(0, 1, "[)") for value in (0, 1)] == [True, False]


def test_the_parser_passes_over_them(tmp_path):
    """Annotated types are converted, and checked after conversion, from the command line and from a recipe."""
    parser = CraftParser([BY_NAME["PlanArguments"]])
    assert parser.parse_args_and_config(args=["--price", "2.5"])[0].price == 2.5
    (tmp_path / "r.yaml").write_text("price: .nan\n")
    for given in (["--price", "nan"], ["--config", str(tmp_path / "r.yaml")]):
        with pytest.raises(UsageError, match="price must be a finite number, got nan"):
            CraftParser([BY_NAME["PlanArguments"]]).parse_args_and_config(args=given)
