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

"""
Whether a model is one that we draw from, train and judge rightly: the one answer of every command, in one line, before any
work. It is read from configurations and from the headers of weights, without PyTorch.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ..errors import UsageError
from ..sources import first_line
from . import DENOISERS, Family, get_family
from .files import VOCABULARIES, ModelFiles, find_files
from .schedulers import foreign_scheduler
from .uses import check_drawing, check_training


if TYPE_CHECKING:
    from ..candidates.config import SamplingConfig
    from ..trainer.diffusion_config import DiffusionConfig


# What a UNet takes besides noisy latents is told by the number of its channels.
CHANNELS = {5: "a depth-to-image model", 7: "an upscaler", 8: "an instruct-pix2pix model", 9: "an inpainting model"}
# Weights that mean nothing without a scale or a table beside them, in ComfyUI's, bitsandbytes' and others' formats.
QUANTISED = re.compile(r"scaled_fp8|scale_weight|weight_scale|scale_input|input_scale|comfy_quant|absmax|quant_map")
PLAIN = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "BOOL"}  # integers: positions and counters
# The parameters of a UNet in a single file. Anything else below its prefix would be dropped, and has a meaning.
UNET = "model.diffusion_model."
UNET_PARAMETER = re.compile(
    r"((time_embed|label_emb\.0|out)\.[02]|(input|output)_blocks\.\d+\.\d+(\..+)?|middle_block\.\d+\..+)\.(weight|bias)"
)
# Empty tensors that say of a single file what no weight does. ComfyUI, Forge and AUTOMATIC1111 read them too.
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"


def check_model(
    source: str,
    revision: str | None = None,
    drawing: "SamplingConfig | None" = None,
    train: "DiffusionConfig | bool" = False,
) -> None:
    """
    Raise a [`UsageError`] unless `source` is a model that is drawn from, trained and judged rightly.

    Args:
        source (`str`):
            Folder of a pipeline, a single `.safetensors` file, or a pipeline on the Hub (or in its cache).
        revision (`str`, *optional*):
            Revision on the Hub.
        drawing ([`SamplingConfig`], *optional*):
            How it is to be drawn from.
        train (`bool` or [`DiffusionConfig`], *optional*, defaults to `False`):
            Whether the model is to be trained, which not every model is that can be drawn from, and how.
    """
    if revision is not None and Path(source).exists():
        raise UsageError(f"model_revision {revision}: {source} is here and not on the Hub: leave it out.")
    files = model_files(source, revision)
    if Path(source).suffix == ".safetensors":
        channels = check_single_file(read_header(Path(source)), bool(train))
    else:
        channels = check_configuration(files, bool(train))
        for path in itertools.chain.from_iterable(files.read_weights().values()):
            check_weights(source, read_header(path, source))
    if drawing is not None and drawing.vae_name_or_path is not None:
        check_vae(drawing.vae_name_or_path, get_family(files.index["_class_name"]), channels)
    if drawing is not None:
        check_drawing(files, drawing)
    if train and not isinstance(train, bool):
        check_training(files, train)


def model_files(source: str, revision: str | None = None) -> ModelFiles:
    """Files of a pipeline, or of a single file's configuration."""
    path = Path(source)
    if path.suffix != ".safetensors":
        return find_files(source, revision)
    if not (path.parent / "model_index.json").is_file():
        return Unconfigured(source, path.parent, frozenset())
    return replace(find_files(str(path.parent)), source=source)


class Unconfigured(ModelFiles):
    """A single file of Stable Diffusion or SDXL without a configuration beside it: that of the original."""

    @property
    def index(self) -> dict:
        is_sdxl = is_sdxl_file(read_header(Path(self.source)))
        return {"_class_name": "StableDiffusionXLPipeline" if is_sdxl else "StableDiffusionPipeline"}

    def json(self, name: str) -> dict:
        return {}


