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
Which of transformers' `TrainingArguments` mean something for a diffusion model, and in which ranges.

Listed is what works. All else is refused unless it is at its default, so that an option that a new version of transformers
brings does nothing silently.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..sources import first_line


if TYPE_CHECKING:
    from .diffusion_config import DiffusionConfig

WORKS = {
    "output_dir": "where everything is written",
    # Length and batches
    "max_steps": "optimizer steps",
    "per_device_train_batch_size": "largest micro-batch",
    "gradient_accumulation_steps": "micro-batches of a step; follows from global_batch_size",
    "seed": "samples, noise, timesteps, and an adapter's first weights",
    "full_determinism": "deterministic algorithms of PyTorch, slower",
    # Optimizer and schedule
    "learning_rate": "peak of the schedule",
    "lr_scheduler_type": "schedule; not those that need an evaluation",
    "lr_scheduler_kwargs": "its own arguments",
    "warmup_steps": "steps, or below 1 the share of max_steps, in which the rate rises",
    "optim": "optimizer; not those that need a language model's modules",
    "optim_args": "its own arguments",
    "weight_decay": "of weights, not of biases and norms",
    "adam_beta1": "AdamW",
    "adam_beta2": "AdamW",
    "adam_epsilon": "AdamW",
    "max_grad_norm": "clipping; 0 for none",
    # Precision, speed and memory
    "bf16": "see bf16_mode",
    "fp16": "autocast with a scaled loss",
    "tf32": "TensorFloat-32 in float32 products",
    "activation_checkpointing": "recompute activations in the backward pass",
    "gradient_checkpointing": "its deprecated name",
    "torch_empty_cache_steps": "give unused memory back every so many steps",
    "use_cpu": "train on the CPU",
    # Data loader
    "dataloader_num_workers": "processes that make samples",
    "dataloader_pin_memory": "page-locked batches",
    "dataloader_persistent_workers": "keep workers",
    "dataloader_prefetch_factor": "micro-batches that a worker has ready; a step's by default",
    "dataloader_multiprocessing_context": "how workers start",
    # What is said
    "logging_strategy": "when to log",
    "logging_steps": "log every so many steps",
    "logging_first_step": "log the first step",
    "log_level": "of the Trainer's own messages",
    "log_level_replica": "of those of other processes",
    "log_on_each_node": "on several machines",
    "disable_tqdm": "no progress bar",
    "report_to": "tensorboard, trackio or wandb",
    "run_name": "for trackers",
    "project": "for trackers",
    "trackio_space_id": "trackio",
    "trackio_bucket_id": "trackio",
    "trackio_static_space_id": "trackio",
    # What is saved
    "save_strategy": "no, steps, or epoch, which is the end",
    "save_steps": "a checkpoint every so many steps",
    "save_total_limit": "how many stay",
    "save_only_model": "checkpoints that cannot be gone on from",
    "resume_from_checkpoint": "the checkpoint to go on from, instead of the last one",
    "push_to_hub": "upload at the end",
    "hub_model_id": "repository",
    "hub_strategy": "end",
    "hub_private_repo": "a private repository",
    # Several processes
    "ddp_backend": "of torch.distributed",
    "ddp_bucket_cap_mb": "DDP",
    "ddp_broadcast_buffers": "DDP",
    "ddp_find_unused_parameters": "DDP",
    "ddp_timeout": "seconds that processes wait for each other",
    "deepspeed": "a DeepSpeed configuration of one's own",
    "local_rank": "set by launchers",
}

WHY_NOT = {
    "num_train_epochs": "max_steps says how long training is",
    "data_seed": "seed decides the samples too",
    "eval_strategy": "validation_prompts and the guard watch a training",
    "torch_compile": "it compiles the whole denoiser, for minutes: use compile_blocks instead",
    "torch_compile_backend": "use compile_blocks instead",
    "torch_compile_mode": "use compile_blocks instead",
    "fsdp": "use accelerate_config fsdp2",
    "fsdp_config": "use accelerate_config fsdp2, or the path of another",
    "hub_revision": "a push goes to the main branch",
    "ignore_data_skip": "a run that goes on sees the samples that it would have seen",
    "logging_nan_inf_filter": "a loss that is no number stops training, it is never hidden",
    "save_on_each_node": "machines share the output folder",
    "load_best_model_at_end": "the guard saves the best step",
}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `open`."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.open else 'at least'} {self.low}"
        return f"between {self.low} and {self.high}" if self.open else f"from {self.low} to {self.high}"


