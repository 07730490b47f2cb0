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
import re

import numpy as np
import pytest
import yaml
from PIL import Image

import craft_trl
from craft_trl.families import FAMILIES

from .conftest import ROOT


PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", ".github/pull_request_template.md")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
REWARD, FAMILY, ARM = re.findall(r"```python\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def load_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


def slugs(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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

    def test_family(self):
        """Names and parameters are those of the families that are there. The block is read, not run: it needs a model."""

        def public(source):
            names = {}
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef):
                    names[node.name] = [argument.arg for argument in node.args.args]
                elif isinstance(node, ast.Assign):
                    names[node.targets[0].id] = None
            return names

        for module in FAMILIES.values():
            assert public((ROOT / "craft_trl" / "families" / f"{module}.py").read_text()) == public(FAMILY), module

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
