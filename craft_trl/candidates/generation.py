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

"""Image generation with the pipeline of any family, where an image depends on its own seed alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import diffusers  # its classes are imported when they are named: all of them take seconds, and a typo should not
import numpy as np
import torch
from PIL import Image

from ..arithmetic import exact_float32
from ..compilation import compile_blocks
from ..devices import default_device
from ..errors import UsageError
from ..families import get_family
from ..families.latents import stack
from ..offloading import Offloaded
from .config import SamplingConfig
from .loading import cast, load_network, load_pipeline, make_scheduler


class ImageGenerator:
    """
    A pipeline that draws an image for each pair of prompt and seed.

    The starting noise of an image comes from a CPU generator of its own seed, prompts and images go through the text
    encoders and the denoiser in batches of one size (the last one is filled up with copies), and through the VAE one by
    one: so an image is the same bit for bit whatever it is batched with, where all texts are of one length (of those of
    Qwen-Image, Z-Image and Lumina 2, which are as long as the longest of a batch, up to rounding). Each prompt is encoded once, and the
    negative prompt too.

    An image with values that are no numbers, or with all pixels alike (16 bits overflow to black), is drawn again in
    float32, by itself, with one part of the pipeline after the other in float32 and the text encoders out of the way.
    Float32, which the VAE may be in too, is that and not TF32. `image.info["dtype"]` says in which precision an image was
    drawn.

    Args:
        model (`str` or [`~diffusers.DiffusionPipeline`]):
            Hub id or folder of a pipeline, a single `.safetensors` file (see [`load_pipeline`]), or a pipeline.
        config ([`SamplingConfig`]):
            How to draw.
        revision (`str`, *optional*):
            Revision of the Hub repository.
        device (`str` or `torch.device`, *optional*):
            Where to run. Defaults to the GPU if there is one.
    """

    remembered_bytes = 256e6  # of prompts' conditioning: 800 prompts of SDXL in 16 bits, 60 of FLUX

    def __init__(
        self,
        model: "str | diffusers.DiffusionPipeline",
        config: SamplingConfig,
        revision: str | None = None,
        device: str | torch.device | None = None,
    ):
        self.config = config
        dtype = getattr(torch, config.dtype)
        if isinstance(model, str):
            model = load_pipeline(model, dtype=dtype, revision=revision)
        self.pipeline = model
        self.family = get_family(type(model).__name__)
        if config.vae_name_or_path is not None:
            model.vae = load_network(getattr(diffusers, self.family.vae), config.vae_name_or_path, dtype)
        if model.vae.dtype == torch.float16 and model.vae.config.get("force_upcast"):
            cast(model.vae, torch.float32)  # as the pipeline of SDXL does for every batch
        model.to(device or default_device())
        model.set_progress_bar_config(disable=True)
        if config.scheduler is not None or config.timestep_spacing is not None:
            # One that was not loaded does not name its class, which says whether it is of flow matching.
            own = {"_class_name": type(model.scheduler).__name__, **model.scheduler.config}
            model.scheduler = make_scheduler(config.scheduler or own["_class_name"], own, config.timestep_spacing)
        if config.torch_compile:
            compile_blocks(getattr(model, self.family.denoiser), self.family.repeated_blocks)
        if config.cache_interval is not None:
            how = {"cache_interval": config.cache_interval, "taylor_factors_dtype": dtype, "use_lite_mode": True}
            getattr(model, self.family.denoiser).enable_cache(diffusers.TaylorSeerCacheConfig(**how))
        height, width = self.family.size(getattr(model, self.family.denoiser).config, model.vae.config)
        self.height, self.width = config.height or height, config.width or width
        self.encoded: dict[str, dict[str, torch.Tensor]] = {}  # conditioning of prompts, the oldest first
        self.negative: dict[str, torch.Tensor] | None = None

    @torch.no_grad()
    @exact_float32()
    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """
        One image per prompt, started from the noise of the seed at the same place.

        Raises a [`UsageError`] that names prompt and seed if an image is broken in float32 too.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"Got {len(prompts)} prompts and {len(seeds)} seeds.")
        images = []
        size = self.config.batch_size
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            images += self._draw(prompts[part], seeds[part], size)
        return images

    def _draw(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> list[Image.Image]:
        """A batch of images, with broken ones drawn again in float32."""
        pixels, broken = self._decode_all(self._denoise(prompts, seeds, size))
        dtype = str(getattr(self.pipeline, self.family.denoiser).dtype).removeprefix("torch.")
        images = []
        for i, image in enumerate(pixels):
            drawn_in = dtype
            if broken[i] and dtype != "float32":
                # Alone, so that an image does not depend on how many others are broken.
                (image,), (broken[i],) = self._redraw(prompts[i], seeds[i])
                drawn_in = "float32"
            if broken[i]:
                raise UsageError(
                    f"The image of {prompts[i]!r} from seed {seeds[i]} is broken in float32 too: its values are no "
                    "numbers, or all its pixels are alike. Does the scheduler, and the VAE, go with the model?"
                )
            images.append(Image.fromarray(image))
            images[-1].info["dtype"] = drawn_in
        return images

    def _redraw(self, prompt: str, seed: int) -> tuple[np.ndarray, list[bool]]:
        """
        An image drawn in float32, and whether it is broken. One part of the pipeline after the other has its turn, since a
        card on which 16 bits fit need not hold all of it twice as wide.
        """
        parts = {k: part for k, part in self.pipeline.components.items() if isinstance(part, torch.nn.Module)}
        denoiser, vae = parts.pop(self.family.denoiser), parts.pop("vae")
        kept = self.encoded, self.negative
        self.encoded, self.negative = {}, None
        try:
            with in_float32(*parts.values()):
                self._encode([prompt], 1)
            waiting = Offloaded(parts.values())
            for name in parts:  # the pipeline would take the embeddings' precision from them
                setattr(self.pipeline, name, None)
            waiting.away()
            try:
                with in_float32(denoiser):
                    latents = self._denoise([prompt], [seed], 1)
            finally:
                waiting.back()
                for name, part in parts.items():
                    setattr(self.pipeline, name, part)
            with in_float32(vae):
                return self._decode_all(latents)
        finally:
            self.encoded, self.negative = kept

    def _decode_all(self, latents: torch.Tensor) -> tuple[np.ndarray, list[bool]]:
        """Pixels of shape `(N, H, W, 3)` of what the pipeline returned for N images, and which of them are broken."""
        latents = latents.to(self.pipeline.vae.dtype)  # for which diffusers (0.42) looks at every module
        pixels, broken = zip(*(self._decode(latent) for latent in latents.split(1)), strict=True)
        return torch.stack(pixels).cpu().numpy(), torch.stack(broken).tolist()

    def _denoise(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> torch.Tensor:
        """The latents of the images as the pipeline returns them, of shape `(N, ...)`."""
        filled = [*range(len(prompts))] + [len(prompts) - 1] * (size - len(prompts))
        positive, negative = self._encode(prompts, size)
        arguments = self.family.arguments(
            {name: values[filled] for name, values in positive.items()},
            {name: values.expand(size, *values.shape[1:]) for name, values in negative.items()},
            self.config.guidance_scale,
        )
        if self.family.guidance_rescale:
            arguments["guidance_rescale"] = self.config.guidance_rescale
        if self.config.guidance_cutoff is not None:
            arguments |= self.family.guidance_arguments(self.config.guidance_cutoff)
        # Every step is one call of the denoiser on the images with and without their prompt together.
        output = self.pipeline(
            **arguments,
            generator=[torch.Generator().manual_seed(int(seeds[i])) for i in filled],
            num_inference_steps=self.config.num_inference_steps,
            height=self.height,
            width=self.width,
            output_type="latent",
        )
        return output.images[: len(prompts)]

    def _encode(self, prompts: Sequence[str], size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Conditioning of prompts, each of shape `(N, ...)`, and that of the negative prompt, of shape `(1, ...)`."""
        length = self.config.max_sequence_length
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.encoded]
        if missing:
            encoded = self.family.encode_prompts(self.pipeline, missing + missing[-1:] * (size - len(missing)), length)
            for i, prompt in enumerate(missing):
                self.encoded[prompt] = {name: values[i].clone() for name, values in encoded.items()}
        if self.negative is None:
            negative = self.config.negative_prompt
            self.negative = (
                self.family.encode_empty_prompt(self.pipeline, length)
                if negative is None
                else self.family.encode_negative_prompt(self.pipeline, negative, length)
            )
        conditioning = {name: stack([self.encoded[prompt][name] for prompt in prompts]) for name in self.negative}
        one = sum(value.nbytes for value in self.encoded[prompts[0]].values())
        for prompt in list(self.encoded)[: -max(size, int(self.remembered_bytes / one))]:
            del self.encoded[prompt]
        return conditioning, self.negative

    def _decode(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Pixels of shape `(H, W, 3)`, uint8, of a latent image of shape `(1, ...)` in the precision of the VAE, and whether they are
        broken.

        The pipelines decode a whole batch, copies included, which takes several times the memory for no more speed, and
        turn what is no number into black.
        """
        image = self.family.decode_latents(self.pipeline, latent, self.height, self.width)
        image = self.pipeline.image_processor.denormalize(image)[0].float()
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        return pixels, ~image.isfinite().all() | (pixels.amin((0, 1)) == pixels.amax((0, 1))).all()


@contextmanager
def in_float32(*modules: torch.nn.Module) -> Iterator[None]:
    """Inside, modules are in float32. The weights are those of 16 bits, and the same again afterwards."""
    dtypes = [module.dtype for module in modules]
    try:
        for module in modules:
            cast(module, torch.float32)
        yield
    finally:
        for module, dtype in zip(modules, dtypes, strict=True):
            cast(module, dtype)
