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


"""AuraFlow: rectified flow on the latents of SDXL, with texts of T5."""

from ..family import Family


class AuraFlow(Family):
    pipelines = ("AuraFlowPipeline",)
    repeated_blocks = ["AuraFlowJointTransformerBlock", "AuraFlowSingleTransformerBlock"]
    # diffusers has no training script for it: the layers of that of Stable Diffusion 3, whose joint blocks it has.
    lora_target_modules = [
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    ]  # fmt: skip
    max_sequence_length = 256

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """`prompt_embeds` of shape `(N, 256, 2048)`, zeros where there is no text."""
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        prompt_embeds, _, _, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=pipeline.device, max_sequence_length=length
        )
        return {"prompt_embeds": prompt_embeds}

    def most_tokens(self, denoiser):
        return int(denoiser.get("pos_embed_max_size", 1024) ** 0.5)

    def arguments(self, positive, negative, guidance_scale):
        # The pipeline asks for masks and does not look at them.
        mask = positive["prompt_embeds"].new_ones(positive["prompt_embeds"].shape[:2])
        masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
        return super().arguments(positive, negative, guidance_scale) | masks

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        timesteps = (timesteps / 1000).to(noisy_latents.dtype)
        return denoiser(noisy_latents, conditioning["prompt_embeds"], timesteps, return_dict=False)[0]
