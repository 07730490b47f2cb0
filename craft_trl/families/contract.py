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
The contract of a family: it says of a pipeline what the pipeline itself does.

Every claim is checked against diffusers' own pipeline. Of a family that keeps it, the rest of the library can draw, encode, train
and judge without knowing it.

```python
from craft_trl.candidates.loading import load_pipeline
from craft_trl.families.contract import check_contract

print(check_contract(load_pipeline("runs/tiny_flow/model"), height=64, width=64))
```
"""

import functools
import inspect
from typing import Any

import torch
from diffusers import DiffusionPipeline

from . import Family, get_family
from .latents import normalise, stack, unpack


PROMPTS = ["a fox", "a red car on a table, seen from above"]
NEGATIVE_PROMPT = "dull"


@torch.no_grad()
def check_contract(
    pipeline: DiffusionPipeline,
    height: int,
    width: int,
    max_sequence_length: int | None = None,
    num_inference_steps: int = 3,
    guidance_scale: float = 4.0,
) -> dict[str, float]:
    """
    Largest differences between a family and its pipeline, as shares of the largest value: 0 or a rounding error each.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]):
            A pipeline in float32, with weights of any kind, as long as no gate is closed by zeros. In 16 bits, the rounding
            errors are those of 16 bits, and `predict` is `0` all the same.
        height (`int`), width (`int`):
            Size of the images in pixels.
        max_sequence_length (`int`, *optional*):
            Tokens of a prompt that are read.
        num_inference_steps (`int`, *optional*, defaults to `3`):
            Steps of drawing.
        guidance_scale (`float`, *optional*, defaults to `4.0`):
            Scale of the guidance that is checked.

    Returns:
        `dict[str, float]`:
            - `predict`: [`Family.predict`] from what was sampled at every step, against what the scheduler was given;
            - `texts`: images of encoded prompts ([`Family.arguments`]) against those of prompts ([`Family.text_arguments`]);
            - `guided`: the same with guidance, which changes them where the model takes any;
            - `negative`: the same with guidance away from a text, where the pipeline takes one;
            - `one_by_one`: prompts encoded one by one against both together;
            - `decode`: [`Family.decode_latents`] against the pipeline's own images;
            - `encode`: `0` if the latents of an image have the shape of those that are drawn, and are finite numbers;
            - `prompts`: `0` if what is encoded of two prompts differs;
            - `shift`: [`Family.log_shift`] against what the scheduler is given for the pipeline's own number of steps.
    """
    family = get_family(type(pipeline).__name__)
    denoiser = getattr(pipeline, family.denoiser)
    pipeline.set_progress_bar_config(disable=True)
    off = 1.0 if family.no_guidance is None else family.no_guidance

    positive = family.encode_prompts(pipeline, list(PROMPTS), max_sequence_length)

    def draw(
        texts: bool, scale: float, output_type: str = "latent", negative_prompt: str | None = None
    ) -> torch.Tensor:
        arguments = arguments_of(texts, scale, negative_prompt)
        seeds = [torch.Generator().manual_seed(number) for number in range(len(PROMPTS))]
        return pipeline(
            **arguments, generator=seeds, num_inference_steps=num_inference_steps, height=height, width=width,
            output_type=output_type,
        ).images  # fmt: skip

    def arguments_of(texts: bool, scale: float, negative_prompt: str | None = None) -> dict[str, Any]:
        if texts:
            arguments = family.text_arguments(scale, negative_prompt, max_sequence_length) | {"prompt": list(PROMPTS)}
            if "negative_prompt" in arguments:
                arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(PROMPTS)
            return arguments
        negative = (
            family.encode_empty_prompt(pipeline, max_sequence_length)
            if negative_prompt is None
            else family.encode_negative_prompt(pipeline, negative_prompt, max_sequence_length)
        )
        negative = {name: value.expand(len(PROMPTS), *value.shape[1:]) for name, value in negative.items()}
        return family.arguments(positive, negative, scale)

    errors, steps = {}, []
    original = pipeline.scheduler.step

    def step(output, timestep, sample, *args, **kwargs):
        steps.append((output.clone(), torch.as_tensor(timestep).clone(), sample.clone()))
        return original(output, timestep, sample, *args, **kwargs)

    pipeline.scheduler.step = step
    try:
        drawn = draw(True, off)
    finally:
        pipeline.scheduler.step = original

    images = family.image_conditioning(denoiser.config, height, width, off)
    conditioning = positive | {name: value.expand(len(PROMPTS), *value.shape) for name, value in images.items()}
    factor = family.pixels_per_latent(pipeline.vae.config)
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = family.encode_images(pipeline, pixels.to(pipeline.vae.device, pipeline.vae.dtype))
    latents = normalise(mean, family.latent_statistics(pipeline.vae))
    expected = (1, family.latent_channels(pipeline.vae.config), height // factor, width // factor)
    errors["encode"] = float(latents.shape != expected or std.shape != expected or not latents.isfinite().all())

    errors["predict"] = 0.0
    for output, timestep, sample in steps:
        noisy, wanted = (_unpacked(family, value, height // factor, width // factor) for value in (sample, output))
        scaled = pipeline.scheduler.scale_model_input(noisy, timestep) if family.noise == "diffusion" else noisy
        got = family.predict(
            denoiser, scaled.to(denoiser.dtype), timestep.expand(len(PROMPTS)).to(noisy.device), conditioning
        )
        errors["predict"] = max(errors["predict"], _difference(got, wanted))

    errors["texts"] = _difference(draw(False, off), drawn)
    guided = draw(False, guidance_scale)
    errors["guided"] = _difference(guided, draw(True, guidance_scale))
    if family.takes_guidance(denoiser.config, pipeline.config) and torch.equal(guided, drawn):
        errors["guided"] = float("inf")
    takes_negative = "negative_prompt" in inspect.signature(type(pipeline).__call__).parameters
    if takes_negative and family.calls(guidance_scale) > 1:
        drawings = (draw(texts, guidance_scale, negative_prompt=NEGATIVE_PROMPT) for texts in (False, True))
        errors["negative"] = _difference(*drawings)
    alone = [family.encode_prompts(pipeline, [prompt], max_sequence_length) for prompt in PROMPTS]
    errors["one_by_one"] = max(
        _difference(stack([encoded[name][0] for encoded in alone]), value) for name, value in positive.items()
    )
    pixels = family.decode_latents(pipeline, drawn.to(pipeline.vae.dtype), height, width)
    decoded = pipeline.image_processor.postprocess(pixels, "pt")
    errors["decode"] = _difference(decoded, draw(True, off, "pt"))
    errors["prompts"] = float(not any((value[0] != value[1]).any() for value in positive.values()))
    mu = _log_shift(pipeline, **arguments_of(False, off), height=height, width=width)
    tokens = (height // factor) * (width // factor) // family.patch**2
    errors["shift"] = 0.0 if mu is None else abs(mu - family.log_shift(pipeline.scheduler.config, tokens))
    return errors


def unused_parameters(pipeline: DiffusionPipeline, height: int, width: int) -> list[str]:
    """Names of the denoiser's parameters that a training step does not reach. Those that a family names are not among them."""
    family = get_family(type(pipeline).__name__)
    denoiser = getattr(pipeline, family.denoiser).train().requires_grad_(True)
    with torch.no_grad():
        conditioning = family.encode_prompts(pipeline, list(PROMPTS))
    for name, value in family.image_conditioning(denoiser.config, height, width, 1.0).items():
        conditioning[name] = value.expand(len(PROMPTS), *value.shape)
    factor, vae = family.pixels_per_latent(pipeline.vae.config), pipeline.vae.config
    latents = torch.randn(len(PROMPTS), family.latent_channels(vae), height // factor, width // factor)
    timesteps = torch.tensor([800, 300]) if family.noise == "diffusion" else torch.tensor([800.0, 300.0])
    family.predict(denoiser, latents, timesteps, conditioning).square().mean().backward()
    untrained = family.untrained(denoiser.config)
    return [name for name, p in denoiser.named_parameters() if p.grad is None and not name.startswith(untrained)]


class _Told(Exception):
    pass


def _log_shift(pipeline: DiffusionPipeline, **arguments: Any) -> float | None:
    """`mu` that a pipeline gives its scheduler for its own number of steps, `None` if it gives none."""
    scheduler = pipeline.scheduler

    @functools.wraps(scheduler.set_timesteps)  # which pipelines look at, for what it takes
    def set_timesteps(*args, mu: float | None = None, **kwargs):
        raise _Told(mu)

    scheduler.set_timesteps = set_timesteps
    try:
        pipeline(**arguments)
    except _Told as told:
        return told.args[0]
    finally:
        del scheduler.set_timesteps


def _unpacked(family: Family, value: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What a pipeline hands to its scheduler, packed into tokens or as a video of one frame, as latents."""
    if value.ndim == 3:
        if family.packing == 1:  # a token for each
            return value.transpose(1, 2).unflatten(2, (height, width))
        return unpack(value, height, width)
    return value[:, :, 0] if value.ndim == 5 else value


def _difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
