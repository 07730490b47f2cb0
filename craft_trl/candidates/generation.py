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

"""Image generation with any Stable Diffusion or SDXL pipeline, where an image depends on its own seed alone."""

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import diffusers  # its classes are imported when they are named: all of them take seconds, and a typo should not
import numpy as np
import torch
from PIL import Image

from ..devices import Offloaded, default_device
from ..errors import UsageError
from ..families import get_family
from ..quiet import quiet_bars
from ..sources import first_line, single_file_names
from .config import SamplingConfig


class ImageGenerator:
    """
    A pipeline that draws an image for each pair of prompt and seed.

    The starting noise of an image comes from a CPU generator of its own seed, prompts and images go through the text
    encoders and the denoiser in batches of one size (the last one is filled up with copies), and through the VAE one by
    one: so an image is the same bit for bit whatever it is batched with. Each prompt is encoded once, and the negative
    prompt too.

    An image with values that are no numbers, or with all pixels alike (16 bits overflow to black), is drawn again in
    float32, by itself, with one part of the pipeline after the other in float32 and the text encoders out of the way. `image.info["dtype"]` says in which precision an image was drawn.

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

    num_prompts = 512  # that are remembered, of about 0.3 MB each for SDXL in 16 bits

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
            with quiet_bars():
                model.vae = diffusers.AutoencoderKL.from_pretrained(
                    config.vae_name_or_path, dtype=dtype, use_safetensors=True
                )
        if model.vae.dtype == torch.float16 and model.vae.config.force_upcast:
            cast(model.vae, torch.float32)  # as the pipeline of SDXL does for every batch
        model.to(device or default_device())
        model.set_progress_bar_config(disable=True)
        if config.scheduler is not None:
            model.scheduler = make_scheduler(config.scheduler, model.scheduler.config)
        if config.torch_compile:
            getattr(model, self.family.DENOISER).compile_repeated_blocks(fullgraph=True)
        self.encoded: dict[str, dict[str, torch.Tensor]] = {}  # conditioning of prompts, the oldest first
        self.negative: dict[str, torch.Tensor] | None = None

    @torch.no_grad()
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
        dtype = str(getattr(self.pipeline, self.family.DENOISER).dtype).removeprefix("torch.")
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
        denoiser, vae = parts.pop(self.family.DENOISER), parts.pop("vae")
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
        """Pixels of shape `(N, H, W, 3)` of latents of shape `(N, 4, H/8, W/8)`, and which of the images are broken."""
        pixels, broken = zip(*(self._decode(latent) for latent in latents.split(1)), strict=True)
        return torch.stack(pixels).cpu().numpy(), torch.stack(broken).tolist()

    def _denoise(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> torch.Tensor:
        """Latents of shape `(N, 4, H/8, W/8)`."""
        filled = [*range(len(prompts))] + [len(prompts) - 1] * (size - len(prompts))
        conditioning = self._encode(prompts, size)
        # Every step is one call of the denoiser on the images with and without their prompt together.
        output = self.pipeline(
            **{name: values[filled] for name, values in conditioning.items()},
            generator=[torch.Generator().manual_seed(int(seeds[i])) for i in filled],
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=self.config.guidance_scale,
            guidance_rescale=self.config.guidance_rescale,
            height=self.config.height,
            width=self.config.width,
            output_type="latent",
        )
        return output.images[: len(prompts)]

    def _encode(self, prompts: Sequence[str], size: int) -> dict[str, torch.Tensor]:
        """The pipeline's arguments for prompts and the negative prompt, each of shape `(N, ...)`."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.encoded]
        if missing:
            encoded = self.family.encode_prompts(self.pipeline, missing + missing[-1:] * (size - len(missing)))
            for i, prompt in enumerate(missing):
                self.encoded[prompt] = {name: values[i].clone() for name, values in encoded.items()}
        if self.negative is None:
            negative = self.config.negative_prompt
            self.negative = (
                self.family.encode_empty_prompt(self.pipeline)
                if negative is None
                else self.family.encode_prompts(self.pipeline, [negative])
            )
        conditioning = {
            name: torch.stack([self.encoded[prompt][name] for prompt in prompts]) for name in self.negative
        }
        conditioning |= {
            f"negative_{name}": values.expand(len(prompts), *values.shape[1:])
            for name, values in self.negative.items()
        }
        for prompt in list(self.encoded)[: -self.num_prompts]:
            del self.encoded[prompt]
        return conditioning

    def _decode(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Pixels of shape `(H, W, 3)`, uint8, of a latent image of shape `(1, 4, H/8, W/8)`, and whether they are broken.

        The pipelines decode a whole batch, copies included, which takes several times the memory for no more speed, and
        turn what is no number into black.
        """
        vae = self.pipeline.vae
        latent = latent.to(vae.dtype)
        mean, std = (
            torch.tensor(values, device=latent.device, dtype=latent.dtype).view(1, -1, 1, 1) if values else default
            for values, default in ((vae.config.latents_mean, 0.0), (vae.config.latents_std, 1.0))
        )
        latent = latent * std / vae.config.scaling_factor + mean
        image = vae.decode(latent, return_dict=False)[0]
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


def cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """
    Change the precision of a module in place. `ModelMixin.to` (diffusers 0.42) warns each time of modules to be kept in
    float32, also of those that have none.
    """
    torch.nn.Module.to(module, dtype)


def make_scheduler(name: str, config: dict) -> "diffusers.SchedulerMixin":
    """
    The scheduler of this class name with the settings of a model's own, such as its noise schedule, `prediction_type`
    and `rescale_betas_zero_snr`.
    """
    scheduler_class = getattr(diffusers, name)
    parameters = inspect.signature(scheduler_class).parameters
    # Without it, a model of zero terminal SNR would start from noise of another strength than it was trained with.
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in parameters:
        raise UsageError(
            f"{name} has no rescale_betas_zero_snr, which this model's scheduler sets: use DDIMScheduler, "
            "EulerDiscreteScheduler or DPMSolverMultistepScheduler."
        )
    # Latents reach far beyond [-1, 1]. Schedulers of pixel-space origin clip by default, and another scheduler's config
    # need not say otherwise: without this DDIM turns every image into noise.
    overrides = {"clip_sample": False} if "clip_sample" in parameters else {}
    return scheduler_class.from_config(config, **overrides)


@quiet_bars()
def load_pipeline(
    source: str, dtype: torch.dtype = torch.float32, revision: str | None = None
) -> "diffusers.DiffusionPipeline":
    """
    Pipeline of a Hub id, a folder or a single `.safetensors` file, that returns images as the model draws them.

    The configuration of a single file, its scheduler and tokenizers included, is that of the folder in which it lies if
    that has a `model_index.json`, which needs no network; else diffusers takes the one of the original Stable Diffusion
    or SDXL from the Hub. A checkpoint trained with v-prediction needs the former, to be known as such.
    """
    if Path(source).suffix == ".safetensors":
        pipeline = _load_single_file(Path(source), dtype)
    else:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            source, dtype=dtype, revision=revision, use_safetensors=True
        )
    # A safety checker blackens candidates and a watermark is in every one of them; a model would be trained on both.
    for name in ("safety_checker", "watermark"):
        if getattr(pipeline, name, None) is not None:
            setattr(pipeline, name, None)
    return pipeline


def _load_single_file(path: Path, dtype: torch.dtype) -> "diffusers.DiffusionPipeline":
    index, names = path.parent / "model_index.json", single_file_names(path)
    if index.is_file():
        config, class_name = str(path.parent), json.loads(index.read_text())["_class_name"]
    else:
        # SDXL's checkpoints hold their text encoders under this name, all older ones under `cond_stage_model`.
        is_sdxl = any(name.startswith("conditioner.") for name in names)
        config, class_name = None, "StableDiffusionXLPipeline" if is_sdxl else "StableDiffusionPipeline"
    try:
        # The safety checker is in no checkpoint; left to itself, the class asks for one.
        options = {} if class_name == "StableDiffusionXLPipeline" else {"safety_checker": None}
        return getattr(diffusers, class_name).from_single_file(str(path), config=config, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Model {path}: {first_line(error)} Without a network, put the model_index.json and the configuration folders "
            "of the pipeline beside it."
        ) from error
