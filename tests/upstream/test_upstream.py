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

"""
What this library works around in others, and what it relies on in them: a test for each.

A test that fails here after an update says that a workaround can go, or that something it stands on has moved. Each names
the code that depends on it.
"""

import inspect
import os
import signal
import subprocess
import sys
import time
import types

import diffusers
import pytest
import torch
import transformers.integrations.deepspeed as hf_deepspeed
from accelerate.utils import DeepSpeedPlugin
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, Trainer, TrainingArguments
from transformers.trainer import _is_peft_model
from transformers.utils import find_labels
from trl.trainer.base_trainer import _BaseTrainer

from craft_trl.candidates.loading import load_network

from ..families import random_pipelines


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


@pytest.fixture
def trainer(unet, tmp_path):
    return Trainer(unet, TrainingArguments(str(tmp_path / "trainer"), use_cpu=True, report_to="none"))


def test_trl_reports_usage_from_a_configuration_of_transformers(unet, tmp_path, monkeypatch):
    """`DiffusionTrainer._send_telemetry`."""
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(AttributeError, match="model_type"):
        _BaseTrainer(unet, TrainingArguments(str(tmp_path / "trainer"), use_cpu=True, report_to="none"))


def test_activation_checkpointing_has_another_name_in_diffusers(unet):
    """`denoiser.activation_checkpointing_enable` in `prepare_denoiser`."""
    assert hasattr(unet, "enable_gradient_checkpointing")
    assert not hasattr(unet, "activation_checkpointing_enable") and not hasattr(unet, "gradient_checkpointing_enable")


def test_the_trainer_finds_no_labels():
    """`DiffusionTrainer.prediction_step`."""
    assert find_labels(UNet2DConditionModel) == ["class_labels"]


def test_the_trainer_saves_a_bare_file(trainer, tmp_path):
    """`DiffusionTrainer._save`, `_load_from_checkpoint`, `save_weights`."""
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "config.json").exists()
    assert "state_dict" not in inspect.signature(ModelMixin.save_pretrained).parameters
    trainer.model.save_pretrained(tmp_path / "checkpoint" / "unet")
    with pytest.raises(ValueError, match="Can't find a valid checkpoint"):
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint"))


def test_the_trainer_casts_inputs_under_deepspeed(trainer):
    """`DiffusionTrainer._prepare_input`."""
    trainer.is_deepspeed_enabled = True
    config = types.SimpleNamespace(dtype=lambda: torch.bfloat16)
    plugin = types.SimpleNamespace(hf_ds_config=config)
    trainer.accelerator = types.SimpleNamespace(state=types.SimpleNamespace(deepspeed_plugin=plugin))
    assert trainer._prepare_input(torch.tensor([1023.0])).item() == 1024


def test_a_frozen_configuration_takes_the_attribute_that_the_trainer_sets(unet):
    """The end of `Trainer.__init__`, `model.config.use_cache = ...`, which must not reach the saved configuration."""
    unet.config.use_cache = False
    assert "use_cache" not in unet.config


def test_the_trainer_writes_configurations_to_tensorboard_as_json(unet):
    """`ModelFreeTensorBoardCallback`."""
    assert not hasattr(unet.config, "to_json_string")


def test_an_adapter_of_diffusers_is_none_of_peft(unet):
    """`get_peft_model` in `add_adapter`, and the prefix in `save_adapter`."""
    wrapped = get_peft_model(UNet2DConditionModel.from_config(unet.config), LoraConfig(target_modules=["to_q"]))
    assert _is_peft_model(wrapped)
    assert all(name.startswith("base_model.model.") for name in get_peft_model_state_dict(wrapped))
    unet.add_adapter(LoraConfig(target_modules=["to_q"]))
    assert not _is_peft_model(unet)


def test_diffusers_mixes_names_of_adapters():
    """`save_adapter`, which leaves peft's names: in a file of both kinds, those of the first are not loaded."""
    names = ["attn1.to_q.lora_A.weight", "proj_in.lora_A.weight"]
    assert list(convert_state_dict_to_diffusers(dict.fromkeys(names))) == ["attn1.to_q.lora.down.weight", names[1]]


def test_diffusers_takes_the_rank_for_alpha():
    """`export_adapter`."""
    converted = convert_state_dict_to_kohya({"unet.a.to_q.lora_A.weight": torch.ones(4, 8)})
    assert converted["lora_unet_a_to_q.alpha"] == 4


def test_diffusers_names_only_transformer_blocks_as_repeated():
    """`trainer.compilation`."""
    assert UNet2DConditionModel._repeated_blocks == ["BasicTransformerBlock"]


def test_checkpointing_recomputes_with_the_parameters_of_the_backward_pass(unet):
    """`trainer.precision.checkpoint_block`: diffusers' own would recompute with other parameters than those it was called with."""
    unet.enable_gradient_checkpointing()
    copies = {name: p.to(torch.bfloat16) for name, p in unet.named_parameters()}
    inputs = (torch.randn(1, 4, 8, 8, dtype=torch.bfloat16), 1, torch.randn(1, 5, 8, dtype=torch.bfloat16))
    unet.train()
    output = torch.func.functional_call(unet, copies, inputs).sample
    with pytest.raises(Exception, match="dtype|BFloat16|metadata"):
        output.sum().backward()


def test_chroma_forgets_its_mask_when_it_recomputes():
    """`Chroma.checkpoint_activations`."""
    inputs = []
    denoiser = random_pipelines.chroma().transformer
    denoiser.enable_gradient_checkpointing(lambda block, *given: inputs.append(len(given)) or block(*given))
    hidden, mask = torch.randn(1, 4, 16), torch.ones(1, 7)
    denoiser(hidden, torch.randn(1, 3, 32), torch.ones(1), torch.zeros(4, 3), torch.zeros(3, 3), mask)
    assert inputs == [5, 5, 3, 3]  # of single-stream blocks: states, time and positions


