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

"""Guidance that ends before the last step, of every family whose pipeline can end it; the others refuse in a line."""

import json

import pytest
import torch

from craft_trl import ImageGenerator, SamplingConfig
from craft_trl.errors import UsageError
from craft_trl.families import get_family
from craft_trl.families.checks import check_model
from craft_trl.families.contract import _difference, _unpacked
from craft_trl.families.family import guided_steps

from ..pipelines import make_pipeline
from .random_pipelines import CASES
from .test_contract import LENGTHS, SIZE, UNETS


PROMPTS, SEEDS, STEPS = ["a fox", "a red car on a table"], [0, 1], 4
ENDING = {
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "Flux2KleinPipeline",
    "ChromaPipeline", "Lumina2Pipeline", "ZImagePipeline",
}  # fmt: skip
# An input of the denoiser; or the pipeline decides once, before the first step.
INPUT = {"FluxPipeline", "Flux2Pipeline"}
TO_THE_END = {"QwenImagePipeline", "SanaPipeline", "PixArtSigmaPipeline", "PixArtAlphaPipeline", "AuraFlowPipeline"}


def sampling(family, **settings):
    size = 64 if family.denoiser == "unet" else SIZE
    length = None if family.max_sequence_length is None else LENGTHS.get(family.pipelines[0], 24)
    settings = {"guidance_scale": 4.0, "max_sequence_length": length} | settings
    return SamplingConfig(num_inference_steps=STEPS, height=size, width=size, batch_size=2, **settings)


@pytest.fixture(scope="module", params=[*UNETS, *CASES])
def pipeline(request, tiny):
    return make_pipeline(request.param, "epsilon", tiny) if request.param in UNETS else CASES[request.param]()


def drawn(pipeline, config):
    """What an image generator draws, what the scheduler was given at every step, and how many samples the denoiser was."""
    family, steps, samples = get_family(type(pipeline).__name__), [], 0
    denoiser, original = getattr(pipeline, family.denoiser), pipeline.scheduler.step

    def step(output, timestep, sample, *args, **kwargs):
        steps.append((output.clone(), torch.as_tensor(timestep).clone(), sample.clone()))
        return original(output, timestep, sample, *args, **kwargs)

    def count(module, args, kwargs):
        nonlocal samples
        samples += len(args[0] if args else kwargs["hidden_states"])

    handle, pipeline.scheduler.step = denoiser.register_forward_pre_hook(count, with_kwargs=True), step
    try:
        images = ImageGenerator(pipeline, config)(PROMPTS, SEEDS)
    finally:
        handle.remove()
        pipeline.scheduler.step = original
    return [image.tobytes() for image in images], steps, samples


def test_every_family_is_here():
    assert ENDING | INPUT | TO_THE_END == {type(make()).__name__ for make in CASES.values()} | {
        "StableDiffusionPipeline", "StableDiffusionXLPipeline"
    }  # fmt: skip


@torch.no_grad()
def test_ends(pipeline):
    """Before the cutoff, an image is guided as ever; after it, the scheduler gets what the denoiser says of the prompt."""
    family = get_family(type(pipeline).__name__)
    if type(pipeline).__name__ not in ENDING:
        assert family.guided_tensors is None
        return
    guided, with_steps, with_samples = drawn(pipeline, sampling(family))
    images, steps, samples = drawn(pipeline, sampling(family, guidance_cutoff=0.5))
    assert (with_samples, samples) == (2 * 4 * 2, 2 * (2 + 2 + 1 + 1))  # images x calls
    assert images != guided and images[0] != images[1]
    assert [len(steps), len(with_steps)] == [STEPS] * 2
    for (output, _, sample), (whole, _, other) in zip(steps[:2], with_steps[:2], strict=True):
        assert torch.equal(output, whole) and torch.equal(sample, other)
    config = sampling(family)
    denoiser = getattr(pipeline, family.denoiser)
    conditioning = family.encode_prompts(pipeline, list(PROMPTS), config.max_sequence_length)
    extra = family.image_conditioning(denoiser.config, config.height, config.width, 1.0)
    conditioning |= {name: value.expand(2, *value.shape) for name, value in extra.items()}
    factor = family.pixels_per_latent(pipeline.vae.config)
    for output, timestep, sample in steps[2:]:
        noisy, got = (_unpacked(family, x, config.height // factor, config.width // factor) for x in (sample, output))
        wanted = family.predict(denoiser, noisy, timestep.expand(2), conditioning)
        assert _difference(got, wanted) < 5e-6
    # The next call guides again; and an image is the same by itself.
    assert drawn(pipeline, sampling(family))[0] == guided
    if type(pipeline).__name__ not in ("Lumina2Pipeline", "ZImagePipeline"):  # whose texts are as long as the longest
        generator = ImageGenerator(pipeline, sampling(family, guidance_cutoff=0.5))
        assert [generator([p], [s])[0].tobytes() for p, s in zip(PROMPTS, SEEDS, strict=True)] == images


def test_refused(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    family, name = get_family(type(pipeline).__name__), type(pipeline).__name__

    def check(**settings):
        check_model(str(tmp_path / "pipeline"), drawing=sampling(family, **settings))

    def message(**settings):
        with pytest.raises(UsageError) as error:
            check(**settings)
        return str(error.value)

    takes = family.takes_guidance(getattr(pipeline, family.denoiser).config, dict(pipeline.config))
    scale = {} if takes else {"guidance_scale": 1.0}
    if name in INPUT:
        assert f"guidance_cutoff 0.5: the guidance_scale of a {name} is an input" in message(
            guidance_cutoff=0.5, **scale
        )
        return
    if name in TO_THE_END:
        assert message(guidance_cutoff=0.5) == (
            f"guidance_cutoff 0.5: a {name} of diffusers guides to the end, leave it out."
        )
        return
    check(guidance_cutoff=0.5)
    none = family.no_guidance
    assert f"there is no guidance at guidance_scale {none:g}" in message(guidance_cutoff=0.5, guidance_scale=none)
    assert "guidance_cutoff 0.1 of 4 steps guides 0 of them" in message(guidance_cutoff=0.1)
    assert "guidance_cutoff 0.9 of 4 steps guides 4 of them" in message(guidance_cutoff=0.9)
    if family.denoiser == "unet":  # distilled as LCM is
        path = tmp_path / "pipeline" / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time_cond_proj_dim": 8}))
        assert "guidance_scale is an input of this denoiser" in message(guidance_cutoff=0.5)


def test_guided_steps():
    assert [guided_steps(20, cutoff) for cutoff in (0.45, 0.47, 0.48, 0.58, None)] == [9, 9, 10, 12, 20]
    assert guided_steps(50, 0.58) == 29  # 0.58 * 50 is 28.999999999999996


def test_out_of_range():
    with pytest.raises(UsageError, match=r"guidance_cutoff must be .* got 1\.5"):
        SamplingConfig(guidance_cutoff=1.5)