RANGES = {
    "max_steps": Range(1),
    "per_device_train_batch_size": Range(1),
    "gradient_accumulation_steps": Range(1),
    "seed": Range(0, 2**32 - 1),  # numpy's
    "learning_rate": Range(0),
    "weight_decay": Range(0),
    "adam_beta1": Range(0, 1),
    "adam_beta2": Range(0, 1),
    "adam_epsilon": Range(0),
    "max_grad_norm": Range(0),
    "warmup_steps": Range(0),
    "torch_empty_cache_steps": Range(1),
    "dataloader_num_workers": Range(0),
    "dataloader_prefetch_factor": Range(1),
    "logging_steps": Range(0, open=True),
    "save_steps": Range(0, open=True),
    "save_total_limit": Range(1),
    "ddp_bucket_cap_mb": Range(1),
    "ddp_timeout": Range(1),
    "proportion_empty_prompts": Range(0, 1),
    "snr_gamma": Range(0, open=True),
    "timestep_shift": Range(0, open=True),
    "train_guidance_scale": Range(0, 1000),
    "max_sequence_length": Range(0, 1024),
    "ema_decay": Range(0, 1, open=True),
    "beta": Range(0, open=True),
    "safeguard_mu": Range(0, 1),
    "regression_temperature": Range(0, open=True),
    "regression_penalty": Range(0),
    "smoothing": Range(0, open=True),
    "inversion_steps": Range(1, 1000),
    "ratio_clip": Range(0, 1, open=True),
    "advantage_clip": Range(0, open=True),
    "clip_range": Range(0, open=True),
    "kl_beta": Range(0),
    "confidence_weight": Range(0),
    "proximal_tau": Range(0, open=True),
    "validation_steps": Range(1),
    "validation_num_inference_steps": Range(1),
    "validation_guidance_scale": Range(0),
}

# Of no effect without another option.
NEEDS = {
    "dataloader_persistent_workers": "dataloader_num_workers",
    "dataloader_prefetch_factor": "dataloader_num_workers",
    "renoise": "inversion_steps",
    "validation_steps": "validation_prompts",
    "validation_num_inference_steps": "validation_prompts",
    "validation_guidance_scale": "validation_prompts",
}

# Schedules that read nothing but the rate, or wait for an evaluation.
WITHOUT_WARMUP = {"constant"}
WITHOUT_ARGUMENTS = {"constant", "constant_with_warmup"}
WITH_EVALUATION = {"reduce_lr_on_plateau", "greedy"}


def check_options(args: "DiffusionConfig", common: type) -> None:
    """
    Raise a [`UsageError`] for an option that would do nothing, or that is out of its range.

    Args:
        args ([`DiffusionConfig`]):
            The configuration, as it was given.
        common (`type`):
            The class that it inherits options from that are not all for diffusion models.
    """
    if args.hub_token is not None:
        raise UsageError("hub_token would put a secret into a file: log in with `hf auth login`, or set HF_TOKEN.")
    inherited = {field.name for field in dataclasses.fields(common)}
    for field in dataclasses.fields(args):
        name, value, default = field.name, getattr(args, field.name), _default(field)
        # The parser of transformers makes `False` of the word "no".
        given = value is not None and value != default and not (value is False and default == "no")
        if given and name in inherited and name not in WORKS and not _is_nothing(value):
            why = WHY_NOT.get(name, "it means nothing for a diffusion model")
            raise UsageError(f"{name} is not supported, got {value!r}: {why}. Leave it at {default!r}.")
        if value is not None and name in RANGES and value not in RANGES[name]:
            raise UsageError(f"{name} must be {RANGES[name]}, got {value}.")
        if given and name in NEEDS and not getattr(args, NEEDS[name]):
            raise UsageError(f"{name} has no effect without {NEEDS[name]}: leave it out, or set that too.")
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if schedule in WITH_EVALUATION:
        raise UsageError(f"lr_scheduler_type {schedule!r} follows an evaluation, and there is none: choose another.")
    if schedule in WITHOUT_WARMUP and args.warmup_steps:
        raise UsageError(
            f"warmup_steps has no effect under lr_scheduler_type {schedule!r}: leave it out, or take "
            "'constant_with_warmup'."
        )
    if schedule in WITHOUT_ARGUMENTS and args.lr_scheduler_kwargs:
        raise UsageError(f"lr_scheduler_kwargs has no effect under lr_scheduler_type {schedule!r}: leave it out.")
    if str(getattr(args.save_strategy, "value", args.save_strategy)) == "best":
        raise UsageError("save_strategy must be 'no', 'steps' or 'epoch', got 'best': the guard keeps the best step.")


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def _is_nothing(value: Any) -> bool:
    """Whether this is what the Trainer makes of an option that was not given."""
    if dataclasses.is_dataclass(value):  # accelerator_config
        return value == type(value)()
    return value in ("", [], {})


def check_available(args: "DiffusionConfig") -> None:
    """
    Raise a [`UsageError`] for what is not installed here, and for arguments that the optimizer or the schedule do not take.
    They are made here for a single number, as the Trainer makes those of the model.
    """
    import torch
    from transformers import Trainer, get_scheduler, integrations

    for tracker in args.report_to:
        if not getattr(integrations, f"is_{tracker}_available")():
            raise UsageError(f"report_to {tracker}: it is not installed; `pip install {tracker}`, or leave it out.")
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **settings)
    except Exception as error:
        raise UsageError(f"optim {args.optim.value}: {first_line(error)}") from error
    defaults = {field.name: _default(field) for field in dataclasses.fields(args)}
    for name in ("optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"):
        without = copy.copy(args)
        setattr(without, name, defaults[name])
        if getattr(args, name) != defaults[name]:
            if Trainer.get_optimizer_cls_and_kwargs(without) == (kind, settings):
                raise UsageError(f"{name} has no effect on optim {args.optim.value}: leave it out.")
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(args.max_steps),
            num_training_steps=args.max_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    except Exception as error:
        raise UsageError(f"lr_scheduler_type {args.lr_scheduler_type.value}: {first_line(error)}") from error