def test_chroma_adds_its_mask():
    """`Chroma.encode_prompts`: a mask of numbers is added to the logits of attention, where one of truth values would mask."""
    *_, mask, _, _, _ = random_pipelines.chroma().encode_prompt("a fox", max_sequence_length=24)
    assert mask.dtype == torch.float32 and set(mask.flatten().tolist()) == {0, 1}


def test_z_image_writes_into_a_list_of_prompts():
    """`ZImage.encode_prompts`."""
    pipeline, prompts = random_pipelines.z_image(), ["a fox"]
    pipeline.tokenizer.chat_template = "user: {{ messages[0]['content'] }}"
    pipeline.encode_prompt(prompts, max_sequence_length=24)
    assert prompts == ["user: a fox"]


def test_accelerate_wraps_in_autocast_what_is_bfloat16_already(tmp_path, unet):
    """`accelerator.native_amp = False` in `DiffusionTrainer.__init__`."""
    args = TrainingArguments(str(tmp_path / "trainer"), use_cpu=True, report_to="none", bf16=True)
    trainer = Trainer(unet, args)
    assert trainer.accelerator.native_amp
    dtypes = []
    unet.conv_in.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    prepared = trainer.accelerator.prepare(unet)
    prepared(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 5, 8))
    trainer.accelerator.native_amp = False
    plain = trainer.accelerator.prepare(UNet2DConditionModel.from_config(unet.config))
    plain.conv_in.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    plain(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 5, 8))
    assert dtypes == [torch.bfloat16, torch.float32]


def test_zero3_partitions_whatever_is_loaded():
    """`zero_init_disabled`: the switch that is meant to prevent it does not (accelerate 1.15)."""
    plugin = DeepSpeedPlugin(zero_stage=3, zero3_init_flag=True)
    try:
        with plugin.zero3_init_context_manager(enable=False):
            assert hf_deepspeed.is_deepspeed_zero3_enabled()
    finally:
        hf_deepspeed.unset_hf_deepspeed_config()


def test_transformers_loads_in_the_dtype_of_the_file(tmp_path):
    """`copy_frozen`: a pipeline loaded without a dtype would mix it with diffusers' float32."""
    config = CLIPTextConfig(
        vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    CLIPTextModel(config).half().save_pretrained(tmp_path / "text")
    assert CLIPTextModel.from_pretrained(tmp_path / "text").dtype == torch.float16


def test_diffusers_loads_in_float32(unet, tmp_path):
    """`copy_frozen`, `export_pipeline`."""
    unet.half().save_pretrained(tmp_path / "unet")
    assert UNet2DConditionModel.from_pretrained(tmp_path / "unet").dtype == torch.float32
    assert diffusers.__version__ < "1"


def test_diffusers_asks_for_the_names_of_shards_offline(unet, tmp_path, monkeypatch):
    """`load_network`: it has to be told that there is no network, though HF_HUB_OFFLINE says so."""
    for name, value in {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": True}.items():
        monkeypatch.setattr(constants, name, value)
    commit = "0" * 40
    unet.save_pretrained(tmp_path / "models--org--unet" / "snapshots" / commit, max_shard_size="50KB")
    (tmp_path / "models--org--unet" / "refs").mkdir()
    (tmp_path / "models--org--unet" / "refs" / "main").write_text(commit)
    with pytest.raises(OfflineModeIsEnabled):
        UNet2DConditionModel.from_pretrained("org/unet")
    load_network(UNet2DConditionModel, "org/unet")


def _run(code: str) -> str:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return process.stdout.strip().splitlines()[-1]


def test_trainer_utils_imports_peft():
    """Else `craft_trl/trainer/base_config.py` need not keep it from that any more."""
    assert _run("import sys, transformers.trainer_utils; print('peft' in sys.modules)") == "True"


def test_training_arguments_without_peft():
    """Peft is imported when a model is compared with its classes, and the comparison is right then."""
    code = """
import sys
from craft_trl.trainer.diffusion_config import DiffusionConfig
before = "peft" in sys.modules
import transformers.trainer_utils as trainer_utils, transformers.utils.import_utils as import_utils
from torch import nn
plain = trainer_utils._is_peft_model(nn.Linear(2, 2))
after = "peft" in sys.modules
from peft import LoraConfig, get_peft_model
adapted = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"]))
same = trainer_utils.is_peft_available is import_utils.is_peft_available
print(before, plain, after, trainer_utils._is_peft_model(adapted), same)
"""
    assert _run(code) == "False False True True True"


def test_datatrove_waits_for_ever_for_a_process_that_was_killed(tmp_path):
    """`craft_trl.scripts.engines.Here`, which has no pool, and `craft_trl.scripts.tasks.Worker.in_child`, under Ray's."""
    pytest.importorskip("datatrove")
    code = (
        "import os, sys\n"
        "from datatrove.executor import LocalPipelineExecutor\n"
        "def step(data, rank, world_size):\n"
        "    open(f'{sys.argv[1]}/begun-{rank}', 'w').close()\n"
        "    os.kill(os.getpid(), 9)\n"
        "if __name__ == '__main__':\n"
        "    LocalPipelineExecutor([step], tasks=1, workers=2, logging_dir=sys.argv[1], start_method='fork').run()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun-0").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it would leave behind
        process.wait()
    from datatrove.executor.ray import RankWorker

    assert "with multiprocess.pool.Pool(processes=len(ranks)) as pool" in inspect.getsource(RankWorker.run_for_rank)
