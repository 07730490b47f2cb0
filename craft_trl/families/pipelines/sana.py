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


"""Sana: linear attention on the latents of an autoencoder that makes images 32 times smaller."""

import inspect

from ..family import Family, config_of


class Sana(Family):
    """
    The pipeline puts an instruction to enhance it before a prompt, `complex_human_instruction`, and none before a negative or
    empty one. So does this family, in drawing and in training.

    An image is drawn at its own size. By default the pipeline takes the nearest of a list of sizes and scales what it drew:
    a scaled image says nothing of the model, and of the list's sizes it is the same.
    """

    pipelines = ("SanaPipeline",)
    vae = "AutoencoderDC"
    repeated_blocks = ["SanaTransformerBlock"]
    # diffusers' training script, examples/dreambooth/train_dreambooth_lora_sana.py
    lora_target_modules = ["to_q", "to_k", "to_v"]
    patch = 1
    max_sequence_length = 300

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """`prompt_embeds` of shape `(N, 300, 2304)` and `prompt_attention_mask` of shape `(N, 300)`."""
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        prompt_embeds, mask, _, _ = pipeline.encode_prompt(
            prompts, False, device=pipeline.device, max_sequence_length=length, complex_human_instruction=instruction
        )
        return {"prompt_embeds": prompt_embeds, "prompt_attention_mask": mask}

    def encode_negative_prompt(self, pipeline, prompt, max_sequence_length=None):
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        prompt_embeds, mask, _, _ = pipeline.encode_prompt(
            [prompt], False, device=pipeline.device, max_sequence_length=length
        )
        return {"prompt_embeds": prompt_embeds, "prompt_attention_mask": mask}

    def pixels_per_latent(self, vae):
        return 2 ** (len(vae["encoder_block_out_channels"]) - 1)

    def size_multiple(self, vae):
        return 32  # what the pipeline asks for, whatever the VAE

    def arguments(self, positive, negative, guidance_scale):
        # The default of `negative_prompt` is a text, beside which the pipeline takes no encoded one.
        fixed = {"negative_prompt": None, "use_resolution_binning": False}
        return super().arguments(positive, negative, guidance_scale) | fixed

    def text_arguments(self, guidance_scale, negative_prompt=None, max_sequence_length=None):
        given = super().text_arguments(guidance_scale, negative_prompt, max_sequence_length)
        return given | {"use_resolution_binning": False}

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        prediction = denoiser(
            noisy_latents,
            conditioning["prompt_embeds"],
            timesteps * config_of(denoiser).timestep_scale,
            encoder_attention_mask=conditioning["prompt_attention_mask"],
            return_dict=False,
        )[0]
        return prediction[:, : noisy_latents.shape[1]]  # the rest, if any, is a learned variance
