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


"""Qwen-Image: rectified flow on packed latents of a VAE for videos, with the texts of a language model."""

from .. import latents
from ..family import Family


EMPTY = " "  # the empty prompt, as the model's authors have it


class QwenImage(Family):
    pipelines = ("QwenImagePipeline",)
    vae = "AutoencoderKLQwenImage"
    repeated_blocks = ["QwenImageTransformerBlock"]
    # diffusers' training script, examples/dreambooth/train_dreambooth_lora_qwen_image.py
    lora_target_modules = ["to_q", "to_k", "to_v", "to_out.0"]
    packing = 4
    caches = True
    own_sigmas = True
    default_sample_size = 128
    max_sequence_length = 512
    most_text_tokens = 1024

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """
        `prompt_embeds` of shape `(N, T, 3584)`, `T` being the tokens of the longest prompt, `max_sequence_length` at most,
        and `prompt_embeds_mask` of shape `(N, T)`.
        """
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        prompt_embeds, mask = pipeline.encode_prompt(prompts, device=pipeline.device, max_sequence_length=length)
        if mask is None:  # as the pipeline has it for prompts of one length
            mask = prompt_embeds.new_ones(prompt_embeds.shape[:2]).long()
        return {"prompt_embeds": prompt_embeds, "prompt_embeds_mask": mask}

    def encode_empty_prompt(self, pipeline, max_sequence_length=None):
        return self.encode_prompts(pipeline, [EMPTY], max_sequence_length)

    def pixels_per_latent(self, vae):
        return 2 ** len(vae["temperal_downsample"])

    def latent_channels(self, vae):
        return vae["z_dim"]

    def encode_images(self, pipeline, pixels):
        mean, std = latents.encode(pipeline.vae, pixels[:, :, None])  # a video of one frame
        return mean[:, :, 0], std[:, :, 0]

    def decode_latents(self, pipeline, output, height, width):
        factor = self.pixels_per_latent(pipeline.vae.config)
        frames = latents.unpack(output, height // factor, width // factor)[:, :, None]
        return latents.decode(pipeline.vae, frames, self.latent_statistics(pipeline.vae))[:, :, 0]

    def arguments(self, positive, negative, guidance_scale):
        # Without guidance, the pipeline warns of a negative prompt.
        negative = {} if guidance_scale <= self.no_guidance else {f"negative_{k}": v for k, v in negative.items()}
        return {**positive, **negative, "true_cfg_scale": guidance_scale}

    def text_arguments(self, guidance_scale, negative_prompt=None, max_sequence_length=None):
        # Without a negative prompt the pipeline does not guide, and without guidance it warns of one.
        if guidance_scale > self.no_guidance and negative_prompt is None:
            negative_prompt = EMPTY
        given = super().text_arguments(guidance_scale, negative_prompt, max_sequence_length)
        return {"true_cfg_scale": given.pop("guidance_scale"), **given}

    def untrained(self, config):
        # The last block makes nothing of the text, and asks it nothing.
        last = f"transformer_blocks.{config['num_layers'] - 1}."
        return tuple(
            last + name for name in ("txt_mlp.", "attn.to_add_out.", "attn.add_q_proj.", "attn.norm_added_q.")
        )

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        height, width = noisy_latents.shape[-2:]
        prediction = denoiser(
            latents.pack(noisy_latents),
            conditioning["prompt_embeds"],
            conditioning["prompt_embeds_mask"],
            timesteps.to(noisy_latents.dtype) / 1000,
            [[(1, height // 2, width // 2)]] * len(noisy_latents),
            return_dict=False,
        )[0]
        return latents.unpack(prediction, height, width)
