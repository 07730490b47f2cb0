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

"""FLUX.2, Sana, PixArt, Lumina 2 and AuraFlow: what is refused of them and what is not, their sizes, texts and noise levels."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2 import pipeline_flux2, pipeline_flux2_klein

from craft_trl import CraftTrainer, ImageGenerator, SamplingConfig
from craft_trl.errors import UsageError
from craft_trl.families import FAMILIES, get_family
from craft_trl.families.checks import check_model
from craft_trl.families.latents import normalise
from craft_trl.families.pipelines import flux2 as flux2_family

from ..helpers import config, make_dataset
from ..models import edit, linked
from .random_pipelines import aura_flow, flux2, flux2_klein, lumina2, pixart, sana


PIPELINES = {
    "flux2": flux2, "klein": flux2_klein, "klein-4-steps": lambda: flux2_klein(is_distilled=True), "sana": sana,
    "sigma": pixart, "alpha": lambda: pixart(diffusers.PixArtAlphaPipeline, 128), "lumina2": lumina2,
    "aura_flow": aura_flow,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, make in PIPELINES.items():
        make().save_pretrained(folder / name)
    return folder


def refused(model, reason, **asked):
    with pytest.raises(UsageError, match=reason) as error:
        check_model(str(model), **asked)
    assert "\n" not in str(error.value)


DRAWING = {
    "negative prompt": (
        "flux2",
        {"negative_prompt": "dull", "guidance_scale": 4.0},
        "negative_prompt 'dull': guidance_scale 4 of a Flux2Pipeline leads away from nothing, leave it out",
    ),
    "negative prompt without guidance": (
        "klein-4-steps",
        {"negative_prompt": "dull", "guidance_scale": 1.0},
        "negative_prompt 'dull': guidance_scale 1 of a Flux2KleinPipeline leads away from nothing",
    ),
    "guidance": (
        "klein-4-steps",
        {"guidance_scale": 4.0},
        "guidance_scale 4.0: .*klein-4-steps was distilled to draw without guidance, set it to 1",
    ),
    "rescale": ("lumina2", {"guidance_rescale": 0.7}, "guidance_rescale 0.7: the Lumina2Pipeline has none"),
    "size of sana": ("sana", {"height": 1000}, "height of a SanaPipeline must be a multiple of 32, got 1000"),
    "size of lumina2": ("lumina2", {"width": 1000}, "width of a Lumina2Pipeline must be a multiple of 16, got 1000"),
    "size of aura_flow": (
        "aura_flow",
        {"width": 64},
        "width of a AuraFlowPipeline must be 32 or less, for which it has positions, got 64",
    ),
    "scheduler of sana": ("sana", {"scheduler": "DDIMScheduler"}, "scheduler DDIMScheduler .*a SanaPipeline.*FlowMatchE"),
    "scheduler of pixart": (
        "sigma",
        {"scheduler": "FlowMatchEulerDiscreteScheduler"},
        "scheduler FlowMatchEulerDiscreteScheduler .*a PixArtSigmaPipeline.*DDIMScheduler",
    ),
    "scheduler of flux2": (
        "flux2",
        {"scheduler": "UniPCMultistepScheduler"},
        "scheduler UniPCMultistepScheduler .*a Flux2Pipeline.* FlowMatchEulerDiscreteScheduler.$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWING)
def test_drawing(name, folders):
    model, settings, reason = DRAWING[name]
    refused(folders / model, reason, drawing=SamplingConfig(**settings))


TRAINING = {
    "distilled": ("klein-4-steps", {}, "klein-4-steps seems to be distilled to draw in a few steps, which training on"),
    "no scale": ("flux2", {}, "train_guidance_scale is missing: the guidance_scale of a Flux2Pipeline is an input"),
    "scale": ("klein", {"train_guidance_scale": 4.0}, "train_guidance_scale 4.0: the denoiser of a Flux2KleinPipeline"),
    "shift": ("alpha", {"timestep_shift": 3.0}, "timestep_shift 3.0: it is for models of flow matching, and this one is of"),
    "sampling": ("sigma", {"timestep_sampling": "uniform"}, "timestep_sampling uniform: it is for models of flow matching"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINING)
def test_training(name, folders, tmp_path):
    model, settings, reason = TRAINING[name]
    refused(folders / model, reason, train=config(tmp_path, **settings))


@pytest.mark.parametrize(
    ("model", "change", "reason"),
    [
        ("sana", {"prediction_type": "epsilon"}, "its scheduler is DPMSolverMultistepScheduler with prediction_type epsilon"),
        ("sana", {"_class_name": "DDIMScheduler"}, "its scheduler is DDIMScheduler"),
        ("sigma", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "its scheduler is FlowMatchEulerDiscreteScheduler, another"),
        ("alpha", {"use_flow_sigmas": True}, "DPMSolverMultistepScheduler with continuous noise levels, another"),
    ],
)  # fmt: skip
def test_schedulers_of_another_process(model, change, reason, folders, tmp_path):
    folder = linked(folders / model, tmp_path / "model")
    edit(folder, "scheduler/scheduler_config.json", **change)
    refused(folder, reason)


@pytest.mark.parametrize("model", PIPELINES)
def test_what_is_not_refused(model, folders, tmp_path):
    embedded, length = 4.0 if model == "flux2" else None, 299 if model == "lumina2" else 512
    train = config(
        tmp_path, max_sequence_length=length, train_distilled="steps" in model, train_guidance_scale=embedded,
        proportion_empty_prompts=0.1,
    )  # fmt: skip
    guidance = 1.0 if "steps" in model else 4.0
    drawing = SamplingConfig(max_sequence_length=length, guidance_scale=guidance, height=32, width=32)
    check_model(str(folders / model), drawing=drawing, train=train)


@pytest.mark.parametrize(
    ("model", "size", "reason"), [("sana", 40, "a multiple of 32"), ("aura_flow", 64, "32 or less")]
)
def test_images_of_another_size_are_not_trained_on(model, size, reason, folders, tmp_path):
    with pytest.raises(UsageError, match=f"height of a .* must be {reason}"):
        CraftTrainer(str(folders / model), config(tmp_path), make_dataset([1.0] * 4, size))
    assert not (tmp_path / "out" / "encoded.safetensors").exists()


KL = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16}
# Configurations as they are published: height and width, what they are multiples of, channels of the latents.
PUBLISHED = {
    "Flux2Pipeline": ({"in_channels": 128}, KL | {"latent_channels": 32}, (1024, 1024), 16, 128),
    "Flux2KleinPipeline": ({"in_channels": 128}, KL | {"latent_channels": 32}, (1024, 1024), 16, 128),
    "SanaPipeline": (
        {"sample_size": 32}, {"encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024], "latent_channels": 32},
        (1024, 1024), 32, 32,
    ),
    "PixArtSigmaPipeline": ({"sample_size": 256}, KL | {"latent_channels": 4}, (2048, 2048), 16, 4),
    "PixArtAlphaPipeline": ({"sample_size": 64}, KL | {"latent_channels": 4}, (512, 512), 16, 4),
    "Lumina2Pipeline": ({"sample_size": 128}, KL, (1024, 1024), 16, 16),
    "AuraFlowPipeline": ({"sample_size": 64}, KL | {"latent_channels": 4}, (512, 512), 16, 4),
}  # fmt: skip


@pytest.mark.parametrize("pipeline_class", PUBLISHED)
def test_sizes_and_lengths_are_the_pipelines(pipeline_class):
    denoiser, vae, size, multiple, channels = PUBLISHED[pipeline_class]
    family = FAMILIES[pipeline_class]
    assert (family.size(denoiser, vae), family.size_multiple(vae), family.latent_channels(vae)) == (
        size,
        multiple,
        channels,
    )
    called = inspect.signature(getattr(diffusers, pipeline_class).__call__).parameters
    assert family.max_sequence_length == called["max_sequence_length"].default


def test_shift_of_flux2():
    """Levels are those of the steps that both pipelines take by default: for 1024 pixels in 50 steps, mu is 2.0233."""
    for pipeline_class in (diffusers.Flux2Pipeline, diffusers.Flux2KleinPipeline):
        steps = inspect.signature(pipeline_class.__call__).parameters["num_inference_steps"].default
        assert flux2_family.NUM_INFERENCE_STEPS == steps == 50
        assert FAMILIES[pipeline_class.__name__].log_shift({}, 4096) == pytest.approx(2.0233, abs=1e-4)
    for module in (pipeline_flux2, pipeline_flux2_klein):
        assert FAMILIES["Flux2Pipeline"].log_shift({}, 5000) == module.compute_empirical_mu(5000, 50)


@pytest.mark.parametrize("make", [flux2, flux2_klein])
def test_latents_of_flux2_are_what_its_pipeline_makes_of_images(make):
    pipeline = make()
    family = get_family(type(pipeline).__name__)
    pixels = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean, std = family.encode_images(pipeline, pixels)
        expected = pipeline._encode_vae_image(pixels, None)
    assert mean.shape == std.shape == (2, 8, 8, 16)
    torch.testing.assert_close(normalise(mean, family.latent_statistics(pipeline.vae)), expected)


@pytest.mark.parametrize("model", ["sana", "lumina2"])
def test_an_instruction_is_put_before_prompts_alone(model, folders):
    """A negative prompt leads away from the same as in the pipeline, and the empty one is trained as it is drawn."""
    settings = {"num_inference_steps": 2, "height": 32, "width": 32, "guidance_scale": 4.0, "max_sequence_length": 128}
    generator = ImageGenerator(str(folders / model), SamplingConfig(negative_prompt="a star", **settings))
    (image,) = generator(["a fox"], [3])
    pipeline = generator.pipeline
    options = {"use_resolution_binning": False} if model == "sana" else {}
    seed = torch.Generator().manual_seed(3)
    (own,) = pipeline("a fox", negative_prompt="a star", generator=seed, **settings, **options).images
    np.testing.assert_allclose(np.asarray(image, int), np.asarray(own, int), atol=1)

    family = generator.family
    encoded = [family.encode_prompts(pipeline, ["a fox"], 128), family.encode_negative_prompt(pipeline, "a fox", 128)]
    assert not torch.equal(encoded[0]["prompt_embeds"], encoded[1]["prompt_embeds"])
