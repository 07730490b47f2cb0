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


"""PixArt-alpha and PixArt-Sigma: transformers on variance-preserving diffusion, which predict a variance too."""

from ..family import Family


class PixArtSigma(Family):
    """
    The variance that the denoiser predicts beside the noise is used neither in drawing nor in training.

    An image is drawn at its own size, where the pipeline takes the nearest of a list of sizes and scales what it drew. Prompts
    are written small and stripped, but not cleaned of what looks like the markup of web pages: the pipeline does that by
    default where beautifulsoup4 and ftfy are installed, and an image must not depend on what is installed.
    """

    pipelines = ("PixArtSigmaPipeline",)
    noise = "diffusion"
    # diffusers has no training script for it: the attention's layers, as for those that it has.
    lora_target_modules = ["to_q", "to_k", "to_v", "to_out.0"]
    repeated_blocks = ["BasicTransformerBlock"]
    max_sequence_length = 300

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """`prompt_embeds` of shape `(N, max_sequence_length, 4096)` and `prompt_attention_mask` of `(N, max_sequence_length)`."""
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        prompt_embeds, mask, _, _ = pipeline.encode_prompt(
            prompts, False, device=pipeline.device, clean_caption=False, max_sequence_length=length
        )
        return {"prompt_embeds": prompt_embeds, "prompt_attention_mask": mask}

    def arguments(self, positive, negative, guidance_scale):
        # The default of `negative_prompt` is a text, beside which the pipeline takes no encoded one.
        fixed = {"negative_prompt": None, "use_resolution_binning": False}
        return super().arguments(positive, negative, guidance_scale) | fixed

    def text_arguments(self, guidance_scale, negative_prompt=None, max_sequence_length=None):
        given = super().text_arguments(guidance_scale, negative_prompt, max_sequence_length)
        return given | {"clean_caption": False, "use_resolution_binning": False}

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        prediction = denoiser(
            noisy_latents,
            conditioning["prompt_embeds"],
            timesteps,
            added_cond_kwargs={name: conditioning.get(name) for name in ("resolution", "aspect_ratio")},
            encoder_attention_mask=conditioning["prompt_attention_mask"],
            return_dict=False,
        )[0]
        return prediction[:, : noisy_latents.shape[1]]  # the rest is the variance


class PixArtAlpha(PixArtSigma):
    pipelines = ("PixArtAlphaPipeline",)
    max_sequence_length = 120

    def image_conditioning(self, config, height, width, guidance_scale):
        """
        `resolution` of shape `(2,)` and `aspect_ratio` of shape `(1,)` for models of 1024 pixels. Integers: no cast of the
        conditioning to a dtype of eight bits rounds them.
        """
        import torch

        if config["sample_size"] != 128:
            return {}
        return {"resolution": torch.tensor([height, width]), "aspect_ratio": torch.tensor([height / width])}
