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


"""Of every family, one process, DDP, ZeRO-2 and ZeRO-3 on two processes train the same model on the same samples."""

from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from ..families.random_pipelines import CASES
from ..processes import ROOT, launch
from .train_families import ADAPTERS, train_all


# One of each class: with other options it has the same parameters.
NAMES = [name for name in CASES if name not in ("stable_diffusion_3_without_t5", "flux_schnell", "pixart_alpha")]
# By FSDP2, which knows of a denoiser but what its blocks are called: each way of having them.
BY_FSDP = ("stable_diffusion_3", "flux_dev", "qwen_image", "sana")
SCRIPT = Path(__file__).parent / "train_families.py"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Pipelines of all families, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("families")
    for name in NAMES:
        CASES[name]().save_pretrained(folder / "pipelines" / name)
    train_all(folder / "pipelines", folder / "one")
    return folder


@pytest.mark.parametrize("mode", ["ddp", "zero2", "zero3", "fsdp2"])
def test_mode(workplace, mode, tmp_path):
    config = None
    if mode != "ddp":
        settings = yaml.safe_load((ROOT / "accelerate_configs" / f"{mode}.yaml").read_text())
        config = tmp_path / f"{mode}.yaml"
        config.write_text(yaml.safe_dump(settings | {"num_processes": 2, "mixed_precision": "no"}))
    names, pipelines = NAMES, workplace / "pipelines"
    if mode == "fsdp2":
        names, pipelines = BY_FSDP, tmp_path / "pipelines"
        pipelines.mkdir()
        for name in names:
            (pipelines / name).symlink_to(workplace / "pipelines" / name)
    launch(config, pipelines, workplace / mode, script=SCRIPT).finish()
    found = (file for name in names for file in (workplace / "one" / name).rglob("*.safetensors"))
    files = sorted(file.relative_to(workplace / "one") for file in found)
    adapters = len(set(ADAPTERS) & set(names))
    assert len(files) == 2 * (len(names) + adapters)  # of each training what was encoded, and what was learnt
    for file in files:
        one, two = load_file(workplace / "one" / file), load_file(workplace / mode / file)
        assert one.keys() == two.keys()
        # Two steps of AdamW at 1e-4 move a weight by up to 2e-4.
        worst = max((one[name].float() - two[name].float()).abs().max().item() for name in one)
        assert worst < 1e-5, file
