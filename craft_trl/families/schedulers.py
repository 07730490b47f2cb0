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

"""Schedulers of the noise processes that families are trained on."""

import importlib.util
from collections.abc import Mapping

from . import Family


# Schedulers of DDPM's noise process: betas and discrete steps, which `DDPMScheduler` adds noise by in training. Not those
# of other processes (EDM, flow matching), nor those that shift the betas (CogVideoX) or go backwards (DDIMInverse).
SCHEDULERS = (
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
    "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
UNSPACED = (
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "LCMScheduler",
    "TCDScheduler",
)  # no timestep_spacing
PREDICTION_TYPES = ("epsilon", "v_prediction")  # as craft_trl.noise knows them
# Schedulers of rectified flow, the last two where their configuration says so.
FLOW_SCHEDULERS = (
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)  # fmt: skip


def schedulers_of(family: Family) -> tuple[str, ...]:
    """Schedulers that a family's pipeline draws with. Noise levels of the pipeline's own are taken by the first of flow alone."""
    if family.noise == "diffusion":
        return SCHEDULERS
    return FLOW_SCHEDULERS[:1] if family.own_sigmas else FLOW_SCHEDULERS


def lacking_package(name: str | None) -> str | None:
    """What a scheduler needs that is not installed, if so: diffusers says it when the model has been loaded."""
    if name == "DPMSolverSDEScheduler" and importlib.util.find_spec("torchsde") is None:
        return " needs the package torchsde, which is not installed: `pip install torchsde`, or take another."
    return None


def foreign_scheduler(config: Mapping, family: Family) -> str | None:
    """
    Why a scheduler's configuration does not describe the noise process that a family was trained on, so that it is not drawn or
    trained rightly; `None` if it does.
    """
    name = config.get("_class_name")
    prediction_type = config.get("prediction_type", "epsilon")  # older configurations do not name it
    if family.noise == "flow":
        known = schedulers_of(family)
        if name in known and (name.startswith("FlowMatch") or prediction_type == "flow_prediction"):
            return None
        said = "" if name.startswith("FlowMatch") else f" with prediction_type {prediction_type}"
        others = ", the latter two with flow_prediction" * (len(known) > 1)
        return (
            f"its scheduler is {name}{said}, and models of its class are made for flow matching, by "
            f"{' or '.join(known)}{others}."
        )
    flow = config.get("use_flow_sigmas") or config.get("timestep_type", "discrete") != "discrete"
    if name not in SCHEDULERS or flow:
        return (
            f"its scheduler is {name}{' with continuous noise levels' * bool(flow)}, another noise process than DDPM's. "
            "Supported are those of betas, such as DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler and "
            "PNDMScheduler; models of EDM and of flow matching are not."
        )
    if reason := lacking_package(name):
        return f"its scheduler {name}{reason}"
    if prediction_type not in PREDICTION_TYPES:
        return f"its scheduler has prediction_type {prediction_type}. Supported are {' and '.join(PREDICTION_TYPES)}."
    if not config.get("trained_betas"):
        missing = [key for key in ("beta_start", "beta_end", "beta_schedule") if config.get(key) is None]
        if missing:  # each class has defaults of its own
            return (
                f"its scheduler_config.json does not give {' and '.join(missing)}, so its noise process is not known."
            )
    return None
