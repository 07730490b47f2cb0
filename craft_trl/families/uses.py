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

"""Whether a pipeline can be drawn from and trained in the way that is asked for: in one line, and none of it ignored."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from . import get_family
from .family import guided_steps
from .files import ModelFiles
from .schedulers import UNSPACED, lacking_package, schedulers_of


if TYPE_CHECKING:
    from ..candidates.config import SamplingConfig
    from ..trainer.diffusion_config import DiffusionConfig


# What the names of checkpoints say that were distilled to draw in a few steps, where no configuration does.
DISTILLED = re.compile(r"turbo|schnell|lightning|hyper-?sd|sprint|lcm|distill|dmd|[-_]flash", re.IGNORECASE)


def check_drawing(files: ModelFiles, config: "SamplingConfig") -> None:
    """Raise a [`UsageError`] unless a pipeline can be drawn from in this way, and ignores none of it."""
    family = get_family(files.index["_class_name"])
    what = f"of a {files.index['_class_name']}"
    check_size(files, config.height, config.width)
    check_guidance(files, "guidance_scale", config.guidance_scale)
    if config.negative_prompt is not None and family.calls(config.guidance_scale) == 1:
        raise UsageError(
            f"negative_prompt {config.negative_prompt!r}: guidance_scale {config.guidance_scale:g} {what} leads away from "
            "nothing, leave it out."
        )
    if config.guidance_rescale and not family.guidance_rescale:
        raise UsageError(f"guidance_rescale {config.guidance_rescale}: the {files.index['_class_name']} has none.")
    check_cutoff(files, config)
    if config.cache_interval is not None and not family.caches:
        raise UsageError(
            f"cache_interval {config.cache_interval}: diffusers' TaylorSeer does not work on a {files.index['_class_name']}, leave "
            "it out."
        )
    if config.cache_interval is not None and config.torch_compile:
        raise UsageError("cache_interval and torch_compile: compiled blocks cannot be skipped, leave one of them out.")
    check_sequence_length(files, config.max_sequence_length)
    if config.scheduler is not None and config.scheduler not in (known := schedulers_of(family)):
        raise UsageError(
            f"scheduler {config.scheduler} does not draw what a {files.index['_class_name']} has learned. Those that do are "
            f"{', '.join(known)}."
        )
    if reason := lacking_package(config.scheduler):
        raise UsageError(f"scheduler {config.scheduler}{reason}")
    if config.timestep_spacing is not None:
        name = config.scheduler or files.json("scheduler/scheduler_config.json").get("_class_name")
        if family.noise == "flow" or name in UNSPACED:
            raise UsageError(
                f"timestep_spacing {config.timestep_spacing}: {name} {what} spaces its steps by itself, leave it out."
            )
    check_steps(files, "num_inference_steps", config.num_inference_steps, config.scheduler)


def check_cutoff(files: ModelFiles, config: "SamplingConfig") -> None:
    """Raise a [`UsageError`] unless guidance can end where `guidance_cutoff` says, and there is some that ends."""
    family, cutoff = get_family(files.index["_class_name"]), config.guidance_cutoff
    if cutoff is None:
        return
    what = f"guidance_cutoff {cutoff:g}"
    if family.no_guidance is None:
        raise UsageError(
            f"{what}: the guidance_scale of a {files.index['_class_name']} is an input of its denoiser and costs no calls, leave "
            "it out."
        )
    if files.json(f"{family.denoiser}/config.json").get("time_cond_proj_dim"):  # as those of LCM
        raise UsageError(f"{what}: guidance_scale is an input of this denoiser and costs no calls, leave it out.")
    if family.calls(config.guidance_scale) == 1:
        raise UsageError(f"{what}: there is no guidance at guidance_scale {config.guidance_scale:g}, leave it out.")
    if family.guided_tensors is None:
        raise UsageError(f"{what}: a {files.index['_class_name']} of diffusers guides to the end, leave it out.")
    if not 0 < (guided := guided_steps(config.num_inference_steps, cutoff)) < config.num_inference_steps:
        raise UsageError(
            f"{what} of {config.num_inference_steps} steps guides {guided} of them: set it so that some are guided and some are "
            "not, or leave it out."
        )


def check_guidance(files: ModelFiles, option: str, scale: float) -> None:
    """Raise a [`UsageError`] if an option asks for guidance of a pipeline that was distilled to draw without."""
    family = get_family(files.index["_class_name"])
    if scale > 1 and not family.takes_guidance(files.json(f"{family.denoiser}/config.json"), files.index):
        raise UsageError(f"{option} {scale}: {files.source} was distilled to draw without guidance, set it to 1.")


def check_size(files: ModelFiles, height: int | None, width: int | None) -> None:
    """Raise a [`UsageError`] unless a pipeline has images of this size in pixels, of which what is `None` is its own."""
    family = get_family(files.index["_class_name"])
    denoiser, vae = files.json(f"{family.denoiser}/config.json"), files.json("vae/config.json")
    what = f"of a {files.index['_class_name']}"
    multiple, most = family.size_multiple(vae), family.most_tokens(denoiser)
    for name, value in (("height", height), ("width", width)):
        if value is not None and value % multiple:
            raise UsageError(f"{name} {what} must be a multiple of {multiple}, got {value}.")
        if value is not None and most is not None and value > most * multiple:
            raise UsageError(
                f"{name} {what} must be {most * multiple} or less, for which it has positions, got {value}."
            )


def check_training(files: ModelFiles, args: "DiffusionConfig") -> None:
    """Raise a [`UsageError`] unless a pipeline's denoiser can be trained in this way, and ignores none of it."""
    family = get_family(files.index["_class_name"])
    denoiser = files.json(f"{family.denoiser}/config.json")
    what = f"of a {files.index['_class_name']}"
    name = Path(files.source).name
    if not args.train_distilled and (DISTILLED.search(name) or family.is_distilled(denoiser, files.index)):
        raise UsageError(
            f"{files.source} seems to be distilled to draw in a few steps, which training on noised images undoes: train the "
            "model it was made from, or set train_distilled: true."
        )
    for option in ("timestep_sampling", "timestep_shift"):
        if family.noise == "diffusion" and (value := getattr(args, option)) is not None:
            raise UsageError(f"{option} {value}: it is for models of flow matching, and this one is of diffusion.")
    embedded = family.no_guidance is None and family.takes_guidance(denoiser, files.index)
    if embedded and args.train_guidance_scale is None:
        raise UsageError(
            f"train_guidance_scale is missing: the guidance_scale {what} is an input of its denoiser. Set it to that which the "
            "images were drawn with."
        )
    if not embedded and args.train_guidance_scale is not None:
        raise UsageError(f"train_guidance_scale {args.train_guidance_scale}: the denoiser {what} has no such input.")
    if not embedded and args.proportion_empty_prompts and family.no_guidance is None:
        raise UsageError(
            "proportion_empty_prompts: this model has no guidance that the empty prompt is for, set it to 0."
        )
    check_sequence_length(files, args.max_sequence_length)
    if args.validation_prompts:
        check_guidance(files, "validation_guidance_scale", args.validation_guidance_scale)
        check_steps(files, "validation_num_inference_steps", args.validation_num_inference_steps)


