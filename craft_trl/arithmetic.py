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

"""The arithmetic of scoring and drawing: float32 that is float32."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


# What decides how products of float32 matrices are rounded. The ones further down fall back on those above where they say
# "none".
_PRECISIONS = (
    torch.backends,
    torch.backends.cudnn,
    torch.backends.cudnn.conv,
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.conv,
    torch.backends.mkldnn.matmul,
)
_lock = threading.Lock()
_inside = 0
_before: list[str] = []


@contextmanager
def exact_float32() -> Iterator[None]:
    """
    Inside, float32 is float32. By default PyTorch rounds the inputs of a convolution to the 10 bits of TF32 on NVIDIA GPUs
    since Ampere, and a user, or a trainer in bfloat16, may have chosen that for matrix products, too. Afterwards all is as
    it was.

    The setting is one for all threads of the process. So it lasts until the last of those that ask for it has left: what
    one thread draws does not depend on when another one scores.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _before.clear()
            for backend in _PRECISIONS:
                # With "none" above it, what is read is its own, not what it falls back on.
                _before.append(backend.fp32_precision)
                backend.fp32_precision = "none"
            for backend in _PRECISIONS[2:]:
                backend.fp32_precision = "ieee"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for backend, precision in zip(_PRECISIONS, _before, strict=True):
                    backend.fp32_precision = precision
