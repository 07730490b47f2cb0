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

"""Regional compilation."""

from collections.abc import Collection

import torch
from torch import nn


def compile_blocks(module: nn.Module, class_names: Collection[str]) -> None:
    """
    Compile each submodule of the given classes in place, on its first call. Blocks of one shape share their code, so
    that compiling takes seconds; names of parameters do not change, so that nothing that saves or loads notices.

    diffusers' `compile_repeated_blocks` is the same for the classes that a model names itself, which for a UNet are the
    transformer blocks alone.

    Args:
        module (`nn.Module`):
            Model.
        class_names (`Collection[str]`):
            Names of the classes to compile.
    """
    # A UNet has a dozen shapes of residual blocks, more than the 8 after which PyTorch gives up and stops compiling.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in module.modules():
        if type(block).__name__ in class_names:
            block.compile()