@dataclass(frozen=True)
class Header:
    """
    What a file of safetensors says of itself.

    Args:
        path (`Path`):
            The file.
        shapes (`dict[str, tuple[int, ...]]`):
            Shape of each tensor by name.
        dtypes (`frozenset[str]`):
            Dtypes that occur, as safetensors names them.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: frozenset[str]

    def has(self, *prefixes: str) -> bool:
        """Whether a tensor's name begins with one of these."""
        return any(name.startswith(prefixes) for name in self.shapes)


def read_header(path: Path, source: str | None = None) -> Header:
    """Header of a file; a [`UsageError`] unless it is there and as long as it says."""
    if not path.is_file():
        raise UsageError(f"Model {path}: there is no such file.")
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            return Header(path, shapes, frozenset(part.get_dtype() for part in slices.values()))
    except (OSError, SafetensorError) as error:
        where = f"Model {source}: {path} is" if source else f"Model {path}:"
        with path.open("rb") as file:
            is_pointer = file.read(20) == b"version https://git-"
        hint = " It is a pointer of Git LFS: `git lfs pull` fetches the file." if is_pointer else ""
        raise UsageError(f"{where} not a safetensors file ({first_line(error)}).{hint}") from error


def check_configuration(files: ModelFiles, train: bool = False) -> int:
    """Raise a [`UsageError`] unless the parts of a pipeline are there and of a known kind; return the latents' channels."""
    what = f"Model {files.source}:"
    class_name = files.index["_class_name"]
    try:
        family = get_family(class_name)
    except UsageError as error:
        raise UsageError(f"{what} {error}") from error
    for name, (library, part) in files.components.items():
        if library not in ("diffusers", "transformers"):
            raise UsageError(f"{what} its {name} is a {part} of {library}, code of its own that is not run.")
        if name.startswith("tokenizer"):
            inside = {path.removeprefix(f"{name}/") for path in files.names if path.startswith(f"{name}/")}
            if files.reachable and not any(vocabulary <= inside for vocabulary in VOCABULARIES):
                raise UsageError(f"{what} {name}/tokenizer.json is missing, and so are vocab.json and merges.txt.")
    encoders = [name for name in files.components if name.startswith("text_encoder")]
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders or ["text_encoder"]]
    denoiser = family.denoiser
    for name in (denoiser, "vae", "scheduler", *(encoders or ["text_encoder"]), *tokenizers):
        if name not in files.components:
            raise UsageError(f"{what} it has no {name}.")
    for name in sorted(files.names):  # what no library says in a line: a tokenizer's, above all
        if name.endswith(".json") and name.partition("/")[0] in files.components and (files.folder / name).is_file():
            files.json(name)
    if reason := foreign_scheduler(files.json("scheduler/scheduler_config.json"), family):
        raise UsageError(f"{what} {reason}")
    configs = {name: files.json(f"{name}/config.json") for name in files.networks}
    for name, config in configs.items():
        if config.get("quantization_config"):
            raise UsageError(f"{what} its {name} is quantised, and only whole weights are trained and compared.")
    channels = check_autoencoder(family, files.source, configs["vae"], files.components["vae"][1])
    if denoiser == "transformer":
        check_transformer(what, family, configs[denoiser], channels)
    elif files.components[denoiser][1] == "UNet2DConditionModel":
        check_unet(what, configs[denoiser], channels, [configs[name] for name in encoders])
        if train and (size := configs[denoiser].get("time_cond_proj_dim")):
            raise UsageError(
                f"{what} its {denoiser} is distilled to take the guidance scale as an input (time_cond_proj_dim {size}), "
                "as those of LCM are. It can be drawn from and judged, not trained: train the model it was made from."
            )
    return channels


def check_transformer(what: str, family: Family, config: Mapping, channels: int) -> None:
    """Raise a [`UsageError`] unless a transformer takes the latents of its VAE and nothing besides."""
    wanted, taken = channels * family.packing, config.get("in_channels", channels * family.packing)
    if taken != wanted:
        raise UsageError(
            f"{what} its transformer takes {taken} channels, and the latents have {wanted}. Models that take an image, a mask or "
            "a control besides are not supported."
        )


