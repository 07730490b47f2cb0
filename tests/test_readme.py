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


"""What the README and the pages show is taken as it stands there."""

import importlib
import os
import re
import shlex
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "docs" / "source" / "quickstart.md"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the checkout, for the relative paths of the pages."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "accelerate_configs").symlink_to(ROOT / "accelerate_configs")
    return tmp_path


def test_python_example(checkout):
    code = re.findall(r"```python\n(.*?)```", QUICKSTART.read_text(), flags=re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line]) <= 15
    exec(compile(code, QUICKSTART.name, "exec"), {})
    from diffusers import StableDiffusionXLPipeline

    assert StableDiffusionXLPipeline.from_pretrained("model").unet.config.sample_size == 16


PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/source/**/*.md"), *ROOT.glob("recipes/**/*.md")])


def commands(page):
    """Command lines of a page: those of its code blocks, with or without a fence."""
    lines = re.findall(r"^(?: {4})?((?:craft|accelerate launch) .*)", page.read_text(), flags=re.MULTILINE)
    return [[os.path.expanduser(word) for word in shlex.split(line, comments=True)] for line in lines]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_command_parses(page, checkout, monkeypatch):
    """Commands are stopped behind the parser: running them all at their real size is what `make demo` does."""
    from craft_trl.cli.main import MODULES, SOURCES, STAGES, TOOLS
    from craft_trl.planning.recipes import RunRecipes, find_recipes

    monkeypatch.setenv("HOME", str(checkout))
    (checkout / "Downloads").mkdir()
    for name in ("votes.jsonl", "veto.jsonl"):
        (checkout / "Downloads" / name).touch()
    monkeypatch.chdir(checkout)
    for command, *args in commands(page):  # after HOME is set: a shell would put it in place of ~
        if command == "accelerate":
            options, args = args[: args.index("-m")], args[args.index("-m") + 1 :]
            if "--config_file" in options:
                assert (ROOT / options[options.index("--config_file") + 1]).is_file()
            name, args = args[0].removeprefix("craft_trl.scripts."), args[1:]
        else:
            name, *args = args
        args = args[: args.index(">")] if ">" in args else args
        if name == "run":
            RunRecipes.load(find_recipes(args[0]), args[1:])
        elif name in ("plan", "fetch"):
            run_options, own = [], {action.dest for action in import_script(name).make_parser()._actions}
            for option, *values in options_of(args[1:]):
                run_options += [] if option.removeprefix("--") in own else [option, *values]
            RunRecipes.load(find_recipes(args[0]), run_options)
        elif name == "bakeoff":
            import_script(name).make_parser().parse_args_and_config(args=["--config", *args])
        elif name in ("push", "serve-reward"):
            import_script(name.replace("-", "_")).make_parser().parse_args_and_config(args=args[1:])
        elif name in SOURCES:
            options = options_of(["--sources", *args])
            assert options[0][1:]
            import_script(MODULES.get(name, name)).make_parser().parse_args_and_config(
                args=[word for o in options[1:] for word in o]
            )
        elif name == "env":
            assert not args
        else:
            assert name in {**STAGES, **TOOLS}
            import_script(name.replace("-", "_")).make_parser().parse_args_and_config(args=args)


def import_script(name):
    return importlib.import_module(f"craft_trl.scripts.{name}")


def options_of(args):
    """Options, each with its values."""
    options = []
    for arg in args:
        options.append([arg]) if arg.startswith("--") else options[-1].append(arg)
    return options


def test_commands_are_found():
    assert len(commands(ROOT / "README.md")) >= 12 and sum(len(commands(page)) for page in PAGES) >= 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#h][^)#]*)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), target
