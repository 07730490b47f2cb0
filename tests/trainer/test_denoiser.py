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

"""What is trained of a pipeline: adapters on modules that there are, and no model whose inputs the training does not have."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from craft_trl import CraftTrainer
from craft_trl.errors import UsageError
from craft_trl.trainer.denoiser import add_adapter, check_adapter, denoiser_of, lora_config

from ..helpers import config, make_dataset
from ..pipelines import make_pipeline


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    make_pipeline("sd", "epsilon", tiny).save_pretrained(folder)
    return str(folder)


def adapted(source, *target_modules):
    """Names of the modules that get an adapter."""
    denoiser_class, part = denoiser_of(source)
    model = add_adapter(denoiser_class.from_pretrained(**part), lora_config(list(target_modules), 2))
    return {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}


def test_the_three_ways_to_name_modules(source):
    denoiser_class, part = denoiser_of(source)
    modules = dict(denoiser_class.from_pretrained(**part).named_modules())
    assert adapted(source, "to_q", "to_out.0") == {n for n in modules if n.endswith((".to_q", ".to_out.0"))}
    assert adapted(source, "all-linear") == {n for n, m in modules.items() if isinstance(m, torch.nn.Linear)}
    assert adapted(source, r".*attn1\.to_[qk]") == {n for n in modules if n.endswith(("attn1.to_q", "attn1.to_k"))}


@pytest.mark.parametrize(
    ("target_modules", "message"),
    [
        (["q_proj", "v_proj"], "lora_target_modules: this model has no 'q_proj'. There are, among others, to_q, to_k"),
        (["to_q", "v_proj"], "lora_target_modules: this model has no 'v_proj'"),
        (
            ["norm1"],
            "lora_target_modules: Target module (Group|Layer)Norm.* is not supported. There are, among others, to_q",
        ),
        ([".*attn3.*"], r"lora_target_modules: Target modules .*attn3.* not found in the base model. There are"),
        (["to_(q"], r"lora_target_modules 'to_\(q' is no regular expression: missing \)"),
        (["all-linear", "to_q"], "lora_target_modules: this model has no 'all-linear'"),
    ],
)
def test_modules_that_are_not_there(source, monkeypatch, target_modules, message):
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", None)  # no weight is loaded to find that out
    with pytest.raises(UsageError, match=message) as error:
        check_adapter(source, None, lora_config(target_modules))
    assert "\n" not in str(error.value)


def test_the_trainer_itself_says_so(source, tmp_path):
    lora = LoraConfig(target_modules=["q_proj"])
    with pytest.raises(UsageError, match="this model has no 'q_proj'"):
        CraftTrainer(source, config(tmp_path), make_dataset(), peft_config=lora)
    assert not (tmp_path / "out" / "encoded.safetensors").exists()


def test_a_consistency_model_is_refused(tiny, tmp_path, monkeypatch):
    """Its guidance embedding is an input when it draws, and would be left out in training."""
    make_pipeline("sd", "epsilon", tiny).save_pretrained(tmp_path / "lcm")
    file = tmp_path / "lcm" / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"time_cond_proj_dim": 32}))
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", None)
    with pytest.raises(
        UsageError,
        match="its unet is distilled to take the guidance scale as an input .time_cond_proj_dim 32., as those of LCM",
    ):
        CraftTrainer(str(tmp_path / "lcm"), config(tmp_path), make_dataset())
