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

"""The part of a pipeline that is trained, and the adapter that can be trained in its stead."""

import dataclasses
import re
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists

from ..candidates.loading import cast, load_network
from ..errors import UsageError
from ..families import Family, get_family
from ..sources import first_line
from .fsdp import uses_fsdp
from .precision import checkpoint_block, frozen_dtype, is_bfloat16_module, modules_of


if TYPE_CHECKING:
    from .diffusion_config import DiffusionConfig


def pipeline_class_of(source: str, revision: str | None = None) -> str:
    """Class name of a pipeline, read from its `model_index.json`."""
    return DiffusionPipeline.load_config(source, revision=revision)["_class_name"]


def denoiser_of(source: str, revision: str | None = None) -> tuple[type[ModelMixin], dict[str, Any]]:
    """
    Class of a pipeline's denoiser, and the arguments by which its `from_pretrained` and `load_config` find it.
    """
    index = DiffusionPipeline.load_config(source, revision=revision)
    name = get_family(index["_class_name"]).denoiser
    denoiser_class = getattr(diffusers, index[name][1])
    part = {"pretrained_model_name_or_path": source, "subfolder": name, "revision": revision}
    return denoiser_class, part


def load_denoiser(source: str, revision: str | None = None) -> ModelMixin:
    """A pipeline's denoiser, in float32."""
    denoiser_class, part = denoiser_of(source, revision)
    return load_network(denoiser_class, source, revision=revision, component=part["subfolder"])


def lora_config(target_modules: list[str], rank: int = 16, alpha: int | None = None) -> LoraConfig:
    """
    Configuration of an adapter.

    Args:
        target_modules (`list[str]`):
            Names, or ends of names, of modules. Alone in the list may stand `all-linear`, or a regular expression for whole
            names.
        rank (`int`, *optional*, defaults to `16`):
            Its rank.
        alpha (`int`, *optional*):
            Its scale. Defaults to its rank.
    """
    first, *others = target_modules
    # What peft takes as a text, it does not find in a list of one.
    alone = not others and (first == "all-linear" or re.search(r"[^\w.]", first))
    return LoraConfig(
        r=rank,
        lora_alpha=alpha or rank,
        target_modules=first if alone else target_modules,
        init_lora_weights="gaussian",
    )


def add_adapter(denoiser: ModelMixin, config: PeftConfig, untrained: tuple[str, ...] = ()) -> PeftModel:
    """
    A denoiser with an adapter.

    Args:
        denoiser ([`~diffusers.ModelMixin`]):
            The denoiser.
        config ([`~peft.PeftConfig`]):
            Configuration of the adapter.
        untrained (`tuple[str, ...]`, *optional*):
            Where the adapter has nothing to learn, see [`Family.untrained`]: it is not put there.

    Raises:
        [`UsageError`]: the configuration names modules that are not there, or that no adapter can be put on.
    """
    names, targets = [name for name, _ in denoiser.named_modules()], config.target_modules
    for target in () if targets is None or isinstance(targets, str) else sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UsageError(f"lora_target_modules: this model has no {target!r}. {_examples(denoiser)}")
    unused = [name for name in names if untrained and f"{name}.".startswith(untrained)]
    unused = [name for name in unused if check_target_module_exists(config, name)]  # peft warns of others
    try:
        if not unused or isinstance(config.exclude_modules, str):
            return get_peft_model(denoiser, config)
        excluded = [*(config.exclude_modules or ()), *unused]
        model = get_peft_model(denoiser, dataclasses.replace(config, exclude_modules=excluded))
        # What is saved names the modules that it has, and whoever loads it would be warned that there is nothing to exclude.
        model.peft_config["default"].exclude_modules = config.exclude_modules
        return model
    except (TypeError, ValueError) as error:
        message = first_line(error).split(". ")[0].removesuffix(".")
        raise UsageError(f"lora_target_modules: {message}. {_examples(denoiser)}") from error
    except re.error as error:
        raise UsageError(f"lora_target_modules {targets!r} is no regular expression: {error}.") from error


def freeze(denoiser: torch.nn.Module, untrained: tuple[str, ...]) -> None:
    """Freeze the parameters whose names begin with one of these, see [`Family.untrained`]."""
    for name, parameter in denoiser.named_parameters():
        if name.startswith(untrained):
            parameter.requires_grad_(False)


def prepare_denoiser(
    denoiser: ModelMixin, family: Family, args: "DiffusionConfig", peft_config: PeftConfig | None = None
) -> torch.nn.Module:
    """
    A denoiser in the precision and the memory format that it is trained in, with its adapter if there is to be one.

    Args:
        denoiser ([`~diffusers.ModelMixin`]):
            The denoiser in float32. It is changed in place.
        family ([`Family`]):
            Its family.
        args ([`DiffusionConfig`]):
            How it is trained.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of the adapter.
    """
    trained, untrained = denoiser, family.untrained(denoiser.config)
    if args.channels_last:
        denoiser.to(memory_format=torch.channels_last)
    if peft_config is not None:
        cast(denoiser.requires_grad_(False), frozen_dtype(args))
        torch.manual_seed(args.seed)  # the Trainer sets it too, but after the adapter has been drawn
        # Not `add_adapter` of diffusers: the Trainer does not recognise that and would save the full weights.
        trained = add_adapter(denoiser, peft_config, untrained)
    freeze(denoiser, untrained)
    if args.activation_checkpointing:
        copied = is_bfloat16_module(args) and not uses_fsdp()
        family.checkpoint_activations(denoiser, checkpoint_block if copied else None)
    keep_mode(trained)
    # The Trainer calls it by this name, which diffusers' models do not have.
    denoiser.activation_checkpointing_enable = _is_enabled_already
    return trained


def keep_mode(module: torch.nn.Module) -> None:
    """
    Let `module.train` see first whether there is anything to do. The Trainer (transformers 5.24) calls it before every micro-batch,
    and PyTorch's then sets the mode of each of two thousand modules anew: a tenth of the time of launching SDXL's forward pass.
    """
    itself, train = (
        weakref.ref(module),
        type(module).train,
    )  # nothing that a module holds may hold it, see `compute_in_bfloat16`

    def train_if_needed(mode: bool = True) -> torch.nn.Module:
        module = itself()
        if any(part.training is not mode for part in modules_of(module)):
            train(module, mode)
        return module

    module.train = train_if_needed


def _is_enabled_already(**kwargs) -> None:
    pass


def check_adapter(source: str, revision: str | None, config: LoraConfig) -> None:
    """Raise the [`UsageError`]s of [`add_adapter`] before any weight is loaded."""
    denoiser_class, part = denoiser_of(source, revision)
    with torch.device("meta"):
        add_adapter(denoiser_class.from_config(denoiser_class.load_config(**part)), config)


def _examples(denoiser: ModelMixin) -> str:
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    found = (name for name, module in denoiser.named_modules() if isinstance(module, kinds))
    # The end of the name, without the number of a block; `to_out.0` needs its number.
    ends = Counter(".".join(re.findall(r"[^.]*[^.\d][^.]*(?:\.\d+)?$", name)) for name in found)
    return f"There are, among others, {', '.join(end for end, _ in ends.most_common(6))}."
