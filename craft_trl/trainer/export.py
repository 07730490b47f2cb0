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

"""Trained models in the formats of other tools, each read back."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders import SD3LoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_kohya, convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import save_file

from ..candidates.loading import load_network
from ..errors import UsageError
from ..families import get_family
from ..families.files import ModelFiles, find_files
from ..families.single_file import markers, single_file_state_dict
from ..families.strength import Average, Tensors, set_strength
from ..quiet import quiet_bars, quiet_casts, quiet_logs
from ..sources import ADAPTER
from .checkpoints import PEFT_PREFIX


@quiet_bars()
def export_pipeline(
    model: str,
    output: Path,
    format: str,
    dtype: str | None = None,
    strength: float = 1.0,
    base: tuple[str, str | None] | None = None,
    average: Sequence[str] = (),
) -> None:
    """
    Write a pipeline, and read it back.

    Args:
        model (`str`):
            Folder of the pipeline.
        output (`Path`):
            Folder, or file that ends in `.safetensors`, to write.
        format (`str`):
            `"diffusers"`, a folder, or `"single-file"`.
        dtype (`str`, *optional*):
            Precision of the weights. Defaults to that which each part of the model has, and in a single file to the denoiser's.
        strength (`float`, *optional*, defaults to `1.0`):
            How far the way from the base to the model is gone.
        base (`tuple[str, str | None]`, *optional*):
            Folder or Hub id, and revision, of the base, for another strength than 1.
        average (`Sequence[str]`, *optional*):
            Folders of pipelines with which the mean is taken, of the denoisers.
    """
    dtype = getattr(torch, dtype) if dtype else None
    files = find_files(model)
    pipeline_class = files.index["_class_name"]
    family = get_family(pipeline_class)
    # Without a dtype diffusers loads everything in float32, whatever is in the files.
    stored = stored_dtypes(files)
    dtypes = dict.fromkeys(stored, dtype) if dtype else stored
    if format == "single-file":
        dtypes = dict.fromkeys(stored, dtypes[family.denoiser])
    options = {"dtype": dtypes, "use_safetensors": True, **files.absent}
    pipeline = DiffusionPipeline.from_pretrained(model, variant=files.variant, **options)
    if strength != 1 or average:
        denoiser = getattr(pipeline, family.denoiser)
        models = [Tensors(find_files(one).read_weights()[family.denoiser]) for one in (model, *average)]
        what = f"average of {', '.join((model, *average))}"
        tuned = start = Average(models, what) if average else models[0]
        if strength != 1:
            what = f"strength {strength:g}: {model} and {base[0]}"
            load_network(
                type(denoiser), base[0], revision=base[1], component=family.denoiser
            )  # what must be downloaded, is
            start = Tensors(find_files(*base).read_weights()[family.denoiser])
        set_strength(denoiser, start, tuned, strength, what)
    if format == "diffusers":
        with quiet_logs():  # diffusers warns of each part that is not there
            pipeline.save_pretrained(output, max_shard_size="10GB")
        again = DiffusionPipeline.from_pretrained(output, **options)
    else:
        state_dict = single_file_state_dict(pipeline) | markers(pipeline.scheduler.config)
        save_file({name: value.contiguous() for name, value in state_dict.items()}, output, metadata={"format": "pt"})
        with quiet_casts():
            again = getattr(diffusers, pipeline_class).from_single_file(
                str(output), config=model, local_files_only=True, dtype=dtypes[family.denoiser]
            )
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            assert_equal(part.state_dict(), getattr(again, name).state_dict(), f"{name} of {output}")


def average_into(folder: Path, models: Sequence[str]) -> None:
    """Give a pipeline's folder the mean of its denoiser's weights and those of other pipelines', in the precision that it has."""
    files = find_files(str(folder))
    denoiser = get_family(files.index["_class_name"]).denoiser
    tensors = [Tensors(find_files(model).read_weights()[denoiser]) for model in (str(folder), *models)]
    mean = Average(tensors, f"average of {', '.join((str(folder), *models))}")
    written = {}
    for file in files.read_weights()[denoiser]:
        with safe_open(file, "pt") as weights:
            values = {n: mean[n].to(weights.get_tensor(n).dtype).contiguous() for n in weights.keys()}
        # Beside it: the file itself is still read from.
        written[file] = file.with_name(f".{file.name}.tmp")
        save_file(values, written[file], metadata={"format": "pt"})
    for file, temporary in written.items():
        temporary.replace(file)


