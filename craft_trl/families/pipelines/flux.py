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


"""FLUX.1: rectified flow on packed latents. Guidance is an input of dev's denoiser, and schnell is distilled to need none."""

from .. import latents
from ..family import Family


class Flux(Family):
    pipelines = ("FluxPipeline",)
    repeated_blocks = ["FluxTransformerBlock", "FluxSingleTransformerBlock"]
    # diffusers' training script, examples/dreambooth/train_dreambooth_lora_flux.py
    lora_target_modules = [
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    ]  # fmt: skip
    packing = 4
    no_guidance = None
    caches = True
    own_sigmas = True
    default_sample_size = 128
    max_sequence_length = 512
    most_text_tokens = 512

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """
        `prompt_embeds` of shape `(N, max_sequence_length, 4096)`, T5's states of the text and of what fills it up, and
        `pooled_prompt_embeds` of shape `(N, 768)`, CLIP's.
        """
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        prompt_embeds, pooled_prompt_embeds, _ = pipeline.encode_prompt(
            prompts, device=pipeline.device, max_sequence_length=length
        )
        return {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds}

    def image_conditioning(self, config, height, width, guidance_scale):
        """`guidance`, a number, of shape `()`, for a denoiser that takes it."""
        import torch

        return {"guidance": torch.tensor(float(guidance_scale))} if config.get("guidance_embeds") else {}

    def arguments(self, positive, negative, guidance_scale):
        return {**positive, "guidance_scale": guidance_scale}

    def takes_guidance(self, denoiser, index):
        return bool(denoiser.get("guidance_embeds"))

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        height, width = noisy_latents.shape[-2:]
        image = latents.positions(height, width, noisy_latents.device)
        prediction = denoiser(
            latents.pack(noisy_latents),
            conditioning["prompt_embeds"],
            conditioning["pooled_prompt_embeds"],
            timesteps.to(noisy_latents.dtype) / 1000,
            image,
            image.new_zeros(conditioning["prompt_embeds"].shape[1], 3),
            conditioning.get("guidance"),
            return_dict=False,
        )[0]
        return latents.unpack(prediction, height, width)
