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

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import diffusers  # its classes are imported when they are named: all of them take seconds, and a typo should not
import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from PIL import Image

from ..arithmetic import exact_float32
from ..compilation import compile_blocks
from ..devices import default_device
from ..errors import UsageError
from ..families import get_family
from ..families.checks import (
    V_PREDICTION,
    ZERO_SNR,
    check_configuration,
    check_single_file,
    is_sdxl_file,
    read_header,
)
from ..families.files import UNUSED, ModelFiles, find_files
from ..families.latents import stack
from ..noise import is_flow
from ..offloading import Offloaded
from ..quiet import quiet_bars, quiet_casts
from ..sources import first_line, loading
from .config import SamplingConfig


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
        if config.scheduler is not None:
            # One that was not loaded does not name its class, which says whether it is of flow matching.
            own = {"_class_name": type(model.scheduler).__name__, **model.scheduler.config}
            model.scheduler = make_scheduler(config.scheduler, own)
        if config.torch_compile:
            compile_blocks(getattr(model, self.family.denoiser), self.family.repeated_blocks)
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
        Pixels of shape `(H, W, 3)`, uint8, of a latent image of shape `(1, ...)`, and whether they are broken.

        The pipelines decode a whole batch, copies included, which takes several times the memory for no more speed, and
        turn what is no number into black.
        """
        latent = latent.to(self.pipeline.vae.dtype)
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
    if is_flow(config):  # solvers of diffusion that also solve flows have other names for it
        shift = config.get("shift") or config.get("flow_shift") or 1.0
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift, "shift": shift}
        overrides |= {name: value for name, value in flow.items() if name in parameters}
    return scheduler_class.from_config(config, **overrides)


@quiet_bars()
def load_pipeline(
    source: str,
    dtype: torch.dtype | dict[str, torch.dtype] = torch.float32,
    revision: str | None = None,
    without: Collection[str] = (),
) -> "diffusers.DiffusionPipeline":
    """
    Pipeline of a Hub id, a folder or a single `.safetensors` file, that returns images as the model draws them.

    Where only a variant of the weights is there, such as fp16, it is loaded and cast to `dtype`.

    The configuration of a single file, its scheduler and tokenizers included, is that of the folder in which it lies if
    that has a `model_index.json`, which needs no network; else diffusers takes the one of the original Stable Diffusion
    or SDXL from the Hub, with the prediction type that the file itself names by `v_pred` and `ztsnr`.

    Args:
        source (`str`):
            Hub id, folder or single `.safetensors` file.
        dtype (`torch.dtype` or `dict[str, torch.dtype]`, *optional*, defaults to `torch.float32`):
            Precision of all networks, or of components by name and of the others as `"default"`.
        revision (`str`, *optional*):
            Revision on the Hub.
        without (`Collection[str]`, *optional*):
            Components to leave out, of a folder or a Hub id. Of a denoiser the `config` is there, which pipelines ask for sizes.
    """
    path = Path(source)
    if path.suffix == ".safetensors":
        pipeline = _load_single_file(path, dtype)
        beside = (path.parent / "model_index.json").is_file()
        files = find_files(str(path.parent)) if beside else None
    else:
        files = find_files(source, revision)
        pipeline = _load_folder(files, dtype, revision, without)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            _check_whole(source, part)
    if getattr(pipeline, "watermark", None) is not None:
        pipeline.watermark = None  # it is in every candidate
    for name, part in pipeline.components.items() if files is not None else ():
        if name.startswith("tokenizer") and hasattr(part, "model_max_length"):
            part.model_max_length = files.model_max_length(name, part.model_max_length)
    return pipeline


@quiet_bars()
def load_network(
    network_class: type[torch.nn.Module],
    source: str,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    component: str = "",
) -> torch.nn.Module:
    """A network of diffusers: a component of a pipeline, or one by itself; in the variant that there is."""
    files = find_files(source, revision)
    held = files.weights(component, "diffusers")
    variant = files.variant if component else min(held, key=lambda name: name or "", default=None)
    variant = variant if variant in held else None
    options = {"subfolder": component} if component else {}
    with loading(f"Model {source}"):
        network = network_class.from_pretrained(
            source, dtype=dtype, revision=revision, variant=variant, use_safetensors=True, **options
        )
    _check_whole(source, network)
    return network


def _check_whole(source: str, network: torch.nn.Module) -> None:
    """Raise a [`UsageError`] if a file had no weights for a parameter, which diffusers leaves without data."""
    if missing := [name for name, parameter in network.named_parameters() if parameter.is_meta]:
        raise UsageError(f"Model {source}: its {type(network).__name__} lacks the weights of {missing[0]}.")


def _load_folder(
    files: ModelFiles, dtype: torch.dtype | dict, revision: str | None, without: Collection[str]
) -> "diffusers.DiffusionPipeline":
    check_configuration(files)
    # A safety checker blackens candidates, which a model would be trained on. What an index says is not there, such as the
    # third text encoder of a Stable Diffusion 3, `from_pretrained` (diffusers 0.42) misses unless it is told so.
    options = {name: None for name in files.index if name in (*UNUSED, *without) or files.index[name] == [None, None]}
    if "safety_checker" in options:
        options["requires_safety_checker"] = False  # or diffusers warns that there is none
    with loading(f"Model {files.source}"):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            files.source, dtype=dtype, revision=revision, variant=files.variant, use_safetensors=True, **options
        )
    denoiser = get_family(files.index["_class_name"]).denoiser
    if denoiser in without:
        config = FrozenDict(files.json(f"{denoiser}/config.json"))
        setattr(pipeline, denoiser, SimpleNamespace(config=config, dtype=pipeline.vae.dtype))
    for name, paths in files.read_weights().items():
        network = getattr(pipeline, name)
        held = sum(len(read_header(path).shapes) for path in paths)
        # What it does not find, transformers makes up, with a warning among many.
        if name.startswith("text_encoder") and paths and held < len(list(network.parameters())):
            raise UsageError(f"Model {files.source}: its {name} lacks weights, there are only {held} tensors.")
    return pipeline


def _load_single_file(path: Path, dtype: torch.dtype) -> "diffusers.DiffusionPipeline":
    header = read_header(path)
    check_single_file(header)
    index = path.parent / "model_index.json"
    if index.is_file():
        config, class_name = str(path.parent), find_files(str(path.parent)).index["_class_name"]
    else:
        config, class_name = None, "StableDiffusionXLPipeline" if is_sdxl_file(header) else "StableDiffusionPipeline"
    # The safety checker is in no checkpoint; left to itself, the class asks for one.
    sdxl = class_name == "StableDiffusionXLPipeline"
    options = {} if sdxl else {"safety_checker": None, "requires_safety_checker": False}
    try:
        with quiet_casts():
            pipeline = getattr(diffusers, class_name).from_single_file(
                str(path), config=config, dtype=dtype, **options
            )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Model {path}: {first_line(error)} Without a network, put the model_index.json and the configuration folders "
            "of the pipeline beside it."
        ) from error
    if config is None and V_PREDICTION in header.shapes:
        # Of zero terminal SNR, the last step must be among those that are drawn (https://huggingface.co/papers/2305.08891).
        zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        settings = {"prediction_type": "v_prediction"} | (zero_snr if ZERO_SNR in header.shapes else {})
        keeps = settings.keys() <= inspect.signature(type(pipeline.scheduler)).parameters.keys()
        name = type(pipeline.scheduler).__name__ if keeps else "DDIMScheduler"
        pipeline.scheduler = make_scheduler(name, {**pipeline.scheduler.config, **settings})
    return pipeline
