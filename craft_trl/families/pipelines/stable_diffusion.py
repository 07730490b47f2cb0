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


"""Stable Diffusion 1.x and 2.x: one text encoder, no micro-conditioning."""

from typing import TYPE_CHECKING

from ..family import Family


if TYPE_CHECKING:
    import torch


class StableDiffusion(Family):
    """A UNet on variance-preserving diffusion. SDXL is one, with more conditioning."""

    pipelines = ("StableDiffusionPipeline",)
    denoiser = "unet"
    noise = "diffusion"
    repeated_blocks = ["BasicTransformerBlock", "ResnetBlock2D"]
    guidance_rescale = True
    guided_tensors = ("prompt_embeds",)

    def size_multiple(self, vae):
        return 8  # what the pipeline asks for, whatever the VAE

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """`prompt_embeds` of shape `(N, 77, 768)`."""
        prompt_embeds, _ = pipeline.encode_prompt(
            prompts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": prompt_embeds}

    def predict(self, denoiser, noisy_latents, timesteps, conditioning) -> "torch.Tensor":
        return denoiser(
            noisy_latents, timesteps, encoder_hidden_states=conditioning["prompt_embeds"], return_dict=False
        )[0]
