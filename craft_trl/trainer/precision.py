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

"""bfloat16 arithmetic on float32 parameters, and what is kept in 16 bits."""

import functools
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.operations import recursively_apply
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..families.files import ModelFiles


if TYPE_CHECKING:
    from .diffusion_config import DiffusionConfig


Place = tuple[dict[str, torch.Tensor | None], str, torch.Tensor]


def is_bfloat16_module(args: "DiffusionConfig") -> bool:
    """Whether the whole module is to compute in bfloat16; DeepSpeed makes a module and master weights of its own."""
    return args.mixed_precision == "bf16" and args.bf16_mode == "module" and args.deepspeed_plugin is None


def frozen_dtype(args: "DiffusionConfig") -> torch.dtype:
    """Precision of what is not trained, and needs no master weights. peft keeps an adapter in float32 in any case."""
    if args.mixed_precision == "fp16" and args.deepspeed_plugin is None:
        return torch.float16
    return torch.bfloat16 if is_bfloat16_module(args) else torch.float32


def encoding_dtypes(files: ModelFiles, text_encoder_dtype: str | None = None) -> dict[str, torch.dtype]:
    """
    Precision of a pipeline's parts while images and prompts are encoded, by name, and of the others as `"default"`.

    Args:
        files ([`ModelFiles`]):
            Files of the pipeline.
        text_encoder_dtype (`str`, *optional*):
            That of the text encoders. By default CLIP's, which are small, are in float32, and language models of up to 24
            billion parameters in bfloat16.
    """
    dtypes = {"default": torch.float32}
    for name, (_, class_name) in files.networks.items():
        if name.startswith("text_encoder"):
            default = "float32" if class_name.startswith("CLIP") else "bfloat16"
            dtypes[name] = getattr(torch, text_encoder_dtype or default)
    return dtypes


def modules_of(module: nn.Module) -> list[nn.Module]:
    """A module and its submodules: what `modules()` gives, without its names and nested generators, which take several times as long."""
    found = [module]
    for parent in found:  # which grows
        found += [child for child in parent._modules.values() if child is not None]
    return list(dict.fromkeys(found))


def places_of(module: nn.Module) -> list[Place]:
    """Where the parameters of a module and its submodules are: dictionary, name in it, parameter. One may be in several places."""
    return [(m._parameters, k, p) for m in modules_of(module) for k, p in m._parameters.items() if p is not None]


@contextmanager
def placed(places: list[Place]) -> Iterator[None]:
    """
    Inside, other tensors are in the places of parameters. PyTorch's `functional_call` (2.14) does the same, but looks up each by its
    name several times, which takes longer than to copy them all.
    """
    before = [parameters[name] for parameters, name, _ in places]
    try:
        for parameters, name, tensor in places:
            parameters[name] = tensor
        yield
    finally:
        for (parameters, name, _), tensor in zip(places, before, strict=True):
            parameters[name] = tensor


def in_bfloat16(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, copies in bfloat16 are in the places of a module's parameters, which are behind them in the graph."""
    places = places_of(module)
    copies = {id(p): p.to(torch.bfloat16) for p in {id(p): p for _, _, p in places}.values()}
    return placed([(parameters, name, copies[id(p)]) for parameters, name, p in places])


def compute_in_bfloat16(module: nn.Module, cast_parameters: bool = True) -> None:
    """
    Let a module compute in bfloat16 throughout while its parameters stay float32.

    Its forward pass casts the parameters once and uses the copies, and autograd adds their gradients to the float32
    gradients of the parameters. So the parameters are the master weights: the sum over micro-batches, the average over
    processes, clipping, the optimizer, checkpoints and the saved model are float32, and nothing but the forward
    pass knows of the copies. Autocast over float32 parameters costs more: it casts activations operation by operation
    and keeps norms and their saved inputs in float32.

    Args:
        module (`nn.Module`):
            Module to change in place. Parameters that are bfloat16 already, such as the frozen ones under an adapter,
            are used as they are.
        cast_parameters (`bool`, *optional*, defaults to `True`):
            Whether the forward pass casts the parameters. FSDP does when it gathers them.
    """
    # Nothing that the module holds may hold the module: memory of its size would wait for the garbage collector.
    itself, function = weakref.ref(module), type(module).forward

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(torch.bfloat16)

    def is_feature_map(value: Any) -> bool:
        # Timesteps, of one dimension, are embedded in float32 before they are cast. Micro-conditioning is integers.
        return torch.is_tensor(value) and value.is_floating_point() and value.ndim > 1

    @functools.wraps(function)
    def bfloat16_forward(*args, **kwargs) -> Any:
        module = itself()
        args, kwargs = recursively_apply(cast, (args, kwargs), test_type=is_feature_map)
        if not cast_parameters:
            return function(module, *args, **kwargs)
        with in_bfloat16(module):
            return function(module, *args, **kwargs)

    module.forward = bfloat16_forward


def checkpoint_block(block: nn.Module, *args: Any) -> Any:
    """Activation checkpointing that recomputes a block with the parameters that it has now."""
    # diffusers' own calls the block again in the backward pass, when the bfloat16 copies are no longer in their place.
    places = places_of(block)

    def run(*inputs: Any) -> Any:
        with placed(places):
            return block(*inputs)

    return checkpoint(run, *args, use_reentrant=False)
