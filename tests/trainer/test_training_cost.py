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

from collections import Counter

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from craft_trl import CraftTrainer
from craft_trl.trainer import reference
from craft_trl.trainer.denoiser import keep_mode
from craft_trl.trainer.precision import compute_in_bfloat16, in_bfloat16, modules_of

from ..helpers import config, make_dataset, stack
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


class Operations(TorchDispatchMode):
    """Counts what PyTorch is asked to do inside, by the name of the operation and the dtype of what comes out."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.counts[function.overloadpacket.__name__, getattr(result, "dtype", None)] += 1
        return result


def test_each_parameter_is_cast_once_for_a_micro_batch(trainer, monkeypatch):
    """And nothing looks for parameters by name, which takes longer than the casts."""
    looked = []
    monkeypatch.setattr(nn.Module, "named_modules", lambda *args, **kwargs: looked.append(args) or iter(()))
    batch = stack(trainer, range(4))
    with Operations() as operations:
        loss = trainer.compute_loss(trainer.model, batch)
    assert looked == []
    monkeypatch.undo()
    parameters = list(trainer.model.parameters())
    # Beside the parameters: the noised latents, the prompt in two forms, and the embeddings of the timestep and of the size.
    assert operations.counts["_to_copy", torch.bfloat16] == len(parameters) + 5
    with Operations() as operations:
        loss.backward()
    # And what is cast to bfloat16 above is, where it has a gradient.
    assert operations.counts["_to_copy", torch.float32] == len(parameters)
    assert all(p.grad.dtype == torch.float32 for p in parameters)


class TestInBfloat16:
    @pytest.fixture
    def module(self):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.Linear(8, 8, bias=False))
        module[3].weight = module[0].weight  # one in two places
        module[2].bias.requires_grad_(False)
        return module

    def test_is_functional_call(self, module):
        x = torch.randn(4, 8).bfloat16()
        copies = {name: p.to(torch.bfloat16) for name, p in module.named_parameters()}
        expected = functional_call(module, copies, (x,))
        expected.sum().backward()
        gradients = [p.grad for p in module.parameters()]
        module.zero_grad()
        before = dict(module.named_parameters(remove_duplicate=False))
        with in_bfloat16(module):
            assert module[0].weight is module[3].weight and module[0].weight.dtype == torch.bfloat16
            y = module(x)
        assert torch.equal(y, expected)
        y.sum().backward()
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            assert parameter.grad is gradient is None or torch.equal(parameter.grad, gradient)
        assert gradients.count(None) == 1
        after = dict(module.named_parameters(remove_duplicate=False))
        assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)

    def test_parameters_come_back_after_an_error(self, module):
        before = list(module.parameters())
        with pytest.raises(KeyboardInterrupt), in_bfloat16(module):
            raise KeyboardInterrupt
        assert all(a is b for a, b in zip(before, module.parameters(), strict=True))

    def test_what_is_in_bfloat16_is_not_copied(self, module):
        module.requires_grad_(False).bfloat16()
        weight = module[0].weight
        with in_bfloat16(module):
            assert module[0].weight is weight

    def test_modules(self, module):
        module.append(module[0])
        module.append(nn.ModuleList())
        module.register_module("nothing", None)
        assert sorted(map(id, modules_of(module))) == sorted(map(id, module.modules()))


class TestMode:
    def test_is_set_where_it_is_another(self, tiny):
        unet = UNet2DConditionModel.from_pretrained(tiny / "pipeline", subfolder="unet")
        keep_mode(unet)
        assert not any(module.training for module in unet.modules())
        assert unet.train() is unet and all(module.training for module in unet.modules())
        unet.mid_block.eval()
        unet.train()
        assert all(module.training for module in unet.modules())
        assert unet.eval() is unet and not any(module.training for module in unet.modules())

    def test_nothing_is_set_for_a_micro_batch(self, trainer, monkeypatch):
        setting, usual = [], nn.Module.train

        def train(module, mode=True):
            setting.append(mode)
            return usual(module, mode)

        monkeypatch.setattr(nn.Module, "train", train)
        trainer.model.train()
        setting.clear()
        trainer.train()
        assert setting == []


def test_the_reference_is_cast_where_it_is_another(tiny, tmp_path, monkeypatch):
    make_pipeline("sdxl", "epsilon", tiny).save_pretrained(tmp_path / "source")
    args = config(tmp_path, negative_advantages="proximal", max_steps=1)
    trainer, casts = CraftTrainer(str(tmp_path / "source"), args, make_dataset()), []
    monkeypatch.setattr(reference, "cast", lambda module, dtype: casts.append(dtype) or module.to(dtype))
    trainer.train()
    assert casts == []
    trainer.model.double()  # as DeepSpeed casts it to bfloat16
    for _ in range(2):
        assert trainer.predict_reference(stack(trainer, range(2))).dtype == torch.float64
    assert casts == [torch.float64]


@pytest.mark.parametrize("bf16", [False, True])
def test_no_step_waits_for_the_device(tiny, tmp_path, bf16):
    """From the first micro-batch of a step to its end nothing asks for a value, for which a GPU would have to be waited for."""
    make_pipeline("sdxl", "epsilon", tiny).save_pretrained(tmp_path / "source")
    args = config(tmp_path, bf16=bf16, global_batch_size=8, snr_gamma=5.0, max_steps=3)
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.operations = Operations()
            self.operations.__enter__()

        def on_step_end(self, args, state, control, **kwargs):
            self.operations.__exit__(None, None, None)
            seen.append(self.operations.counts)

    CraftTrainer(str(tmp_path / "source"), args, make_dataset(), callbacks=[Watch()]).train()
    assert len(seen) == 3
    for counts in seen:
        names = {name for name, _ in counts}
        assert {"convolution_backward", "_fused_adamw_", "_foreach_norm"} <= names
        assert not names & {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique"}


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
