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


"""Lumina-Image 2.0: rectified flow in which time runs from noise to image, and guidance keeps the norm of the prediction."""

from ..family import Family


class Lumina2(Family):
    """
    The pipeline puts a system prompt before a prompt, and none before a negative or empty one. So does this family, in
    drawing and in training.
    """

    pipelines = ("Lumina2Pipeline",)
    repeated_blocks = ["Lumina2TransformerBlock"]
    # diffusers' training script, examples/dreambooth/train_dreambooth_lora_lumina2.py
    lora_target_modules = ["to_q", "to_k", "to_v", "to_out.0"]
    guided_tensors = ()  # without a prompt and with it are calls of their own
    own_sigmas = True
    max_sequence_length = 256
    most_text_tokens = 512

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """
        `prompt_embeds` of shape `(N, 256, 2304)` and `prompt_attention_mask` of shape `(N, 256)`. The system prompt counts
        among the tokens.
        """
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        prompt_embeds, mask, _, _ = pipeline.encode_prompt(
            prompts, False, device=pipeline.device, max_sequence_length=length
        )
        return {"prompt_embeds": prompt_embeds, "prompt_attention_mask": mask}

    def encode_negative_prompt(self, pipeline, prompt, max_sequence_length=None):
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        _, _, prompt_embeds, mask = pipeline.encode_prompt(
            [""], True, [prompt], device=pipeline.device, max_sequence_length=length
        )
        return {"prompt_embeds": prompt_embeds, "prompt_attention_mask": mask}

    def text_lengths(self, denoiser, index):
        # Positions of the text count from 0, and the image comes after it.
        return 1, min(self.most_text_tokens, denoiser["axes_lens"][0] - 1)

    def most_tokens(self, denoiser):
        return min(denoiser["axes_lens"][1:])

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        prediction = denoiser(
            noisy_latents,
            1 - timesteps / 1000,
            conditioning["prompt_embeds"],
            conditioning["prompt_attention_mask"],
            return_dict=False,
        )[0]
        return -prediction

    def log_shift(self, scheduler, tokens):
        # The pipeline (diffusers 0.42) takes the number of its latents' channels for that of tokens, which only matters to a
        # scheduler that shifts dynamically. Delete when it counts tokens.
        return super().log_shift(scheduler, 16)
