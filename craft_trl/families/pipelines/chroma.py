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


"""Chroma: FLUX.1 schnell, made smaller and trained until it takes guidance again. Its texts are T5's alone, with a mask."""

from .. import latents
from ..family import Family
from .flux import Flux


class Chroma(Family):
    pipelines = ("ChromaPipeline",)
    repeated_blocks = ["ChromaTransformerBlock", "ChromaSingleTransformerBlock"]
    lora_target_modules = Flux.lora_target_modules  # diffusers has no training script of its own for it
    packing = 4
    guided_tensors = ()  # without a prompt and with it are calls of their own
    own_sigmas = True
    default_sample_size = 128
    max_sequence_length = 512
    most_text_tokens = 512

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """
        `prompt_embeds` of shape `(N, max_sequence_length, 4096)`, T5's states, and `prompt_attention_mask` of shape
        `(N, max_sequence_length)`: 1 for the text and one token more, 0 for the others. It is no mask of integers but of the
        states' dtype, as the pipeline has it: attention adds it to its logits.
        """
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        prompt_embeds, _, prompt_attention_mask, *_ = pipeline.encode_prompt(
            prompts, device=pipeline.device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"prompt_embeds": prompt_embeds, "prompt_attention_mask": prompt_attention_mask}

    def checkpoint_activations(self, denoiser, function=None):
        """
        `ChromaTransformer2DModel` (diffusers 0.42) gives its single-stream blocks the mask only as long as it need not compute
        them anew. They have it here; to be deleted when it does so itself.
        """
        super().checkpoint_activations(denoiser, function)
        compute, mask = denoiser._gradient_checkpointing_func, None

        def compute_with_mask(block, *inputs):
            nonlocal mask
            if len(inputs) == 5:  # a double-stream block, all of which come first: the mask is the last of its inputs
                mask = inputs[-1]
            elif len(inputs) == 3:
                inputs = *inputs, mask
            return compute(block, *inputs)

        denoiser._gradient_checkpointing_func = compute_with_mask

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        from torch.nn.functional import pad

        height, width = noisy_latents.shape[-2:]
        image = latents.positions(height, width, noisy_latents.device)
        prediction = denoiser(
            latents.pack(noisy_latents),
            conditioning["prompt_embeds"],
            timesteps.to(noisy_latents.dtype) / 1000,
            image,
            image.new_zeros(conditioning["prompt_embeds"].shape[1], 3),
            # The tokens of the image come after those of the text.
            pad(conditioning["prompt_attention_mask"], (0, len(image)), value=1.0),
            return_dict=False,
        )[0]
        return latents.unpack(prediction, height, width)
