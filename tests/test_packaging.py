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


"""An installed wheel has everything that a checkout has: recipes with their models, accelerate configurations, templates."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import craft_trl
from craft_trl.errors import UsageError
from craft_trl.planning.recipes import find_recipes
from craft_trl.scripts.launch import find_accelerate_config


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools writes `build/` and an egg-info folder beside its sources.
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(["git", "ls-files", "-z", "--cached"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_runs_on_its_own(wheel, tmp_path):
    """Unpacked somewhere else, with no checkout in sight, the packaged recipe is found and its first stage runs."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
from craft_trl.cli.main import main
from craft_trl.planning.recipes import find_recipes
folder = find_recipes("recipes/tiny")
print(folder)
raise SystemExit(main(["expand", "--config", f"{folder}/candidates.yaml"]))
"""
    environment = {
        "PYTHONPATH": str(tmp_path / "site"),
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path),
    }
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[0] == str(tmp_path / "site" / "craft_trl" / "recipes" / "tiny")
    assert (tmp_path / "runs" / "tiny" / "prompts" / "groups.jsonl").exists()


def test_wheel_holds_all_that_a_run_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (
        ("recipes/tiny", "craft_trl/recipes/tiny"),
        ("accelerate_configs", "craft_trl/accelerate_configs"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(ROOT / folder)}" in names, path
    assert {"craft_trl/templates/report.html", "craft_trl/templates/model_card.md"} <= names
    modules = {f"craft_trl/{p.relative_to(ROOT / 'craft_trl')}" for p in (ROOT / "craft_trl").rglob("*.py")}
    assert modules <= names
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".ckpt")) for name in names)


def test_finding_in_a_checkout(tmp_path):
    assert find_recipes("recipes/tiny") == ROOT / "recipes" / "tiny"
    assert find_accelerate_config("zero2") == ROOT / "accelerate_configs" / "zero2.yaml"
    (tmp_path / "mine.yaml").write_text("")
    assert find_accelerate_config("mine.yaml") == Path("mine.yaml")
    with pytest.raises(UsageError, match="no folder with candidates.yaml"):
        find_recipes("recipes/nothing")


def test_public_names():
    for name in craft_trl.__all__:
        assert getattr(craft_trl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        craft_trl.Nothing  # noqa: B018


def test_import_is_light():
    code = "import sys, craft_trl, craft_trl.cli.main; print(any(m in sys.modules for m in ('torch', 'diffusers', 'trl')))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"
