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

"""Images drawn while a model is trained."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from PIL import Image

from ..candidates.loading import cast
from .zero import zero_init_disabled


if TYPE_CHECKING:
    from .diffusion_trainer import DiffusionTrainer


LARGEST_BATCH = 4


@torch.no_grad()
def sample(
    trainer: "DiffusionTrainer",
    prompts: list[str],
    num_inference_steps: int,
    guidance_scale: float,
    seeds: Iterable[int],
) -> list[Image.Image]:
    """
    Images of a model in training as it is, the same list on all processes. Each draws its share, and all must call this.

    Args:
        trainer ([`DiffusionTrainer`]):
            Its trainer.
        prompts (`list[str]`):
            Prompts.
        num_inference_steps (`int`):
            Denoising steps.
        guidance_scale (`float`):
            Scale of classifier-free guidance.
        seeds (`Iterable[int]`):
            Seed of the starting noise of each image.
    """
    # Equal shares, the last filled up: under ZeRO-3 all processes take part in every call of the denoiser.
    wanted = list(zip(prompts, seeds, strict=True))
    share = -(-len(wanted) // trainer.args.world_size)
    filled = wanted + wanted[-1:] * (share * trainer.args.world_size - len(wanted))
    with zero_init_disabled():
        pipeline = trainer.load_frozen()
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    was_training = model.training
    denoiser = model.base_model.model if isinstance(model, PeftModel) else model
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            cast(part, torch.bfloat16 if trainer.bf16_module else denoiser.dtype)
    pipeline.to(trainer.args.device)
    # After the cast, which would take the denoiser's float32 parameters with it.
    pipeline.register_modules(**{trainer.family.denoiser: denoiser.eval()})
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.vae.dtype == torch.float16 and pipeline.vae.config.get("force_upcast"):
        cast(pipeline.vae, torch.float32)  # as [`ImageGenerator`] does
    family, length = trainer.family, trainer.args.max_sequence_length
    latent_size = trainer.train_dataset.encoded["latent_mean"].shape[-2:]
    height, width = (side * family.pixels_per_latent(pipeline.vae.config) for side in latent_size)
    negative = family.encode_empty_prompt(pipeline, length)
    own, images = filled[trainer.args.process_index * share :][:share], []
    # A batch that the training has room for. Each is a call of the denoiser, whose parameters ZeRO-3 gathers every time.
    size = min(trainer.args.per_device_train_batch_size, LARGEST_BATCH)
    for start in range(0, share, size):
        batch = own[start : start + size]
        positive = family.encode_prompts(pipeline, [prompt for prompt, _ in batch], length)
        latents = pipeline(
            **family.arguments(
                positive,
                {name: value.expand(len(batch), *value.shape[1:]) for name, value in negative.items()},
                guidance_scale,
            ),
            num_inference_steps=num_inference_steps,
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
            output_type="latent",
        ).images
        for latent in latents.to(pipeline.vae.dtype).split(
            1
        ):  # one at a time, as several take several times the memory
            pixels = family.decode_latents(pipeline, latent, height, width)
            images += pipeline.image_processor.postprocess(pixels, output_type="pil")
    model.train(was_training)
    return gather_object(images)[: len(wanted)]
