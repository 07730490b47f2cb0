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


"""Plans of every family: small pipelines against their real work, and published configurations of full size without weights."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from craft_trl.candidates.config import SamplingConfig
from craft_trl.candidates.loading import load_pipeline
from craft_trl.cli.main import main
from craft_trl.planning.gpus import find_gpu
from craft_trl.planning.images import Counts
from craft_trl.planning.memory import Profile
from craft_trl.planning.operations import MetaPipeline, tables
from craft_trl.planning.planner import Planner
from craft_trl.planning.recipes import RunRecipes
from craft_trl.trainer.precision import encoding_dtypes

from ..families.random_pipelines import CASES


SIZE = 32


def operations(work) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # it does not know of attention as CPUs have it
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_the_real_work(name, tmp_path):
    """Without a weight: operations, texts with their masks, and parameters."""
    CASES[name]().save_pretrained(tmp_path)
    meta, real = MetaPipeline(str(tmp_path)), load_pipeline(str(tmp_path))
    family = meta.family
    denoiser = getattr(real, family.denoiser)
    assert meta.parameters(family.denoiser) == sum(p.numel() for p in denoiser.parameters())
    got = meta.conditioning()
    with torch.no_grad():
        expected = family.encode_prompts(real, ["a prompt"])
    assert {n: (v.shape, v.dtype) for n, v in got.items()} == {n: (v.shape, v.dtype) for n, v in expected.items()}
    assert all(torch.equal(got[n], v) for n, v in expected.items() if not v.is_floating_point())

    counts = Counts.of(meta, SIZE, SIZE)
    assert counts.text.flops == operations(lambda: family.encode_prompts(real, ["a prompt"]))
    inputs = {
        n: torch.zeros(v.shape, dtype=v.dtype) for n, v in meta.inputs(SIZE, SIZE).items() if n != "conditioning"
    }
    images = family.image_conditioning(denoiser.config, SIZE, SIZE, 1.0)
    conditioning = expected | {n: v[None] for n, v in images.items()}
    call = (denoiser, inputs["latents"], inputs["timesteps"], conditioning)
    assert counts.denoising.flops == operations(lambda: family.predict(*call))
    latents = family.as_returned(inputs["latents"])
    assert counts.decoding.flops == operations(lambda: family.decode_latents(real, latents, SIZE, SIZE))
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    assert meta.count_encoding(SIZE, SIZE).flops == operations(lambda: family.encode_images(real, pixels))

    frozen = sum(p.numel() for n, p in denoiser.named_parameters() if n.startswith(family.untrained(denoiser.config)))
    training, trained = meta.count_training(SIZE, SIZE)
    assert trained == meta.parameters(family.denoiser) - frozen
    assert 2.7 * counts.denoising.flops < training.flops < 3.01 * counts.denoising.flops


def test_stable_diffusion_3_5_medium(sd35):
    meta = MetaPipeline(str(sd35), dtype=torch.bfloat16)
    assert meta.size(SamplingConfig()) == (1024, 1024)
    assert [meta.parameters(name) for name in ("transformer", "text_encoder_3", "vae")] == [
        2_243_171_520, 4_762_310_656, 83_819_683,
    ]  # fmt: skip
    counts = Counts.of(meta, 1024, 1024)
    assert counts.denoising.flops == pytest.approx(11.25e12, rel=1e-3)
    # 24 blocks of T5 on 256 tokens, and CLIP's two
    assert counts.text.flops == pytest.approx(2 * 256 * 4_630_000_000 + 0.11e12 + 0.03e12, rel=0.02)
    assert counts.decoding.flops == pytest.approx(10.47e12, rel=1e-3)
    assert [meta.steps(28), meta.steps(28, "FlowMatchHeunDiscreteScheduler")] == [28, 55]
    less = MetaPipeline(str(sd35)).conditioning(77)
    assert less["prompt_embeds"].shape == (1, 77 + 77, 4096)
    # While prompts are encoded: CLIP's states are in float32, and so are T5's beside them.
    meta.cast(encoding_dtypes(meta.files))
    assert meta.weights("text_encoder", "text_encoder_2") == 4 * (123_650_304 + 694_659_840)
    assert meta.weights("text_encoder_3") == 2 * 4_762_310_656
    assert meta.weights("transformer") == 4 * (2_243_171_520 + 384**2 * 1536)  # with a table of positions
    assert sum(value.nbytes for value in meta.conditioning().values()) == 4 * (333 * 4096 + 2048)


def test_flux_dev(flux):
    meta = MetaPipeline(str(flux), dtype=torch.bfloat16)
    assert meta.size(SamplingConfig()) == (1024, 1024)
    assert meta.parameters("transformer") == pytest.approx(11.90e9, rel=1e-3)
    assert meta.count_denoising(1024, 1024).flops == pytest.approx(74.4e12, rel=1e-3)
    assert meta.family.calls(3.5) == 1 and meta.steps(28) == 28  # with a shift that depends on the size
    assert sum(value.nbytes for value in meta.conditioning().values()) == 2 * (512 * 4096 + 768)
    meta.cast(encoding_dtypes(meta.files))
    # 9.5 GB of T5 in bfloat16, 0.5 GB of CLIP and 0.3 GB of the VAE in float32
    assert meta.weights("text_encoder", "text_encoder_2", "vae") == pytest.approx(10.35e9, rel=1e-3)


@pytest.fixture
def planned(recipes, tmp_path):
    """A function that plans the tiny recipes with a small Stable Diffusion 3."""
    model = tmp_path / "model"
    CASES["stable_diffusion_3"]().save_pretrained(model)
    recipes("candidates", model_name_or_path=str(model), height=SIZE, width=SIZE, max_sequence_length=20)
    recipes(
        "evaluate", models=[f"base={model}", "craft=runs/tiny/model"], height=SIZE, width=SIZE, max_sequence_length=20
    )

    def make(**settings):
        recipes("craft", model_name_or_path=str(model), max_sequence_length=20, **settings)
        loaded = RunRecipes.load(recipes.folder)
        return MetaPipeline(str(model)), Planner(loaded, Profile(1, 0, "bfloat16"), find_gpu("a100:40"), pass_rate=0.5)

    return make


def test_memory_and_disk_by_hand(planned):
    meta, plan = planned(activation_checkpointing=False)
    transformer, vae, t5 = (meta.parameters(name) for name in ("transformer", "vae", "text_encoder_3"))
    clip = meta.parameters("text_encoder", "text_encoder_2")
    assert plan.frozen_bytes == 4 * (vae + clip) + 2 * t5 and plan.text_dtype == torch.bfloat16
    assert plan.encode_memory == plan.frozen_bytes + meta.count_encoding(SIZE, SIZE).activations
    # All but what no output depends on: the queries of the last block's text
    untrained = 32 * 32 + 32
    assert not plan.adapter and plan.trained_parameters == transformer - untrained
    assert plan.model_bytes == 4 * transformer + plan.frozen_bytes
    assert plan.checkpoint_bytes == 4 * 3 * plan.trained_parameters
    # An image: mean and deviation of four channels, as large as the image. A prompt: 32 tokens of CLIP and 20 of T5, and the
    # pooled states; and the empty prompt.
    assert plan.latent_bytes == 2 * 4 * 4 * SIZE * SIZE and plan.prompt_bytes == 4 * (52 * 64 + 64)
    encoded = plan.kept_images * plan.latent_bytes + (plan.kept_groups + 1) * plan.prompt_bytes
    assert plan._training_disk() == plan.model_bytes + plan.num_saves * plan.checkpoint_bytes + encoded
    activations = plan.training.micro_batch * plan.training.activations
    static = 18 * plan.trained_parameters + 2 * untrained + tables(meta.denoiser)
    assert tables(meta.denoiser) > 0  # of positions
    assert plan.training_memory == max(static + activations, plan.encode_memory)


def test_an_adapter(planned):
    meta, plan = planned(use_peft=True, lora_r=2, text_encoder_dtype="float32", train_prompt="expanded")
    # Eight projections of 32 x 32 in each of two blocks, but the last block makes nothing of the text, and asks it nothing.
    assert plan.adapter and plan.trained_parameters == (8 + 6) * 2 * (32 + 32)
    assert plan.model_bytes == 4 * plan.trained_parameters and plan.frozen_bytes == meta.weights() - meta.weights(
        "transformer"
    )
    prompts = plan.kept_images + 1
    assert plan._training_disk() == plan.model_bytes + plan.num_saves * plan.checkpoint_bytes + (
        plan.kept_images * plan.latent_bytes + prompts * plan.prompt_bytes
    )


def test_calls_are_said(planned, capsys, recipes):
    _, plan = planned()
    assert ", 2 calls x 2" in plan.plan().stages[1].work
    assert main(["plan", str(recipes.folder), "--gpu", "a100:40", "--candidates.guidance_scale", "1"]) == 0
    said = capsys.readouterr().out
    assert "images of 32x32, 2 calls " in said and "2 calls x" not in said