def check_sequence_length(files: ModelFiles, length: int | None) -> None:
    """Raise a [`UsageError`] unless a pipeline reads so many tokens of a prompt; `None` are as many as it does by default."""
    family, what = get_family(files.index["_class_name"]), f"of a {files.index['_class_name']}"
    if family.max_sequence_length is None:
        if length is not None:
            raise UsageError(
                f"max_sequence_length {length}: the text encoders {what} read as much as their tokenizers say."
            )
        return
    least, most = family.text_lengths(files.json(f"{family.denoiser}/config.json"), files.index)
    asked = family.max_sequence_length if length is None else length
    if asked < least or most is not None and asked > most:
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        raise UsageError(
            f"max_sequence_length {what} must be {allowed}, got {asked}{' by default' * (length is None)}."
        )


def check_steps(files: ModelFiles, option: str, steps: int, scheduler: str | None = None) -> None:
    """Raise a [`UsageError`] unless a scheduler, by default a pipeline's own, draws in so few steps."""
    config = files.json("scheduler/scheduler_config.json")
    name = scheduler or config.get("_class_name")
    fewest, why = 1, ""
    if name == "PNDMScheduler" and config and not config.get("skip_prk_steps"):
        fewest, why = 4, "which begins with four steps of Runge-Kutta"
    elif name == "FlowMatchEulerDiscreteScheduler" and config.get("shift_terminal"):
        fewest, why = 2, f"whose noise levels end at {config['shift_terminal']} and begin at 1"
    if steps < fewest:
        raise UsageError(f"{option} must be {fewest} or more with {name}, {why}, got {steps}.")
