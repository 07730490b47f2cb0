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

"""Weights that wait in the memory of the host while something else needs the device's."""

from collections.abc import Iterable

import torch
from torch import nn


class Offloaded:
    """
    Weights of modules that can wait in the memory of the host, and go back to where they were.

    Nothing trains them, so that what is on the device is dropped, not copied back.

    Args:
        modules (`Iterable[nn.Module]`):
            The modules.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        parts = [part for module in modules for part in module.modules()]
        # A parameter stays the same object when its module is cast, a buffer does not: it is known by its place.
        self.parameters = [p for part in parts for p in part.parameters(recurse=False)]
        self.buffers = [(part, name) for part in parts for name, buffer in part._buffers.items() if buffer is not None]
        tensors = [*(p.data for p in self.parameters), *(part._buffers[name] for part, name in self.buffers)]
        self.devices, self.copies = [tensor.device for tensor in tensors], [tensor.cpu() for tensor in tensors]

    def away(self) -> None:
        """Move to the host, and give the device's memory to whoever asks next."""
        self._set(self.copies)
        # Of weights of many sizes the allocator would keep pieces that fit nothing else.
        torch.cuda.empty_cache()

    def back(self) -> None:
        """Move to the device."""
        # One at a time, not a list: that would be the whole twice.
        self._set(copy.to(device) for copy, device in zip(self.copies, self.devices, strict=True))

    def _set(self, tensors: Iterable[torch.Tensor]) -> None:
        tensors = iter(tensors)
        for parameter in self.parameters:
            parameter.data = next(tensors)
        for part, name in self.buffers:
            part._buffers[name] = next(tensors)
