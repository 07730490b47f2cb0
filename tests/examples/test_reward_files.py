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

import os
import shutil
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from craft_trl.rewards.remote import RemoteReward

from ..conftest import ROOT


FILES = {"hpsv3": "HPSv3", "hpsv3pp": "HPSv3PlusPlus"}
# The signatures of hpsv3 1.0.0, and of HPSv3-PlusPlus at 7bdbebc: each image's brightness as the mean, and a deviation. They refuse
# what those refuse: without a GPU, bfloat16 (1.0.0), and a configuration that does not ask for a CPU (7bdbebc).
PACKAGE = """
import torch

class HPSv3RewardInferencer:
    def __init__(self, config_path=None, checkpoint_path=None, device="cuda", differentiable=False):
        if config_path is not None and device == "cpu":
            assert "use_cpu: true" in open(config_path).read().splitlines()
        self.model = torch.nn.Linear(1, 1, dtype=torch.bfloat16).to(device)

    def reward(self, {arguments}):
        assert all(image.mode == "RGB" for image in image_paths) and len(image_paths) == len(prompts) <= 8
        means = [image.getpixel((0, 0))[0] + len(prompt) / 100 for image, prompt in zip(image_paths, prompts)]
        {rule}
        return torch.tensor([[mean, 0.5] for mean in means])
"""
RULES = {
    "hpsv3": "assert self.model.weight.is_cuda or self.model.weight.dtype == torch.float32",
    "hpsv3pp": """means = [mean + 100 * iter_step for mean in means]
        if not getattr(self.model, "per_image_cap", False):
            means = [mean + sum(means) for mean in means]""",
}


@contextmanager
def served(name, variables, folder, python=sys.executable):
    """The reward that a file serves, run as it stands from another folder."""
    command = [python, str(ROOT / "examples" / "rewards" / f"serve_{name}.py"), "--port", "0"]
    process = subprocess.Popen(
        command, env={"PATH": "/usr/bin:/bin"} | variables, cwd=folder, stdout=subprocess.PIPE, text=True
    )
    try:
        said = next((line for line in process.stdout if line.startswith("[serve-reward]")), "")
        assert said.startswith(f"[serve-reward] {FILES[name]} at http://127.0.0.1:")
        yield RemoteReward(said.split()[-1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


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
    assert script["requires-python"] == "==3.11.*" and "pillow" in requirements
    # Without a day uv would take versions that nobody has seen together.
    assert script["tool"]["uv"]["exclude-newer"] and {"matplotlib", "tensorboard"} < set(requirements)
    assert all(str(requirements[name].specifier).startswith("==") for name in ("torch", "torchvision"))
    # craft_trl wants transformers 5, which neither of them knows.
    assert "craft_trl" not in requirements and str(requirements["transformers"].specifier).startswith("==4.")


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The packages, as far as the files speak with them, where Python finds them."""
    for folder, arguments, rule in (
        ("site/hpsv3", "image_paths, prompts", RULES["hpsv3"]),
        ("clone/hpsv3", "prompts, image_paths, iter_step=0.0", RULES["hpsv3pp"]),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "inference.py").write_text(PACKAGE.format(arguments=arguments, rule=rule))
        (tmp_path / folder / "__init__.py").write_text("from .inference import HPSv3RewardInferencer\n")
    for name in ("hpsv3/config/train_stage2.yaml", "checkpoints/hpsv3++.pth"):
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).touch()
    return {"hpsv3": {"PYTHONPATH": str(tmp_path / "site")}, "hpsv3pp": {"HPSV3PP": str(tmp_path / "clone")}}


@pytest.mark.parametrize(("name", "iter_step"), [("hpsv3", None), ("hpsv3pp", "0.5")])
def test_they_serve(name, iter_step, environment, tmp_path):
    """Run as they stand, from another folder, they answer a reward of a recipe."""
    variables = environment[name] | ({"HPSV3PP_ITER_STEP": iter_step} if iter_step else {})
    with served(name, variables, tmp_path) as reward:
        assert reward.reward == FILES[name] and reward.higher_is_better
        images = [Image.new("RGBA", (8, 8), (value, 0, 0, 255)) for value in range(20)]
        prompts = ["a fox"] * 20
        add = 50.05 if iter_step else 0.05
        assert reward(images, prompts).tolist() == pytest.approx([value + add for value in range(20)])


@pytest.mark.parametrize("name", FILES)
def test_the_packages(name, tmp_path):
    """
    The packages themselves, with tiny models of random weights, under a Python with what the head asks for:

    ```bash
    uv sync --script examples/rewards/serve_hpsv3.py
    HPSV3_PYTHON=$(uv python find --script examples/rewards/serve_hpsv3.py) python -m pytest tests/examples/test_reward_files.py
    ```

    HPSV3PP_PYTHON is that of the other file, which wants HPSV3PP, a clone, too.
    """
    python = os.environ.get(f"{name.upper()}_PYTHON")
    if python is None or (name == "hpsv3pp" and "HPSV3PP" not in os.environ):
        pytest.skip(f"{name.upper()}_PYTHON is not set, see here")
    # No GPU: what is random there is another model.
    variables = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HPSV3_BATCH": "2", "CUDA_VISIBLE_DEVICES": ""}
    variables["OMP_NUM_THREADS"] = "1"
    clone = tmp_path / "clone"
    if name == "hpsv3pp":
        code = Path(os.environ["HPSV3PP"], "hpsv3")
        shutil.copytree(code, clone / "hpsv3")
        (clone / "checkpoints").mkdir()
        variables["HPSV3PP"] = str(clone)
    tiny = [
        python,
        str(Path(__file__).with_name("tiny_hpsv3.py")),
        name,
        str(tmp_path),
        *[clone] * (name == "hpsv3pp"),
    ]
    subprocess.run(tiny, env={"PATH": "/usr/bin:/bin"} | variables, check=True, cwd=tmp_path)

    generator = np.random.default_rng(0)
    shapes = ((64, 64, 3), (512, 384, 3), (300, 700, 3))
    images = [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]
    prompts = ["a fox", "a red house by the lake at dusk, oil on canvas", "two dogs"]
    with served(name, variables, tmp_path, python) as reward:
        scores = reward(images, prompts)
        # The mean is near the 5 of the head's bias, the other number near -100.
        assert scores.sub(5).abs().max() < 4 and len(set(scores.round(decimals=3).tolist())) == 3
        close = pytest.approx(scores.tolist(), abs=1e-4)
        assert [reward([image], [prompt]).item() for image, prompt in zip(images, prompts, strict=True)] == close
        assert reward(images[::-1], prompts[::-1]).tolist()[::-1] == close
        assert (reward(images, prompts[::-1]) - scores).abs()[[0, 2]].min() > 1e-3
    if name == "hpsv3pp":
        with served(name, variables | {"HPSV3PP_ITER_STEP": "1"}, tmp_path, python) as reward:
            assert (reward(images, prompts) - scores).abs().min() > 1e-3


def test_without_a_clone(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "rewards" / "serve_hpsv3pp.py")]
    process = subprocess.run(
        command, env={"HPSV3PP": str(tmp_path), "PATH": "/usr/bin"}, capture_output=True, text=True, cwd=tmp_path
    )
    assert process.returncode == 1 and process.stderr.startswith(
        f"There is no {tmp_path}/hpsv3/config/train_stage2.yaml"
    )
    assert process.stderr.count("\n") == 1
