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


"""The reward files for `uv run`: their heads are what uv reads, and what they ask of their package is what it takes."""

import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from PIL import Image

from craft_trl.rewards.remote import RemoteReward

from ..conftest import ROOT


FILES = {"hpsv3": "HPSv3", "hpsv3pp": "HPSv3PlusPlus"}
# The signatures of hpsv3 1.0.0, and of HPSv3-PlusPlus at 7bdbebc: each image's brightness as the mean, and a deviation.
PACKAGE = """
import torch

class HPSv3RewardInferencer:
    def __init__(self, config_path=None, checkpoint_path=None, device="cuda", differentiable=False):
        self.files = [config_path, checkpoint_path]

    def reward(self, {arguments}):
        assert all(image.mode == "RGB" for image in image_paths) and len(image_paths) == len(prompts) <= 8
        means = [image.getpixel((0, 0))[0] + len(prompt) / 100 for image, prompt in zip(image_paths, prompts)]
        return torch.tensor([[mean{more}, 0.5] for mean in means])
"""


def head(name):
    """The metadata of a script, as PEP 723 has it."""
    lines = (ROOT / "examples" / "rewards" / f"serve_{name}.py").read_text().splitlines()
    assert lines[0] == "# /// script"
    block = lines[1 : lines.index("# ///")]
    assert all(line == "#" or line.startswith("# ") for line in block)
    return tomllib.loads("\n".join(line[2:] for line in block))


@pytest.mark.parametrize("name", FILES)
def test_heads(name):
    script = head(name)
    requirements = {requirement.name: requirement for requirement in map(Requirement, script["dependencies"])}
    assert script["requires-python"] == ">=3.10,<3.13" and "pillow" in requirements
    # craft_trl wants transformers 5, which neither of them knows.
    assert "craft_trl" not in requirements and str(requirements["transformers"].specifier).startswith("==4.")


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The packages, as far as the files speak with them, where Python finds them."""
    for folder, arguments, more in (
        ("site/hpsv3", "image_paths, prompts", ""),
        ("clone/hpsv3", "prompts, image_paths, iter_step=0.0", " + 100 * iter_step"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        source = PACKAGE.format(arguments=arguments, more=more)
        (tmp_path / folder / "inference.py").write_text(source)
        (tmp_path / folder / "__init__.py").write_text("from .inference import HPSv3RewardInferencer\n")
    for name in ("hpsv3/config/train_stage2.yaml", "checkpoints/hpsv3++.pth"):
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).touch()
    return {"hpsv3": {"PYTHONPATH": str(tmp_path / "site")}, "hpsv3pp": {"HPSV3PP": str(tmp_path / "clone")}}


@pytest.mark.parametrize(("name", "iter_step"), [("hpsv3", None), ("hpsv3pp", "0.5")])
def test_they_serve(name, iter_step, environment, tmp_path):
    """Run as they stand, from another folder, they answer a reward of a recipe."""
    variables = {"PATH": "/usr/bin:/bin", **environment[name]} | (
        {"HPSV3PP_ITER_STEP": iter_step} if iter_step else {}
    )
    command = [sys.executable, str(ROOT / "examples" / "rewards" / f"serve_{name}.py"), "--port", "0"]
    process = subprocess.Popen(command, env=variables, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline()
        assert said.startswith(f"[serve-reward] {FILES[name]} at http://127.0.0.1:")
        reward = RemoteReward(said.split()[-1])
        assert reward.reward == FILES[name] and reward.higher_is_better
        images = [Image.new("RGBA", (8, 8), (value, 0, 0, 255)) for value in range(20)]
        prompts = ["a fox"] * 20
        add = 50.05 if iter_step else 0.05
        assert reward(images, prompts).tolist() == pytest.approx([value + add for value in range(20)])
    finally:
        process.kill()
        process.wait()


def test_without_a_clone(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "rewards" / "serve_hpsv3pp.py")]
    process = subprocess.run(
        command, env={"HPSV3PP": str(tmp_path), "PATH": "/usr/bin"}, capture_output=True, text=True, cwd=tmp_path
    )
    assert process.returncode == 1 and process.stderr.startswith(
        f"There is no {tmp_path}/hpsv3/config/train_stage2.yaml"
    )
    assert process.stderr.count("\n") == 1
