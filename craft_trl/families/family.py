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


"""What differs between model families, and the defaults of those that differ little."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import latents


if TYPE_CHECKING:
    import diffusers
    import torch


class Code(str):
    """An argument that is no value but code, in which `pipeline` is the pipeline."""

    __repr__ = str.__str__


def config_of(denoiser: "torch.nn.Module") -> Mapping[str, Any]:
    """Configuration of a denoiser, also where DDP or DeepSpeed has wrapped it, which have another by that name or none."""
    return getattr(denoiser, "module", denoiser).config


def guided_steps(steps: int, cutoff: float | None) -> int:
    """Steps of the first share `cutoff` of all, to the nearest; all of them where it is `None`."""
    return steps if cutoff is None else round(cutoff * steps)


def computed_steps(steps: int, cache_interval: int | None) -> list[int]:
    """Steps in which TaylorSeer computes the denoiser, see `disable_cache_before_step` of diffusers' `TaylorSeerCacheConfig`."""
    return [i for i in range(steps) if cache_interval is None or i < 3 or (i - 4) % cache_interval == 0]


class Family:
    """
    A family of text-to-image models: all that its pipeline, its denoiser and its VAE have of their own.

    Everything else is the same for all: the noise process follows from the scheduler (see [`noise_process`]), and outside
    this folder no code names a model, or assumes a UNet, four latent channels, 77 tokens or integer timesteps. A subclass
    says what differs from the defaults here, which are those of most flow-matching transformers. It is found by
    being in a module of `families/pipelines`, and imports nothing heavy at its top: these facts are looked at before
    PyTorch is loaded.

    Latents are `(B, C, h, w)` everywhere outside, never packed into tokens.

    Attributes:
        pipelines (`tuple[str, ...]`):
            Names of the diffusers classes it is for.
        denoiser (`str`):
            Component that is trained.
        vae (`str`):
            Class of the VAE.
        noise (`"diffusion"` or `"flow"`):
            Noise process that the models were trained on.
        lora_target_modules (`list[str]`):
            Modules that an adapter goes onto by default.
        repeated_blocks (`list[str]`):
            Classes of which the denoiser is built over and over, for regional compilation.
        patch (`int`):
            Side of the square of latents that is one token of the denoiser.
        packing (`int`):
            Channels of the denoiser's input for each channel of the latents: 4 where the pipeline packs squares of 2 x 2.
        no_guidance (`float`, *optional*):
            `guidance_scale` at and below which there is none. `None` where the scale is an input of the denoiser, and an
            image takes one call a step whatever it is.
        guidance_rescale (`bool`):
            Whether the pipeline takes `guidance_rescale`.
        guided_tensors (`tuple[str, ...]`, *optional*):
            Tensors that the pipeline's `callback_on_step_end` can change and of which guidance makes two halves, without the
            prompt and with it. `None` where the pipeline, once it guides, does so to the end.
        caches (`bool`):
            Whether the pipeline draws with diffusers' TaylorSeer, for which it must tell apart its calls without a prompt and with it.
        own_sigmas (`bool`):
            Whether the pipeline hands its scheduler the noise levels, which few schedulers take.
        default_sample_size (`int`, *optional*):
            Side of the latents of the pipeline's own images. Defaults to the denoiser's `sample_size`.
        max_sequence_length (`int`, *optional*):
            Tokens of a prompt that are read by default. `None` where the tokenizer alone says so.
        most_text_tokens (`int`, *optional*):
            Tokens of a prompt that the pipeline takes at most. `None` where it does not say.
    """

    pipelines: tuple[str, ...]
    denoiser: str = "transformer"
    vae: str = "AutoencoderKL"
    noise: str = "flow"
    lora_target_modules: list[str] = ["to_q", "to_k", "to_v", "to_out.0"]
    repeated_blocks: list[str]
    patch: int = 2
    packing: int = 1
    no_guidance: float | None = 1.0
    guidance_rescale: bool = False
    guided_tensors: tuple[str, ...] | None = None
    caches: bool = False
    own_sigmas: bool = False
    default_sample_size: int | None = None
    max_sequence_length: int | None = None
    most_text_tokens: int | None = None

    # Text

    def encode_prompts(
        self, pipeline: "diffusers.DiffusionPipeline", prompts: list[str], max_sequence_length: int | None = None
    ) -> "dict[str, torch.Tensor]":
        """
        Conditioning that belongs to a prompt, each of shape `(N, ...)`. Where the length varies, rows are filled up with zeros
        at their end, and a mask of integers beside them says which tokens are real.

        Args:
            pipeline ([`~diffusers.DiffusionPipeline`]):
                A pipeline, whose denoiser may have a `config` only.
            prompts (`list[str]`):
                Prompts.
            max_sequence_length (`int`, *optional*):
                Tokens of a prompt that are read. Defaults to the pipeline's own.
        """
        raise NotImplementedError

    def encode_negative_prompt(
        self, pipeline: "diffusers.DiffusionPipeline", prompt: str, max_sequence_length: int | None = None
    ) -> "dict[str, torch.Tensor]":
        """
        Conditioning of a text that guidance leads away from, each of shape `(1, ...)`. Some pipelines put an instruction before
        prompts, and none before this.
        """
        return self.encode_prompts(pipeline, [prompt], max_sequence_length)

    def encode_empty_prompt(
        self, pipeline: "diffusers.DiffusionPipeline", max_sequence_length: int | None = None
    ) -> "dict[str, torch.Tensor]":
        """Conditioning of the empty prompt as the pipeline has it at inference, each of shape `(1, ...)`."""
        return self.encode_negative_prompt(pipeline, "", max_sequence_length)

    def text_lengths(self, denoiser: Mapping[str, Any], index: Mapping[str, Any]) -> tuple[int, int | None]:
        """
        Fewest and most tokens that may be read of a prompt, from the denoiser's configuration and the pipeline's
        `model_index.json`: the denoiser has positions for so many, and the pipeline takes them; `None` where there is no end.
        """
        return 1, self.most_text_tokens

    # Images

    def image_conditioning(
        self, config: Mapping[str, Any], height: int, width: int, guidance_scale: float
    ) -> "dict[str, torch.Tensor]":
        """
        Conditioning that belongs to an image of this size, each without a batch's dimension: none.

        Args:
            config (`Mapping[str, Any]`):
                Configuration of the denoiser.
            height (`int`), width (`int`):
                Size in pixels.
            guidance_scale (`float`):
                Scale of a guidance that is an input of the denoiser.
        """
        return {}

    def pixels_per_latent(self, vae: Mapping[str, Any]) -> int:
        """Pixels to a side of one latent, from the configuration of the VAE."""
        return 2 ** (len(vae["block_out_channels"]) - 1)

    def latent_channels(self, vae: Mapping[str, Any]) -> int:
        """Channels of the latents, from the configuration of the VAE."""
        return vae.get("latent_channels", 4)

    def size_multiple(self, vae: Mapping[str, Any]) -> int:
        """What height and width must be multiples of, in pixels."""
        return self.pixels_per_latent(vae) * self.patch

    def most_tokens(self, denoiser: Mapping[str, Any]) -> int | None:
        """Tokens to a side that the denoiser has positions for, from its configuration; `None` where there is no end to them."""
        return None

    def size(self, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width in pixels of the pipeline's own images, from the configurations of denoiser and VAE."""
        side = self.default_sample_size or denoiser["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        factor = self.pixels_per_latent(vae)
        return height * factor, width * factor

    def latent_statistics(self, vae: "torch.nn.Module") -> dict[str, Any]:
        """
        What latents are normalised with, see [`latents.normalise`]: `scaling_factor` and `shift_factor`, numbers, and for each
        channel `latents_mean` and `latents_std`, lists, where the VAE has them.
        """
        return latents.statistics(vae.config)

    def encode_images(
        self, pipeline: "diffusers.DiffusionPipeline", pixels: "torch.Tensor"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """
        Mean and deviation of the latents of images, each `(B, C, h, w)`, before they are normalised.

        Args:
            pipeline ([`~diffusers.DiffusionPipeline`]):
                The pipeline.
            pixels (`torch.Tensor` of shape `(B, 3, H, W)`):
                Images in [-1, 1].
        """
        return latents.encode(pipeline.vae, pixels)

    def as_returned(self, values: "torch.Tensor") -> "torch.Tensor":
        """Latents `(B, C, h, w)` in the shape in which the pipeline returns them as `output_type="latent"`."""
        return latents.pack(values) if self.packing > 1 else values

    def decode_latents(
        self, pipeline: "diffusers.DiffusionPipeline", output: "torch.Tensor", height: int, width: int
    ) -> "torch.Tensor":
        """
        Images in [-1, 1], `(B, 3, H, W)`, of what the pipeline returns as `output_type="latent"`.

        Args:
            pipeline ([`~diffusers.DiffusionPipeline`]):
                The pipeline.
            output (`torch.Tensor` of shape `(B, ...)`):
                What it returned, in the precision of the VAE.
            height (`int`), width (`int`):
                Size in pixels.
        """
        if self.packing > 1:
            factor = self.pixels_per_latent(pipeline.vae.config)
            output = latents.unpack(output, height // factor, width // factor)
        return latents.decode(pipeline.vae, output, self.latent_statistics(pipeline.vae))

    # Drawing and training

    def arguments(
        self, positive: "dict[str, torch.Tensor]", negative: "dict[str, torch.Tensor]", guidance_scale: float
    ) -> dict[str, Any]:
        """The pipeline's arguments for encoded prompts, for what guidance leads away from, and for its scale."""
        negative = {f"negative_{name}": values for name, values in negative.items()}
        return {**positive, **negative, "guidance_scale": guidance_scale}

    def text_arguments(
        self, guidance_scale: float, negative_prompt: str | None = None, max_sequence_length: int | None = None
    ) -> dict[str, Any]:
        """
        The pipeline's arguments beside a prompt, with which it draws what it draws with [`arguments`] of encoded ones.

        Args:
            guidance_scale (`float`):
                Scale of the guidance.
            negative_prompt (`str`, *optional*):
                What guidance leads away from. Defaults to the empty prompt.
            max_sequence_length (`int`, *optional*):
                Tokens of a prompt that are read. Defaults to the pipeline's own.
        """
        given = {"negative_prompt": negative_prompt, "max_sequence_length": max_sequence_length}
        return {"guidance_scale": guidance_scale} | {name: value for name, value in given.items() if value is not None}

    def predict(
        self,
        denoiser: "torch.nn.Module",
        noisy_latents: "torch.Tensor",
        timesteps: "torch.Tensor",
        conditioning: "dict[str, torch.Tensor]",
    ) -> "torch.Tensor":
        """
        What the pipeline hands to its scheduler for noisy latents, with guidance off, `(B, C, h, w)`.

        Args:
            denoiser (`torch.nn.Module`):
                The denoiser.
            noisy_latents (`torch.Tensor` of shape `(B, C, h, w)`):
                Latents with noise.
            timesteps (`torch.Tensor` of shape `(B,)`):
                Timesteps as the scheduler numbers them: integers of diffusion; of flow 1000 times the noise level, float.
            conditioning (`dict[str, torch.Tensor]`):
                Of [`encode_prompts`] and [`image_conditioning`], each of shape `(B, ...)`.
        """
        raise NotImplementedError

    def takes_guidance(self, denoiser: Mapping[str, Any], index: Mapping[str, Any]) -> bool:
        """Whether guidance does anything, from the denoiser's configuration and the pipeline's `model_index.json`."""
        return True

    def is_distilled(self, denoiser: Mapping[str, Any], index: Mapping[str, Any]) -> bool:
        """Whether a configuration says that the model was distilled to draw in a few steps."""
        return not self.takes_guidance(denoiser, index)

    def untrained(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """
        Beginnings of the names of the denoiser's parameters that no output depends on, from its configuration. They stay as they
        are: processes that train together must agree on what has a gradient.
        """
        return ()

    def checkpoint_activations(
        self, denoiser: "torch.nn.Module", function: "Callable[..., torch.Tensor] | None" = None
    ) -> None:
        """
        Let a denoiser compute its blocks anew in the backward pass.

        Args:
            denoiser (`torch.nn.Module`):
                The denoiser.
            function (`Callable`, *optional*):
                Called with a block and its inputs, in the place of diffusers' own.
        """
        denoiser.enable_gradient_checkpointing(function)

    def calls(self, guidance_scale: float) -> int:
        """Calls of the denoiser for one image in one step."""
        return 1 if self.no_guidance is None or guidance_scale <= self.no_guidance else 2

    def guidance_arguments(self, cutoff: float) -> dict[str, Any]:
        """
        The pipeline's arguments with which it guides in its first steps only, see [`guided_steps`].

        diffusers has callbacks for it (0.42: `SDXLCFGCutoffCallback` and two more) that keep the text of the last image of a batch
        only, and give it to all. To be replaced by them when they keep a batch's.
        """

        def end_guidance(pipeline, step: int, timestep, tensors: dict) -> dict:
            if step + 1 == guided_steps(pipeline.num_timesteps, cutoff):
                pipeline._guidance_scale = 0.0  # until the next call
                tensors |= {name: tensors[name].chunk(2)[1] for name in self.guided_tensors}
            return tensors

        return {
            "callback_on_step_end": end_guidance,
            "callback_on_step_end_tensor_inputs": list(self.guided_tensors),
        }

    def log_shift(self, scheduler: Mapping[str, Any], tokens: int) -> float:
        """`mu` of schedulers that shift their noise levels by the number of an image's tokens, see [`FlowNoise`]."""
        low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        first, last = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
        return low + (high - low) * (tokens - first) / (last - first)
