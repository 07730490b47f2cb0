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
Model families: all that differs between Stable Diffusion, SDXL and what comes after them.

A family is a module with the same few names: `PIPELINE`, the diffusers pipeline class it is for; `DENOISER`, the
component that is trained; `LORA_TARGET_MODULES`; `REPEATED_BLOCKS`, the classes of which it is built over and over, for
regional compilation; and the functions `encode_prompts`, `encode_empty_prompt`,
`image_conditioning` and `predict`. Nothing outside this package may assume a UNet, four latent channels or a prompt of 77 tokens.
"""

import importlib
from types import ModuleType

from ..errors import UsageError


# Class name of the pipeline -> module. Imported when a model is there: naming families costs no import of PyTorch.
FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "stable_diffusion_xl",
}
# Components that are trained, in any family.
DENOISERS = ("unet",)


def get_family(pipeline_class: str) -> ModuleType:
    """Family of a pipeline, by its class name as `model_index.json` has it."""
    if pipeline_class not in FAMILIES:
        raise UsageError(f"A {pipeline_class} is not supported. Supported are {', '.join(FAMILIES)}.")
    return importlib.import_module(f".{FAMILIES[pipeline_class]}", __name__)
