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

"""bfloat16 modules on float32 master weights, compiled blocks, and channels_last."""

import functools

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file

from craft_trl import CraftTrainer
from craft_trl.errors import UsageError

from ..helpers import config, make_dataset, stack, warnings_of, weights
from ..pipelines import make_pipeline


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    make_pipeline("sdxl", "epsilon", tiny).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make_trainer(source, tmp_path):
    def make(name="out", lora=False, callbacks=None, **settings):
        peft_config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian") if lora else None
        torch.manual_seed(0)
        args = config(tmp_path, name, **settings)
        return CraftTrainer(source, args, make_dataset(), None, peft_config, callbacks)

    return make


def gradient(trainer):
    """Gradient of one batch, as one vector."""
    trainer.accelerator.prepare(trainer.model)  # where the Trainer's autocast comes from
    trainer.compute_loss(trainer.model, stack(trainer, range(6))).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])


class TestBfloat16:
    @pytest.mark.parametrize("mode", ["module", "autocast"])
    def test_gradient_points_where_the_float32_one_does(self, make_trainer, mode):
        reference = gradient(make_trainer("a"))
        half = gradient(make_trainer("b", bf16=True, bf16_mode=mode))
        assert half.dtype == torch.float32
        assert torch.cosine_similarity(reference, half, dim=0) > 0.998
        assert not torch.equal(reference, half)

    @pytest.mark.parametrize("lora", [False, True])
    def test_nothing_is_said_of_it(self, make_trainer, lora):
        with warnings_of("diffusers") as said:
            make_trainer(bf16=True, lora=lora, validation_prompts=["a fox"], validation_num_inference_steps=1).train()
        assert said == []

    @pytest.mark.parametrize("lora", [False, True])
    def test_every_layer_computes_in_bfloat16_and_every_master_weight_is_float32(self, make_trainer, lora):
        trainer = make_trainer(bf16=True, lora=lora)
        dtypes = {}

        def record(module, args, output):
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm)):
                dtypes.setdefault(type(module).__name__, set()).update((module.weight.dtype, output.dtype))

        handle = torch.nn.modules.module.register_module_forward_hook(record)
        trainer.train()
        handle.remove()
        assert dtypes.keys() == {"Linear", "Conv2d", "GroupNorm", "LayerNorm"}
        assert all(seen == {torch.bfloat16} for seen in dtypes.values())
        assert {p.dtype for p in trainer.trainable_parameters()} == {torch.float32}
        assert {s["exp_avg"].dtype for s in trainer.optimizer.state.values()} == {torch.float32}
        frozen = {p.dtype for p in trainer.model.parameters() if not p.requires_grad}
        assert frozen == ({torch.bfloat16} if lora else set())

    def test_micro_batches_are_summed_in_float32(self, make_trainer):
        """Two halves of a batch give the sum of their gradients exactly, which no bfloat16 number could hold."""
        trainer = make_trainer(bf16=True)
        halves = []
        for ks in (range(3), range(3, 6)):
            trainer.compute_loss(trainer.model, stack(trainer, ks)).backward()
            halves.append([p.grad.clone() for p in trainer.model.parameters()])
            trainer.model.zero_grad()
        for ks in (range(3), range(3, 6)):
            trainer.compute_loss(trainer.model, stack(trainer, ks)).backward()
        for parameter, a, b in zip(trainer.model.parameters(), *halves, strict=True):
            assert torch.equal(parameter.grad, a + b)
        assert any((p.grad != p.grad.bfloat16()).any() for p in trainer.model.parameters())

    def test_small_updates_are_not_lost(self, make_trainer):
        """A step of 1e-6 is below the resolution of a bfloat16 weight."""
        trainer = make_trainer(bf16=True, learning_rate=1e-6, max_grad_norm=0.0)
        before = weights(trainer)
        trainer.train()
        moved = [(value - before[name]).abs().max() for name, value in trainer.model.state_dict().items()]
        assert all(0 < change < 3e-6 for change in moved)

    def test_activation_checkpointing_changes_nothing(self, make_trainer):
        plain = make_trainer("a", bf16=True)
        checkpointed = make_trainer("b", bf16=True, activation_checkpointing=True)
        plain.train()
        checkpointed.train()
        for a, b in zip(plain.model.parameters(), checkpointed.model.parameters(), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("lora", [False, True])
    def test_resuming_is_exact(self, make_trainer, tmp_path, lora):
        settings = {"bf16": True, "lora": lora, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
        whole = make_trainer("whole", **settings)
        whole.train()
        resumed = make_trainer("resumed", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        a, b = weights(whole), weights(resumed)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    def test_validation_images_leave_the_master_weights_alone(self, make_trainer, tmp_path):
        settings = {"bf16": True, "lora": True}
        plain = make_trainer("a", **settings)
        drawn = make_trainer(
            "b", validation_prompts=["a fox"], validation_num_inference_steps=1, validation_steps=1, **settings
        )
        plain.train()
        drawn.train()
        assert (tmp_path / "b" / "validation" / "step-00002.png").exists()
        a, b = weights(plain), weights(drawn)
        assert all(torch.equal(a[name], b[name]) for name in a)

    def test_unknown_mode(self, tmp_path):
        with pytest.raises(UsageError, match="bf16_mode must be 'module' or 'autocast', got 'pure'"):
            config(tmp_path, bf16_mode="pure")


class OnACPU(CraftTrainer):
    """Under fp16 without accelerate's autocast and scaler, which it (1.15) refuses on a CPU: the tests have those of PyTorch."""

    def _build_accelerator_args(self, **kwargs):
        return super()._build_accelerator_args(**kwargs) | {"mixed_precision": "no"}


class TestFloat16:
    """A frozen base in float16 under an adapter in float32, autocast, and a scaled loss: what fp16 is on a GPU."""

    def test_gradient_of_an_adapter(self, source, make_trainer, tmp_path):
        reference = gradient(make_trainer("a", lora=True))
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
        trainer = OnACPU(source, config(tmp_path, "b", fp16=True), make_dataset(), None, lora)
        assert {p.dtype for p in trainer.model.parameters() if not p.requires_grad} == {torch.float16}
        assert {p.dtype for p in trainer.trainable_parameters()} == {torch.float32}

        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        optimizer = torch.optim.AdamW(trainer.trainable_parameters(), lr=1e-3, weight_decay=0.0)
        before = weights(trainer)
        with torch.autocast("cpu", torch.float16):
            loss = trainer.compute_loss(trainer.model, stack(trainer, range(6)))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        half = torch.cat([p.grad.flatten() for p in trainer.trainable_parameters()])
        assert half.dtype == torch.float32 and not torch.equal(half, reference)
        assert torch.cosine_similarity(reference, half, dim=0) > 0.998
        torch.testing.assert_close(half.norm(), reference.norm(), rtol=0.02, atol=0)
        scaler.step(optimizer)
        changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
        assert changed == {name for name in before if "lora_B" in name}  # those that are not multiplied by 0 at first


class TestCompiledBlocks:
    def test_training(self, make_trainer, monkeypatch):
        # Code generation for a CPU takes minutes: take the graphs that it would get and run them as they are.
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        plain = make_trainer("plain", bf16=True, max_steps=1)
        plain.train()
        compiled = make_trainer("compiled", bf16=True, max_steps=1, compile_blocks=True)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        compiled.train()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
        a, b = weights(plain), weights(compiled)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    @pytest.mark.parametrize("lora", [False, True])
    def test_names_stay(self, make_trainer, tmp_path, lora):
        for name, compile_blocks in (("plain", False), ("compiled", True)):
            trainer = make_trainer(name, lora=lora, compile_blocks=compile_blocks)
            blocks = [type(module).__name__ for module in trainer.model.modules()]
            expected = blocks.count("BasicTransformerBlock") + blocks.count("ResnetBlock2D")
            compiled = sum(module._compiled_call_impl is not None for module in trainer.model.modules())
            assert compiled == (expected if compile_blocks else 0) and expected > 2
            trainer.save_model()
        file = "pytorch_lora_weights.safetensors" if lora else "unet/diffusion_pytorch_model.safetensors"
        saved, usual = (load_file(tmp_path / name / file) for name in ("compiled", "plain"))
        assert saved.keys() == usual.keys()

    def test_whole_model_compilation_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match="use compile_blocks instead"):
            config(tmp_path, torch_compile=True)


def test_channels_last(make_trainer, tmp_path):
    plain, strided = make_trainer("a"), make_trainer("b", channels_last=True)
    assert strided.model.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    plain.train()
    strided.train()
    for a, b in zip(plain.model.parameters(), strided.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    strided.save_model()
    saved = UNet2DConditionModel.from_pretrained(tmp_path / "b", subfolder="unet").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in weights(strided).items())
