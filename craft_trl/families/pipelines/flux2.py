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


"""FLUX.2: dev, to which guidance is an input, and klein, which has true guidance or was distilled to need none."""

from typing import TYPE_CHECKING

from ...quiet import quiet_logs
from .. import latents
from ..family import Code, Family


if TYPE_CHECKING:
    import torch


# Of the pipelines: the shift of their noise levels depends on it.
NUM_INFERENCE_STEPS = 50


class Flux2(Family):
    """
    Squares of 2 x 2 of the VAE's latents are one latent here, as they are for the pipeline: 128 channels, at a sixteenth of
    the image's size, normalised with the statistics of the VAE's batch normalisation.
    """

    pipelines = ("Flux2Pipeline",)
    vae = "AutoencoderKLFlux2"
    repeated_blocks = ["Flux2TransformerBlock", "Flux2SingleTransformerBlock"]
    # diffusers' training script, examples/dreambooth/train_dreambooth_lora_flux2.py. `to_out` is a layer of the single
    # blocks alone: those of the others are lists.
    lora_target_modules = [
        r"(.*\.)?(to_q|to_k|to_v|to_out\.0|to_qkv_mlp_proj)|single_transformer_blocks\.\d+\.attn\.to_out"
    ]
    patch = 1
    no_guidance = None
    own_sigmas = True
    default_sample_size = 64
    max_sequence_length = 512

    def encode_prompts(self, pipeline, prompts, max_sequence_length=None):
        """
        `prompt_embeds` of shape `(N, max_sequence_length, 3 d)`: the states of three layers of a language model of width d.
        """
        length = self.max_sequence_length if max_sequence_length is None else max_sequence_length
        # transformers (5.24) warns with each prompt of how the pipeline of dev (diffusers 0.42) calls its processor. Delete when
        # the pipeline calls it otherwise.
        with quiet_logs():
            prompt_embeds, _ = pipeline.encode_prompt(prompts, device=pipeline.device, max_sequence_length=length)
        return {"prompt_embeds": prompt_embeds}

    def image_conditioning(self, config, height, width, guidance_scale):
        """`guidance`, a number, of shape `()`, for models to which it is an input."""
        import torch

        return {"guidance": torch.tensor(float(guidance_scale))} if config.get("guidance_embeds", True) else {}

    def pixels_per_latent(self, vae):
        return 2 * super().pixels_per_latent(vae)

    def latent_channels(self, vae):
        return 4 * super().latent_channels(vae)

    def latent_statistics(self, vae):
        """In the precision of the VAE, in which the pipeline has them: 128 numbers each."""
        mean, std = _statistics(vae)
        return latents.statistics({}) | {"latents_mean": mean.tolist(), "latents_std": std.tolist()}

    def encode_images(self, pipeline, pixels):
        from torch.nn.functional import pixel_unshuffle

        mean, std = latents.encode(pipeline.vae, pixels)
        return pixel_unshuffle(mean, 2), pixel_unshuffle(std, 2)

    def decode_latents(self, pipeline, output, height, width):
        """This pipeline returns tokens, `(B, H/16 W/16, 128)`, normalised."""
        from torch.nn.functional import pixel_shuffle

        factor = self.pixels_per_latent(pipeline.vae.config)
        output = output.transpose(1, 2).unflatten(2, (height // factor, width // factor))
        mean, std = (values.view(1, -1, 1, 1) for values in _statistics(pipeline.vae))
        return pipeline.vae.decode(pixel_shuffle(output * std + mean, 2), return_dict=False)[0]

    def as_returned(self, values):
        return values.flatten(2).transpose(1, 2)

    def arguments(self, positive, negative, guidance_scale):
        return {**positive, "guidance_scale": guidance_scale}

    def predict(self, denoiser, noisy_latents, timesteps, conditioning):
        height, width = noisy_latents.shape[-2:]
        prompt_embeds, device = conditioning["prompt_embeds"], noisy_latents.device
        prediction = denoiser(
            noisy_latents.flatten(2).transpose(1, 2),
            prompt_embeds,
            timesteps.to(noisy_latents.dtype) / 1000,
            img_ids=_positions((1, height, width, 1), device),
            txt_ids=_positions((1, 1, 1, prompt_embeds.shape[1]), device),
            guidance=conditioning.get("guidance"),
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2).unflatten(2, (height, width))

    def takes_guidance(self, denoiser, index):
        return denoiser.get("guidance_embeds", True)

    def log_shift(self, scheduler, tokens):
        """Of drawing in as many steps as the pipeline takes by default. It takes other levels for other numbers of steps."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return compute_empirical_mu(tokens, NUM_INFERENCE_STEPS)


class Flux2Klein(Flux2):
    pipelines = ("Flux2KleinPipeline",)
    no_guidance = 1.0
    caches = True
    guided_tensors = ()  # without a prompt and with it are calls of their own

    def image_conditioning(self, config, height, width, guidance_scale):
        return {}

    def decode_latents(self, pipeline, output, height, width):
        """This pipeline returns latents of the VAE, `(B, 32, H/8, W/8)`, not normalised."""
        return pipeline.vae.decode(output, return_dict=False)[0]

    def as_returned(self, values):
        from torch.nn.functional import pixel_shuffle

        return pixel_shuffle(values, 2)

    def arguments(self, positive, negative, guidance_scale):
        return Family.arguments(self, positive, negative, guidance_scale)

    def text_arguments(self, guidance_scale, negative_prompt=None, max_sequence_length=None):
        given = super().text_arguments(guidance_scale, None, max_sequence_length)
        if negative_prompt is not None:  # which the pipeline takes encoded only
            length = "" if max_sequence_length is None else f", max_sequence_length={max_sequence_length}"
            given["negative_prompt_embeds"] = Code(f"pipeline.encode_prompt({negative_prompt!r}{length})[0]")
        return given

    def takes_guidance(self, denoiser, index):
        return not index.get("is_distilled", False)

    def untrained(self, config):
        return ("time_guidance_embed.guidance_embedder.",)  # which the pipeline gives nothing


def _positions(sizes: tuple[int, ...], device: "torch.device") -> "torch.Tensor":
    """Time, row, column and place in the text of each token, shape `(tokens, 4)`."""
    import torch

    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))


def _statistics(vae: "torch.nn.Module") -> "tuple[torch.Tensor, torch.Tensor]":
    """Mean and deviation of each of the 128 channels, in the precision of the VAE, in which the pipeline has them."""
    return vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
