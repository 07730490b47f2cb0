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


"""SDXL: two text encoders, and the image's size and crop as conditioning."""

import diffusers
import torch


PIPELINE = "StableDiffusionXLPipeline"
DENOISER = "unet"
LORA_TARGET_MODULES = ["to_q", "to_k", "to_v", "to_out.0"]
REPEATED_BLOCKS = ["BasicTransformerBlock", "ResnetBlock2D"]


@torch.no_grad()
def encode_prompts(pipeline: "diffusers.DiffusionPipeline", prompts: list[str]) -> dict[str, torch.Tensor]:
    """
    Conditioning that belongs to a prompt: `prompt_embeds` of shape `(N, 77, 2048)`, the penultimate states of both
    encoders, and `pooled_prompt_embeds` of shape `(N, 1280)`.
    """
    prompt_embeds, _, pooled_prompt_embeds, _ = pipeline.encode_prompt(
        prompts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds}


@torch.no_grad()
def encode_empty_prompt(pipeline: "diffusers.DiffusionPipeline") -> dict[str, torch.Tensor]:
    """
    Conditioning of the empty prompt, as the pipeline has it at inference: zeros where `force_zeros_for_empty_prompt` is
    set, as it is for SDXL base, not what the encoders make of an empty text.
    """
    encoded = encode_prompts(pipeline, [""])
    if pipeline.config.force_zeros_for_empty_prompt:
        return {name: torch.zeros_like(value) for name, value in encoded.items()}
    return encoded


def image_conditioning(height: int, width: int) -> dict[str, torch.Tensor]:
    """
    Conditioning that belongs to an image of this size: `time_ids` of shape `(6,)`, the original size, the crop's corner
    and the target size. A generated image is its own original and is not cropped. Integers: no cast of the
    conditioning to a dtype of eight bits rounds 1023 to 1024.
    """
    return {"time_ids": torch.tensor([height, width, 0, 0, height, width])}


def predict(
    denoiser: torch.nn.Module,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: dict[str, torch.Tensor],
) -> torch.Tensor:
    """The denoiser's output for `noisy_latents` of shape `(B, 4, H/8, W/8)`, of the same shape."""
    return denoiser(
        noisy_latents,
        timesteps,
        encoder_hidden_states=conditioning["prompt_embeds"],
        added_cond_kwargs={
            "text_embeds": conditioning["pooled_prompt_embeds"],
            "time_ids": conditioning["time_ids"],
        },
        return_dict=False,
    )[0]
