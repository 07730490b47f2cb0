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

from .stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    pipelines = ("StableDiffusionXLPipeline",)
    guided_tensors = ("prompt_embeds", "add_text_embeds", "add_time_ids")

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """
        `prompt_embeds` of shape `(N, 77, 2048)`, the penultimate states of both encoders, and `pooled_prompt_embeds` of
        shape `(N, 1280)`.
        """
        prompt_embeds, _, pooled_prompt_embeds, _ = pipeline.encode_prompt(
            prompts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds}

    def encode_empty_prompt(self, pipeline, max_sequence_length=None):
        """
        Zeros where `force_zeros_for_empty_prompt` is set, as it is for SDXL base, not what the encoders make of an empty text.
        """
        encoded = self.encode_prompts(pipeline, [""])
        if pipeline.config.force_zeros_for_empty_prompt:
            return {name: value.new_zeros(value.shape) for name, value in encoded.items()}
        return encoded

    def image_conditioning(self, config, height, width, guidance_scale):
        """
        `time_ids` of shape `(6,)`: the original size, the crop's corner and the target size. A generated image is its own
        original and is not cropped. Integers: no cast of the conditioning to a dtype of eight bits rounds 1023 to 1024.
        """
        import torch

        return {"time_ids": torch.tensor([height, width, 0, 0, height, width])}

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
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
