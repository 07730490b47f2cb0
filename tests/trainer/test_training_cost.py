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

"""What a training step costs, counted without running it at full size: operations, calls and memory."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from craft_trl import CraftTrainer
from craft_trl.trainer.precision import compute_in_bfloat16

from ..helpers import config, make_dataset
from ..pipelines import make_pipeline


@pytest.fixture
def trainer(tiny, tmp_path):
    make_pipeline("sdxl", "epsilon", tiny).save_pretrained(tmp_path / "source")
    args = config(tmp_path, bf16=True, global_batch_size=8)
    return CraftTrainer(str(tmp_path / "source"), args, make_dataset())


def test_operations_of_a_training_step(trainer, benchmark_train):
    """
    The step at full size, SDXL at 1024 px: a forward pass of the UNet and a backward pass of twice as much, nothing else.
    The counts are those of the UNet alone; two thirds of it more would be a second forward pass, of recomputed activations.
    """
    with torch.device("meta"):
        unet, batch = benchmark_train.make_denoiser("sdxl"), benchmark_train.make_batch("sdxl", 1)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    compute_in_bfloat16(unet)
    trainer.model = unet
    with FlopCounterMode(display=False) as counter:
        loss = trainer.compute_loss(unet, batch)
        assert counter.get_total_flops() == pytest.approx(6.761e12, rel=1e-4)
        loss.backward()
    assert counter.get_total_flops() == pytest.approx(benchmark_train.TFLOP["sdxl"] * 1e12, rel=1e-4)
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in unet.parameters())


def test_calls_of_a_training_run(trainer):
    """Neither the VAE nor a text encoder is called; the UNet is called once for each micro-batch that has a weight."""
    called = []
    names = {"AutoencoderKL", "Encoder", "Decoder", "CLIPTextModel", "CLIPTextModelWithProjection"}
    names |= {"UNet2DConditionModel"}
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: called.append(type(module).__name__) if type(module).__name__ in names else None
    )
    trainer.train()
    handle.remove()
    assert called == ["UNet2DConditionModel"] * trainer.args.max_steps * trainer.args.gradient_accumulation_steps
    assert trainer.args.gradient_accumulation_steps == 2


def test_memory_is_counted(benchmark_memory):
    """By hand: a weight of 1000 x 1000, its product with one row, and what the backward pass of a square keeps."""
    with torch._subclasses.fake_tensor.FakeTensorMode(), benchmark_memory.PeakMemory() as memory:
        weight = torch.zeros(1000, 1000, requires_grad=True)
        x = torch.zeros(1, 1000)
        assert memory.live == 4 * (1000 * 1000 + 1000)
        y = (x @ weight).square()
        assert memory.live == 4 * (1000 * 1000 + 3 * 1000)  # the product is kept for the backward pass of the square
        view = y.view(10, 100)
        assert memory.live == 4 * (1000 * 1000 + 3 * 1000)
        del y, view
        assert memory.live == 4 * (1000 * 1000 + 1000)
        assert memory.peak == 4 * (1000 * 1000 + 3 * 1000)
