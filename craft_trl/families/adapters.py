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

"""Adapters of pipelines: those that diffusers puts onto a pipeline, and those of pipelines for which it has no loader."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import SD3LoraLoaderMixin
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from huggingface_hub import hf_hub_download
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from ..errors import UsageError
from ..sources import ADAPTER
from . import get_family


if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn


def lora_loader(pipeline_class: type[DiffusionPipeline]) -> type:
    """
    The class whose `save_lora_weights` and `lora_state_dict` are for a pipeline: itself, or for one without these methods
    (diffusers 0.42: PixArt's) that of Stable Diffusion 3, which writes and reads a transformer's layers as they are.
    """
    return pipeline_class if hasattr(pipeline_class, "lora_state_dict") else SD3LoraLoaderMixin


def attach_adapter(pipeline: DiffusionPipeline, source: str | Path) -> None:
    """
    Put an adapter onto a pipeline, as `load_lora_weights` of diffusers does for most.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]):
            The pipeline.
        source (`str` or `Path`):
            File of the adapter, the folder that holds it, or the repository on the Hub.
    """
    file = Path(source) if Path(source).exists() else Path(hf_hub_download(str(source), ADAPTER))
    file = file / ADAPTER if file.is_dir() else file
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(file.parent, weight_name=file.name, low_cpu_mem_usage=True)
        return
    component = get_family(type(pipeline).__name__).denoiser
    layers, metadata = lora_loader(type(pipeline)).lora_state_dict(
        file.parent, weight_name=file.name, use_safetensors=True, return_lora_metadata=True
    )
    if not metadata:
        raise UsageError(f"The adapter {file} does not say its scale, as those of `craft train` do.")
    layers, config = (
        {name.removeprefix(f"{component}."): value for name, value in part.items()} for part in (layers, metadata)
    )
    denoiser = getattr(pipeline, component)
    inject_adapter_in_model(LoraConfig(**config), denoiser, low_cpu_mem_usage=True)
    set_layers(denoiser, layers, str(file), low_cpu_mem_usage=True)


def merge_adapter(pipeline: DiffusionPipeline) -> None:
    """Add an adapter to the weights that it lies on, as `fuse_lora` of diffusers does, so that it takes no time of its own."""
    for network in pipeline.components.values():
        if getattr(network, "peft_config", None):
            for layer in network.modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.merge()
            recurse_remove_peft_layers(network)
            del network.peft_config
            network._hf_peft_config_loaded = False


def set_layers(
    denoiser: "nn.Module | PeftModel", layers: dict[str, torch.Tensor], source: str, low_cpu_mem_usage: bool = False
) -> None:
    """
    Give the adapter of a denoiser its weights.

    Args:
        denoiser (`nn.Module`):
            The denoiser, with an adapter.
        layers (`dict[str, torch.Tensor]`):
            The weights, in peft's names.
        source (`str`):
            Where they come from.
        low_cpu_mem_usage (`bool`, *optional*, defaults to `False`):
            Whether the adapter has no data yet.

    Raises:
        [`UsageError`]: the weights are not those of this adapter.
    """
    loaded = set_peft_model_state_dict(denoiser, layers, low_cpu_mem_usage=low_cpu_mem_usage)
    if loaded.unexpected_keys or any("lora_" in name for name in loaded.missing_keys):
        raise UsageError(f"The adapter in {source} is not of this model and configuration.")
