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
Model families: all that differs between Stable Diffusion, SDXL, Stable Diffusion 3, FLUX and what comes after them.

A family is a subclass of [`Family`] in a module of `pipelines/`, found by being there. Nothing outside this package names a
model, or assumes a UNet, four latent channels, a prompt of 77 tokens or integer timesteps.
"""

import importlib
import pkgutil

from ..errors import UsageError
from . import pipelines
from .family import Family


def _find() -> dict[str, Family]:
    modules = (
        importlib.import_module(f"{pipelines.__name__}.{m.name}") for m in pkgutil.iter_modules(pipelines.__path__)
    )
    families = [
        value()
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__
    ]
    return {name: family for family in families for name in family.pipelines}


# Class name of a pipeline -> its family.
FAMILIES: dict[str, Family] = _find()
# Components that are trained, in any family.
DENOISERS = ("unet", "transformer")


def get_family(pipeline_class: str) -> Family:
    """Family of a pipeline, by its class name as `model_index.json` has it."""
    if pipeline_class not in FAMILIES:
        raise UsageError(
            f"A {pipeline_class} is not supported. Supported are {', '.join(sorted(FAMILIES))}; another one is a file in "
            "craft_trl/families/pipelines, see the documentation's page on families."
        )
    return FAMILIES[pipeline_class]
