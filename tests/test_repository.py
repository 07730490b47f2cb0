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


"""What stands beside the code: the citation, the workflow, the forms, and what CONTRIBUTING.md and SECURITY.md say and show."""

import ast
import configparser
import inspect
import re

import diffusers
import numpy as np
import pytest
import yaml
from PIL import Image
from transformers import Qwen3Config, Qwen3Model

import craft_trl
from craft_trl.families import FAMILIES, Family, get_family
from craft_trl.families.contract import check_contract, unused_parameters

from .conftest import ROOT
from .families.random_pipelines import network, tokenizer, vae


PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", ".github/pull_request_template.md")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
REWARD, ARM = re.findall(r"```python\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
FAMILIES_PAGE = (ROOT / "docs" / "source" / "families.md").read_text()
FAMILY, CONTRACT = re.findall(r"```python\n(.*?)```", FAMILIES_PAGE, flags=re.DOTALL)
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def load_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


def slugs(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run_as_module(code):
    """The family in the source of a module of `craft_trl/families/pipelines`."""
    package = "craft_trl.families.pipelines"
    names = {"__name__": f"{package}.example", "__package__": package}
    exec(compile(code, "families.md", "exec"), names)
    (family,) = (
        value for value in names.values() if isinstance(value, type) and value.__module__ == names["__name__"]
    )
    return family


def check_overrides(family):
    """What a family defines, [`Family`] has, with the same parameters; and what that leaves open is defined."""
    for name, value in vars(family).items():
        if not name.startswith("_"):
            assert hasattr(Family, name) or name in Family.__annotations__, name
            if inspect.isfunction(value):
                expected = inspect.signature(getattr(Family, name)).parameters
                assert list(inspect.signature(value).parameters) == list(expected), name
    for name in ("encode_prompts", "predict"):
        assert getattr(family, name) is not getattr(Family, name)
    assert family.pipelines and family.repeated_blocks


def ovis_image():
    transformer = network(
        diffusers.OvisImageTransformer2DModel, in_channels=16, out_channels=16, num_layers=1, num_single_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    text = Qwen3Config(
        vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
    )  # fmt: skip
    return diffusers.OvisImagePipeline(
        transformer=transformer, vae=vae(), text_encoder=Qwen3Model(text).eval(), tokenizer=tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


class TestPages:
    @pytest.mark.parametrize("name", PAGES)
    def test_links_lead_somewhere(self, name):
        page = ROOT / name
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if not re.match(r"[a-z]+:", target):
                path, _, anchor = target.partition("#")
                linked = page.parent / path if path else page
                assert linked.exists(), target
                assert not anchor or anchor in slugs(linked), target

    def test_folders_and_files_are_there(self):
        named = re.findall(
            r"`((?:craft_trl|tests|docs|examples|recipes|accelerate_configs|benchmarks)/[\w/.]*)`", CONTRIBUTING
        )
        assert len(named) > 25
        for name in named:
            assert (ROOT / name).exists() or "NAME" in name, name
        rooms = {path.name for path in (ROOT / "craft_trl").iterdir() if (path / "__init__.py").is_file()}
        # `cli/` stands in the line of `craft_trl/scripts/`.
        assert rooms - {"cli"} == {name.split("/")[1] for name in named if re.fullmatch(r"craft_trl/\w+/", name)}

    def test_changelog(self):
        headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", CHANGELOG, flags=re.MULTILINE)
        assert headings[0] == ("Unreleased", "")
        assert all(date for _, date in headings[1:])
        assert headings[1][0] == craft_trl.__version__

    def test_modules_moved_to_where_the_changelog_says(self):
        unreleased = CHANGELOG.split("\n## ")[1]
        rows = re.findall(r"^  \| (`.*) \| (.*) \|$", unreleased, flags=re.MULTILINE)
        for was, now in rows:
            was, now = (re.findall(r"`craft_trl\.([\w.]+)`", text) for text in (was, now))
            if len(now) < len(was):  # "the same names in"
                now = [f"{now[0]}.{name}" for name in was]
            for old, new in zip(was, now, strict=False):
                path = ROOT / "craft_trl" / new.replace(".", "/")
                assert path.with_suffix(".py").is_file(), new
                assert not (ROOT / "craft_trl" / old.replace(".", "/")).with_suffix(".py").exists(), old


class TestExamples:
    def run(self, code, capsys):
        """Run a block, and compare what each `print` makes with the comment behind it."""
        exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "example"})
        expected = re.findall(r"^print\(.*\)  # (.*)$", code, flags=re.MULTILINE)
        assert expected and capsys.readouterr().out.splitlines() == expected

    def test_reward(self, tmp_path, capsys):
        (tmp_path / "examples").symlink_to(ROOT / "examples")
        self.run(REWARD, capsys)

    def test_arm(self, monkeypatch, capsys):
        from craft_trl.bakeoff import arms

        monkeypatch.setattr(arms, "METHODS", dict(arms.METHODS))
        self.run(ARM, capsys)

    def test_family(self, monkeypatch, capsys):
        """The example keeps the contract on a small random pipeline, as the block behind it checks it."""
        example = run_as_module(FAMILY)
        assert example.pipelines == ("OvisImagePipeline",)
        monkeypatch.setitem(FAMILIES, "OvisImagePipeline", example())
        check_overrides(example)
        pipeline = ovis_image()
        monkeypatch.setattr(diffusers.OvisImagePipeline, "from_pretrained", lambda source: pipeline)
        exec(compile(CONTRACT.replace("=256", "=32"), "families.md", "exec"), {"__name__": "example"})
        lines = capsys.readouterr().out.splitlines()
        assert {line.partition(":")[0] for line in lines} >= {"predict", "texts", "guided", "one_by_one", "decode"}
        assert all(float(line.partition(": ")[2]) < 5e-6 for line in lines), lines
        assert check_contract(pipeline, 32, 16, max_sequence_length=40)["predict"] == 0
        assert unused_parameters(pipeline, 32, 32) == []

    @pytest.mark.parametrize("name", sorted(FAMILIES))
    def test_families_say_what_is_asked_of_them(self, name):
        check_overrides(type(get_family(name)))

    def test_the_page_has_every_family_and_no_other(self):
        table = FAMILIES_PAGE.partition("## Which models")[2].partition("\n## ")[0]
        named = re.findall(r"`(\w+Pipeline)`", table)
        assert sorted(named) == sorted(FAMILIES)

    def test_colorfulness(self):
        """By hand, from the formula."""
        namespace = {}
        exec((ROOT / "examples" / "rewards" / "colorfulness.py").read_text(), namespace)
        halves = Image.new("RGB", (4, 2), "red")
        halves.paste("blue", (0, 0, 2, 2))
        images = [Image.new("L", (3, 5), 77), Image.new("RGB", (2, 2), "red"), halves, halves.convert("RGBA")]
        # Red is (255, 127.5) in red - green and yellow - blue, blue (0, -255): means 127.5 and -63.75, deviations 127.5 and 191.25.
        both = np.hypot(127.5, 191.25) + 0.3 * np.hypot(127.5, 63.75)
        scores = namespace["colorfulness"](images, [""] * 4)
        assert scores.shape == (4,) and str(scores.dtype) == "torch.float32"
        np.testing.assert_allclose(scores, [0, 0.3 * np.hypot(255, 127.5), both, both], rtol=1e-6)


def test_citation():
    content = load_yaml("CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= content.keys()
    assert content["cff-version"] == "1.2.0" and content["type"] == "software"
    assert content["title"] == SETUP["metadata"]["name"] and content["license"] == SETUP["metadata"]["license"]
    assert content["version"] == craft_trl.__version__
    assert content["authors"] == [{"name": SETUP["metadata"]["author"]}]
    (paper,) = content["references"]
    assert {"type", "title", "authors"} <= paper.keys() and paper["url"].endswith("/2603.18991")
    assert paper["title"] in (ROOT / "craft_trl" / "trainer" / "craft_trainer.py").read_text()


class TestGitHub:
    def test_workflow(self):
        workflow = load_yaml(".github/workflows/tests.yml")
        jobs = workflow["jobs"]
        runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
        assert runs == {"tests": [".ci/run"], "style": ["make style"], "docs": ["make docs"]}
        assert (ROOT / ".ci" / "run").is_file()
        assert jobs["tests"]["timeout-minutes"] == 90 and all("timeout-minutes" in job for job in jobs.values())
        assert len(jobs["tests"]["strategy"]["matrix"]["python"]) == 2
        for job in jobs.values():
            (setup,) = [
                step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python")
            ]
            assert isinstance(setup["python-version"], str)  # 3.10 without quotes is the number 3.1
            assert setup["cache"] == "pip" and all(
                (ROOT / p).is_file() for p in setup["cache-dependency-path"].split()
            )

    def test_make_targets(self):
        targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        texts = [CONTRIBUTING, *(path.read_text() for path in (ROOT / ".github").rglob("*.*") if path.is_file())]
        named = {name for text in texts for name in re.findall(r"(?:^|`|run: )make (\w+)", text, flags=re.MULTILINE)}
        assert {"test", "style", "docs"} <= named <= targets

    @pytest.mark.parametrize("name", ["bug", "feature"])
    def test_issue_forms(self, name):
        form = load_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert {"name", "description", "body"} <= form.keys()
        fields = [part for part in form["body"] if part["type"] != "markdown"]
        ids = [part["id"] for part in fields]
        assert len(set(ids)) == len(ids) and all(part["attributes"]["label"] for part in fields)
        required = {part["id"] for part in fields if part.get("validations", {}).get("required")}
        assert required == ({"what", "command", "output", "recipe", "env"} if name == "bug" else {"aim", "now"})

    def test_issue_chooser(self):
        config = load_yaml(".github/ISSUE_TEMPLATE/config.yml")
        assert config["blank_issues_enabled"] is True
        assert all(link["url"].startswith("https://") for link in config["contact_links"])


@pytest.fixture(scope="module")
def trees():
    return {path: ast.parse(path.read_text()) for path in (ROOT / "craft_trl").rglob("*.py")}


class TestSecurity:
    """Of what SECURITY.md says, what can be read off the code; the rest is in the tests of each module."""

    def test_no_code_of_others(self, trees):
        for path, tree in trees.items():
            for node in ast.walk(tree):
                assert not isinstance(node, ast.keyword) or node.arg != "trust_remote_code", path
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                    assert not names & {"pickle", "cloudpickle", "dill", "joblib"}, path

    def test_pickles_are_not_executed(self, trees):
        loads = 0
        for path, tree in trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    loads += 1
                    assert "weights_only=True" in ast.unparse(node), path
        assert loads

    def test_server_listens_here(self, trees):
        (server,) = [tree for path, tree in trees.items() if path.name == "server.py"]
        source = ast.unparse(server)
        assert (
            "'--host', default='127.0.0.1'" in source
            and "formats=['PNG']" in source
            and "MAX_BYTES = 1 << 28" in source
        )
        (script,) = [path for path in trees if path.name == "serve_reward.py"]
        assert 'default="127.0.0.1"' in script.read_text()