def export_adapter(model: str, output: Path, format: str, dtype: str | None = None, strength: float = 1.0) -> None:
    """
    Write an adapter of a denoiser, and read it back.

    Args:
        model (`str`):
            Folder of the adapter.
        output (`Path`):
            Folder, or file that ends in `.safetensors`, to write.
        format (`str`):
            `"diffusers"` or `"peft"`, each a folder, or `"kohya"`, of a UNet, or `"comfyui"`, of a transformer, each a file.
        dtype (`str`, *optional*):
            Precision of the weights. Defaults to that of the adapter.
        strength (`float`, *optional*, defaults to `1.0`):
            Factor of its scale. The weights stay what they are but in `"comfyui"`, which holds the scale in them.
    """
    prefix = stored_prefix(Path(model) / ADAPTER)
    # The layout of an adapter does not depend on the class, and its folder does not name one.
    reader = StableDiffusionXLLoraLoaderMixin if prefix == "unet" else SD3LoraLoaderMixin

    def read(folder: Path | str, name: str = ADAPTER) -> tuple[dict[str, torch.Tensor], dict]:
        layers, *_, metadata = reader.lora_state_dict(str(folder), weight_name=name, return_lora_metadata=True)
        return layers, {key.removeprefix(f"{prefix}."): value for key, value in (metadata or {}).items()}

    layers, config = read(model)
    if not config:
        raise UsageError(f"The adapter in {model} does not say its scale, as those of `craft train` do.")
    dtype = getattr(torch, dtype) if dtype else None
    if strength != 1:
        patterns = {name: alpha * strength for name, alpha in (config.get("alpha_pattern") or {}).items()}
        config |= {"lora_alpha": config["lora_alpha"] * strength, "alpha_pattern": patterns}
    if format in ("kohya", "comfyui"):
        scales = layer_scales(model, layers, config)
    if format == "comfyui":
        # ComfyUI takes these names for transformers (comfy/lora.py), does not read diffusers' metadata, and takes the scale for
        # 1 where there is no alpha (comfy/weight_adapter/lora.py): so the scale goes into the second layer.
        layers = {n: v * scales[module_of(n)] if ".lora_B." in n else v for n, v in layers.items()}
        config |= {"lora_alpha": config["r"], "alpha_pattern": config.get("rank_pattern") or {}, "use_rslora": False}
    if dtype:
        layers = {name: value.to(dtype) for name, value in layers.items()}
    unprefixed = {name.removeprefix(f"{prefix}."): value for name, value in layers.items()}
    parts = {f"{prefix}_lora_layers": unprefixed, f"{prefix}_lora_adapter_metadata": config}
    if format == "kohya":
        converted, alphas = {}, []
        for module, scale in scales.items():
            of_module = {name: value for name, value in layers.items() if module_of(name) == module}
            converted |= convert_state_dict_to_kohya(of_module)
            # The converter takes the rank for alpha, which would change the adapter's scale, alpha / rank, to 1.
            (alpha,) = (name for name in converted.keys() - {*alphas} if name.endswith(".alpha"))
            converted[alpha] = torch.tensor(scale * float(converted[alpha]))
            alphas.append(alpha)
        save_file(converted, output)
        again, network_alphas = StableDiffusionXLPipeline.lora_state_dict(str(output))
        again = convert_unet_state_dict_to_peft(again)
        if sorted(network_alphas.values()) != sorted(float(converted[name]) for name in alphas):
            raise RuntimeError(f"The scale in {output} is not that of the adapter.")
    elif format == "comfyui":
        reader.save_lora_weights(output.parent, weight_name=output.name, **parts)
        again, read_config = read(output.parent, output.name)
        if {*layer_scales(str(output), again, read_config).values()} != {1.0}:
            raise RuntimeError(f"The scale in {output} is not that of the adapter.")
    elif format == "peft":
        layers = {f"{PEFT_PREFIX}{name}": value for name, value in unprefixed.items()}
        output.mkdir()
        save_file(layers, output / "adapter_model.safetensors", metadata={"format": "pt"})
        LoraConfig(**config).save_pretrained(output)
        again = load_peft_weights(str(output), device="cpu")
        if LoraConfig.from_pretrained(output).to_dict() != LoraConfig(**config).to_dict():
            raise RuntimeError(f"The configuration in {output} is not that of the adapter.")
    else:
        shutil.copytree(model, output, ignore=lambda folder, names: [name for name in names if name != ADAPTER])
        if dtype or strength != 1:
            reader.save_lora_weights(output, **parts)
        again, read_config = read(output)
        if strength != 1 and any(read_config[key] != config[key] for key in ("lora_alpha", "alpha_pattern")):
            raise RuntimeError(f"The scale in {output} is not that of the adapter.")
    assert_equal(layers, again, str(output))


def module_of(name: str) -> str:
    """The module that a layer of an adapter is for, by the layer's name."""
    return name.rpartition(".lora_")[0]


def layer_scales(source: str, layers: dict[str, torch.Tensor], config: dict) -> dict[str, float]:
    """Scale of an adapter for each module: alpha by rank, as peft has them."""
    if other := next((name for name in layers if ".lora_A.weight" not in name and ".lora_B.weight" not in name), None):
        raise UsageError(f"The adapter in {source} has more than LoRA's layers ({other}): use diffusers or peft.")
    config, scales = LoraConfig(**config), {}
    for name, value in layers.items():
        if ".lora_A." in name:
            module, rank = module_of(name), len(value)
            alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
            scales[module] = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    return scales


def stored_prefix(path: Path) -> str:
    """Component that an adapter's file is for."""
    with safe_open(path, "pt") as file:
        (prefix,) = {name.split(".")[0] for name in file.keys()}
    return prefix


def stored_dtypes(files: ModelFiles) -> dict[str, torch.dtype]:
    """Precision in which each network of a pipeline is stored, that of the first of its weights, by name."""
    dtypes = {}
    for name, (library, _) in files.networks.items():
        held = files.weights(name, library)
        with safe_open(files.folder / held.get(files.variant, held.get(None))[0], "pt") as file:
            dtypes[name] = file.get_tensor(next(iter(file.keys()))).dtype
    return dtypes


def assert_equal(written: dict[str, torch.Tensor], read: dict[str, torch.Tensor], what: str) -> None:
    """Raise a `RuntimeError` unless what was read back is what was written, to the last bit."""
    different = sorted(written.keys() ^ read.keys()) or [
        # What a file lacks stays without data, on the device `meta`.
        name
        for name, value in written.items()
        if read[name].is_meta or not torch.equal(value, read[name])
    ]
    if different:
        raise RuntimeError(f"{what} was read back with other weights than were written, the first is {different[0]}.")
