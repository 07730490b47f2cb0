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

"""PyTorch's FSDP2, as accelerate starts it: weights, gradients and the optimizer's states in shards over all processes."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..devices import process_state
from ..errors import UsageError


if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from .diffusion_config import DiffusionConfig

FSDP_WEIGHTS = "pytorch_model_fsdp.bin"  # of the Trainer's, in a checkpoint
# What `accelerate launch` says of FSDP in the environment, by the name of its option: what must be said, and why.
SETTINGS = {
    "fsdp_version": ("2", "FSDP1 shards what the optimizer needs whole"),
    "fsdp_state_dict_type": ("FULL_STATE_DICT", "what is saved is whole, whatever the number of processes"),
    "fsdp_cpu_ram_efficient_loading": ("false", "the text encoders of all but one process would be empty"),
    "fsdp_offload_params": ("false", "zero2_offload keeps the optimizer on the host"),
    "fsdp_activation_checkpointing": ("false", "activation_checkpointing does the same"),
}


def uses_fsdp(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `accelerate launch` started this process for FSDP."""
    return environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_shards(args: "DiffusionConfig") -> None:
    """Raise a [`UsageError`] for what cannot be done with the shards of ZeRO-3 or FSDP, if this process was started for one."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    kind = "FSDP" if uses_fsdp() else "ZeRO-3" if is_deepspeed_zero3_enabled() else None
    for name in ("use_ema", "compile_blocks") if kind else ():
        if getattr(args, name):
            raise UsageError(f"{name} needs whole parameters, and {kind} shards them: use ZeRO-2.")
    if kind and getattr(args, "inversion_steps", None) is not None:
        raise UsageError(
            f"inversion_steps has processes call the model unequally often, and {kind} has them wait for each other at every "
            "call: use ZeRO-2."
        )
    if kind != "FSDP":
        return
    for name, (needed, why) in SETTINGS.items():
        if (value := os.environ.get(name.upper(), needed)).lower() != needed.lower():
            raise UsageError(f"{name} must be {needed}, got {value}: {why}.")
    if args.world_size < 2:
        raise UsageError("FSDP shards over at least 2 processes, and this is one: num_processes says how many.")
    if args.fp16:
        raise UsageError("fp16 scales its loss, which FSDP's shards do not know of: use bf16, or ZeRO-2.")
    if args.bf16_mode != "module":
        raise UsageError(f"bf16_mode must be 'module' under FSDP, got {args.bf16_mode!r}.")


def shard_on_cpu() -> None:
    """
    Have accelerate shard on processes without a GPU too; before there is an accelerator.

    Of these it (1.15) makes plain data parallelism without a word. To be deleted when `AcceleratorState` takes MULTI_CPU for FSDP.
    """
    from accelerate.utils import DistributedType

    state = process_state()
    if uses_fsdp() and state.distributed_type is DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU  # it makes FSDP of it


def configure_fsdp(accelerator: "Accelerator", model: "nn.Module", blocks: Sequence[str], bfloat16: bool) -> None:
    """
    Complete what accelerate knows of FSDP, if that is in use, before it shards a model.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            The accelerator.
        model (`nn.Module`):
            The model that it will shard.
        blocks (`Sequence[str]`):
            Names of the classes that are gathered one at a time, unless the configuration names others.
        bfloat16 (`bool`):
            Whether to gather float32 parameters as bfloat16. Their gradients are summed in float32, where accelerate's default
            is the precision that is computed in (1.15).
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if not uses_fsdp():
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        there = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = [name for name in blocks if name in there]
    plugin.mixed_precision_policy = None
    if bfloat16:
        # Inputs are cast by the module's forward pass, which leaves timesteps as they are.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    # Otherwise whole gradients are kept until the last micro-batch of a step.
    accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
