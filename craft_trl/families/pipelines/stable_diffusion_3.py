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


"""Stable Diffusion 3 and 3.5: rectified flow, up to three text encoders of which the last, T5, may be left out."""

from ..family import Family


class StableDiffusion3(Family):
    pipelines = ("StableDiffusion3Pipeline",)
    repeated_blocks = ["JointTransformerBlock"]
    # diffusers' training script, examples/dreambooth/train_dreambooth_lora_sd3.py
    lora_target_modules = [
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    ]  # fmt: skip
    guided_tensors = ("prompt_embeds", "pooled_prompt_embeds")
    max_sequence_length = 256
    most_text_tokens = 512

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """
        `prompt_embeds` of shape `(N, 77 + max_sequence_length, 4096)`, CLIP's states and T5's, which are zeros where there is
        no T5, and `pooled_prompt_embeds` of shape `(N, 2048)`.
        """
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        prompt_embeds, _, pooled_prompt_embeds, _ = pipeline.encode_prompt(
            prompts, prompts, prompts, device=pipeline.device, do_classifier_free_guidance=False,
            max_sequence_length=length,
        )  # fmt: skip
        return {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds}

    def text_lengths(self, denoiser, index):
        # Without T5, zeros stand for its tokens, or nothing does.
        has_t5 = (index.get("text_encoder_3") or [None])[0] is not None
        return int(has_t5), self.most_text_tokens

    def most_tokens(self, denoiser):
        return denoiser.get("pos_embed_max_size")

    def untrained(self, config):
        # The last block makes nothing of the text, and asks it nothing.
        return (f"transformer_blocks.{config['num_layers'] - 1}.attn.add_q_proj.",)

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        return denoiser(
            noisy_latents,
            conditioning["prompt_embeds"],
            conditioning["pooled_prompt_embeds"],
            timesteps,
            return_dict=False,
        )[0]
