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


"""Every family's denoiser trains the same with recomputed activations and compiled blocks, and nearly so in bfloat16."""

import functools

import pytest
import torch

from craft_trl import CraftTrainer
from craft_trl.families import get_family
from craft_trl.trainer.denoiser import load_denoiser

from ..helpers import config, make_dataset, stack
from .random_pipelines import CASES


SIZE = 32


@pytest.fixture(scope="module", params=CASES)
def make_trainer(request, tmp_path_factory):
    """Makes a trainer of a random pipeline; images and prompts are encoded once for all."""
    pipeline, folder = CASES[request.param](), tmp_path_factory.mktemp(request.param)
    pipeline.save_pretrained(folder / "pipeline")
    family = get_family(type(pipeline).__name__)
    embedded = family.no_guidance is None and family.takes_guidance(
        getattr(pipeline, family.denoiser).config, dict(pipeline.config)
    )

    def make(**options):
        settings = config(
            folder, text_encoder_dtype="float32", train_distilled=True, train_guidance_scale=4.0 if embedded else None,
            max_sequence_length=None if family.max_sequence_length is None else 24, **options,
        )  # fmt: skip
        return CraftTrainer(str(folder / "pipeline"), settings, make_dataset([1.0, 0.5, 2.0], SIZE))

    return make


@pytest.fixture(scope="module")
def plain(make_trainer):
    """Loss, gradient and calls of blocks in float32."""
    return step(make_trainer())


def step(trainer):
    """Loss of a batch, its gradient as one vector, and how often a repeated block was called for it."""
    denoiser, calls = trainer.model.train(), []
    handles = [
        block.register_forward_pre_hook(
            lambda *_: calls.append(1)
        )  # a block that is recomputed need not come to its end
        for block in denoiser.modules()
        if type(block).__name__ in trainer.family.repeated_blocks
    ]
    batch = stack(trainer, range(3))
    if trainer.family.noise == "flow":
        # Some denoisers, FLUX's too, round noise levels to their dtype before they embed them, in drawing as well, some of them
        # between 0 and 1: these stay.
        batch["timesteps"] = torch.tensor([500.0, 250.0, 125.0])
    loss = trainer.compute_loss(denoiser, batch)
    loss.backward()
    for handle in handles:
        handle.remove()
    gradients = [parameter.grad.flatten() for parameter in denoiser.parameters() if parameter.requires_grad]
    assert {gradient.dtype for gradient in gradients} == {torch.float32} and handles
    return loss.detach(), torch.cat(gradients), len(calls)


def test_activation_checkpointing(make_trainer, plain):
    loss, gradient, calls = step(make_trainer(activation_checkpointing=True))
    assert (
        plain[2] < calls <= 2 * plain[2]
    )  # diffusers computes all blocks again but for refiners, such as those of Lumina 2
    torch.testing.assert_close(loss, plain[0])
    assert (gradient - plain[1]).norm() < 1e-5 * plain[1].norm()


def test_bfloat16(make_trainer, plain):
    half = step(make_trainer(bf16=True))
    torch.testing.assert_close(half[0], plain[0], rtol=0.02, atol=0)

    assert torch.cosine_similarity(half[1], plain[1], dim=0) > 0.998
    assert not torch.equal(half[1], plain[1])
    loss, gradient, calls = step(make_trainer(bf16=True, activation_checkpointing=True))
    assert (
        plain[2] < calls <= 2 * plain[2]
    )  # diffusers computes all blocks again but for refiners, such as those of Lumina 2
    torch.testing.assert_close(loss, half[0])
    assert (gradient - half[1]).norm() < 1e-5 * half[1].norm()


def test_bfloat16_is_that_of_drawing(make_trainer):
    """Noise levels that bfloat16 does not hold are told to the denoiser as one that is in bfloat16 is told them in drawing."""
    trainer = make_trainer(bf16=True)
    batch = stack(trainer, range(3))
    if trainer.family.noise == "flow":
        batch["timesteps"] = torch.tensor([937.3, 501.7, 250.9])
    noisy = trainer.noise_process.add(batch["latents"], batch["noise"], batch["timesteps"]).bfloat16()
    conditioning = {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}
    drawn_with = load_denoiser(trainer.source).to(torch.bfloat16)
    with torch.no_grad():
        expected = trainer.family.predict(drawn_with, noisy, batch["timesteps"], conditioning).float()
        difference = trainer.predict(trainer.model, batch).float() - expected
    assert difference.norm() < 0.01 * expected.norm()


def test_compiled_blocks(make_trainer, plain, monkeypatch):
    # Code generation for a CPU takes minutes: take the graphs that it would get and run them as they are.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    trainer = make_trainer(compile_blocks=True)
    assert sum(module._compiled_call_impl is not None for module in trainer.model.modules()) == plain[2]
    loss, gradient, _ = step(trainer)
    torch.testing.assert_close(loss, plain[0])
    assert (gradient - plain[1]).norm() < 1e-5 * plain[1].norm()
