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


"""Z-Image: rectified flow, by a denoiser that takes lists of images and of texts and says which way the image is."""

from .. import latents
from ..family import Family


class ZImage(Family):
    pipelines = ("ZImagePipeline",)
    repeated_blocks = ["ZImageTransformerBlock"]
    # diffusers' training script, examples/dreambooth/train_dreambooth_lora_z_image.py
    lora_target_modules = ["to_q", "to_k", "to_v", "to_out.0"]
    no_guidance = 0.0  # what leads away from the empty prompt is added to the prediction
    guided_tensors = ()  # it puts both texts together at every step
    own_sigmas = True
    max_sequence_length = 512

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """
        `prompt_embeds` of shape `(N, T, 2560)`, `T` being the tokens of the longest prompt, `max_sequence_length` at most,
        and `prompt_embeds_mask` of shape `(N, T)`.
        """
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        rows, _ = pipeline.encode_prompt(
            list(prompts),  # a copy, into which it writes its template
            device=pipeline.device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        mask = latents.stack([row.new_ones(len(row)).long() for row in rows])
        return {"prompt_embeds": latents.stack(rows), "prompt_embeds_mask": mask}

    def text_lengths(self, denoiser, index):
        # Positions of the text, filled up to a multiple of 32, count from 1, and the image comes after it.
        return 1, (denoiser["axes_lens"][0] - 2) // 32 * 32

    def most_tokens(self, denoiser):
        return min(denoiser["axes_lens"][1:])

    def size(self, denoiser, vae):
        return 1024, 1024

    def arguments(self, positive, negative, guidance_scale):
        return {
            "prompt_embeds": _rows(positive),
            "negative_prompt_embeds": _rows(negative),
            "guidance_scale": guidance_scale,
        }

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        videos = list(noisy_latents[:, :, None])  # of one frame
        prediction = denoiser(videos, (1000 - timesteps) / 1000, _rows(conditioning), return_dict=False)[0]
        return -latents.stack([video[:, 0] for video in prediction])


def _rows(conditioning):
    """The states of each text, `(T_i, 2560)`, without what it is filled up with."""
    lengths = conditioning["prompt_embeds_mask"].sum(1).tolist()
    return [row[:length] for row, length in zip(conditioning["prompt_embeds"], lengths, strict=True)]