def check_unet(what: str, config: Mapping, channels: int, encoders: list[Mapping]) -> None:
    """Raise a [`UsageError`] unless a UNet takes what a pipeline of text encoders and a VAE gives it, and no more."""
    check_channels(what, config.get("in_channels", 4), config.get("out_channels", 4), channels)
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if config.get(key) not in (None, "text_proj"):
            raise UsageError(f"{what} its unet takes an input that is not given to it here ({key} {config[key]}).")
    width = config.get("encoder_hid_dim") or config.get("cross_attention_dim", 1280)
    widths = [encoder.get("hidden_size", 512) for encoder in encoders]
    if isinstance(width, int) and width != sum(widths):
        said = " + ".join(map(str, widths))
        raise UsageError(f"{what} its unet reads texts of width {width}, and its text encoders make {said}.")
    wanted = "text_time" if len(encoders) == 2 else None
    if (got := config.get("addition_embed_type")) != wanted:
        raise UsageError(f"{what} its unet has addition_embed_type {got}, expected {wanted}.")
    if wanted:
        # The image's size, crop and target size, and the pooled text.
        size = 6 * (config.get("addition_time_embed_dim") or 0) + encoders[1].get("projection_dim", 512)
        if (got := config.get("projection_class_embeddings_input_dim")) != size:
            raise UsageError(
                f"{what} its unet takes {got} numbers of size and pooled text, and there are {size}. The refiner of SDXL, "
                "which takes fewer, is not supported."
            )


def check_channels(what: str, taken: int, made: int, channels: int) -> None:
    if taken != channels:
        kind = CHANNELS.get(taken, "a model of this kind")
        raise UsageError(f"{what} {kind} ({taken} input channels, latents have {channels}) is not supported.")
    if made != channels:
        raise UsageError(f"{what} a unet with {made} output channels is not supported, latents have {channels}.")


def check_autoencoder(family: Family, source: str, config: Mapping, class_name: str | None) -> int:
    """Raise a [`UsageError`] unless a VAE is one that encodes and decodes as its family expects; return its channels."""
    if class_name != family.vae:
        raise UsageError(f"Model {source}: its VAE is of class {class_name}. Supported is {family.vae}.")
    return family.latent_channels(config)


def check_vae(source: str, family: Family, channels: int) -> None:
    """Raise a [`UsageError`] unless `source` is the folder or Hub id of a VAE of a family, for latents of that many channels."""
    files = find_files(source)
    config = files.json("config.json")
    if (got := check_autoencoder(family, source, config, config.get("_class_name"))) != channels:
        raise UsageError(
            f"vae_name_or_path {source}: it is for latents of {got} channels, the model's have {channels}."
        )
    held = files.weights("", "diffusers")
    for name in held.get(None) or next(iter(held.values()), []):
        if (files.folder / name).is_file():
            check_weights(source, read_header(files.folder / name, source))


def check_weights(source: str, header: Header) -> None:
    """Raise a [`UsageError`] if a file holds weights that are not the numbers they seem."""
    name = next((name for name in header.shapes if QUANTISED.search(name.rpartition(".")[2])), None)
    name = name or next(iter(sorted(header.dtypes - PLAIN)), None)
    if name:
        raise UsageError(
            f"Model {source}: its weights are quantised ({name}), as ComfyUI's scaled fp8 are, and would be read without their "
            "scales. Take the file of 16 or 32 bits."
        )


def check_single_file(header: Header, train: bool = False) -> int:
    """
    Raise a [`UsageError`] unless a single file is a whole checkpoint of Stable Diffusion or SDXL, and goes with the
    configuration beside it, if there is one; return the latents' channels.
    """
    path, shapes = header.path, header.shapes
    what = f"Model {path}:"
    if not header.has(f"{UNET}input_blocks."):
        raise UsageError(
            f"{what} there is no {UNET}input_blocks in it, so it is no checkpoint of Stable Diffusion or SDXL as a "
            f"whole.{_what(header)} A folder of diffusers is named by its path."
        )
    check_weights(str(path), header)
    if foreign := [n for n in shapes if n.startswith(UNET) and not UNET_PARAMETER.fullmatch(n.removeprefix(UNET))]:
        raise UsageError(
            f"{what} {foreign[0]} is no part of a UNet of Stable Diffusion or SDXL, and would be dropped."
        )
    if edm := [name for name in shapes if name.startswith("edm_")]:
        raise UsageError(f"{what} it is of EDM's noise process ({edm[0]}), as Playground v2.5 is, and not of DDPM's.")
    is_sdxl = is_sdxl_file(header)
    encoders = {"text encoder": ("cond_stage_model.",)}
    if is_sdxl:
        embedders = "conditioner.embedders."
        if header.has(f"{embedders}0.model.") and not header.has(f"{embedders}1."):
            raise UsageError(f"{what} the refiner of SDXL is not supported.")
        encoders = {"first text encoder": (f"{embedders}0.",), "second text encoder": (f"{embedders}1.",)}
    for part, prefixes in {"VAE": ("first_stage_model.", "vae."), **encoders}.items():
        if not header.has(*prefixes):
            raise UsageError(f"{what} it has no {part} ({prefixes[0]}*). Take a checkpoint that has one.")
    taken, made = shapes.get(f"{UNET}input_blocks.0.0.weight"), shapes.get(f"{UNET}out.2.weight")
    channels = next((s[1] for n, s in shapes.items() if n.endswith("decoder.conv_in.weight") and len(s) == 4), 4)
    if not taken or not made:
        raise UsageError(f"{what} its UNet is not complete.")
    check_channels(what, taken[1], made[0], channels)
    index = path.parent / "model_index.json"
    if index.is_file():
        files = replace(find_files(str(path.parent)), source=str(path))
        check_configuration(files, train)
        check_markers(what, header, files.json("scheduler/scheduler_config.json"))
    elif not is_sdxl and header.has("cond_stage_model.model.") and V_PREDICTION not in shapes:
        raise UsageError(
            f"{what} a checkpoint of Stable Diffusion 2 does not say whether it predicts epsilon or v: put the "
            "model_index.json and the configuration folders of its pipeline beside it."
        )
    return channels


def is_sdxl_file(header: Header) -> bool:
    """Whether a single file is of SDXL: only its UNet embeds the image's size."""
    return header.has(f"{UNET}label_emb.")


def check_markers(what: str, header: Header, scheduler: Mapping) -> None:
    """Raise a [`UsageError`] if a single file says of its noise process what the scheduler beside it denies."""
    for marker, key, expected, default in (
        (V_PREDICTION, "prediction_type", "v_prediction", "epsilon"),
        (ZERO_SNR, "rescale_betas_zero_snr", True, False),
    ):
        if marker in header.shapes and (got := scheduler.get(key, default)) != expected:
            raise UsageError(
                f"{what} its {marker} says that {key} is {expected}, and scheduler_config.json beside it says {got}: "
                "correct the one that is wrong."
            )


def _what(header: Header) -> str:
    """What a file without a whole checkpoint is, and how it is named where there is a use for it."""
    if any(part in name for name in header.shapes for part in ("lora_", ".lora.", "lokr_", "hada_")):
        return f" It is an adapter, which goes onto a model: `craft evaluate` takes it as NAME=lora:{header.path}."
    if header.has("down_blocks."):
        return f" It is a UNet alone: `craft evaluate` takes it as NAME={DENOISERS[0]}:{header.path}."
    return " It is a VAE alone." if header.has("decoder.", "first_stage_model.decoder.") else ""
