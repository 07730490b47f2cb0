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

"""Devices that a run can be planned for, with what their vendors say of them."""

import os
import re
import time
from dataclasses import dataclass

from ..errors import UsageError


TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class GPU:
    """
    A device to plan for.

    Args:
        name (`str`):
            Name, as `--gpu` takes it.
        memory (`float`):
            Memory in GB.
        half (`float`):
            Peak in bfloat16, or in float16 where there is no bfloat16, in TFLOP/s, dense, with float32 accumulation.
        single (`float`):
            Peak in float32 in TFLOP/s, without TF32, which PyTorch leaves off.
        source (`str`):
            Where the peaks are from.
        bfloat16 (`bool`):
            Whether it computes in bfloat16. Where it does not, PyTorch emulates it at the price of float32 or more.
    """

    name: str
    memory: float
    half: float
    single: float
    source: str = "vendor's data sheet"
    bfloat16: bool = True

    def computes_in(self, dtype: str) -> bool:
        """Whether it is faster in a precision of 16 bits than in float32."""
        return self.name != "cpu" and (dtype == "float16" or self.bfloat16)

    def peak(self, dtype: str) -> float:
        """FLOP/s."""
        return TERA * (self.single if dtype == "float32" else self.half)


ADA = "vendor's white paper on the Ada architecture, appendix A"
AMPERE = "vendor's white paper on the GA102 chip"
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("h100:80", 80, 989.4, 66.9),  # SXM5
        GPU("h200:141", 141, 989.4, 66.9),
        GPU("a100:40", 40, 312.0, 19.5),
        GPU("a100:80", 80, 312.0, 19.5),
        GPU("l40s:48", 48, 362.05, 91.6),
        GPU("rtx4090:24", 24, 165.2, 82.6, ADA),
        GPU("rtx4080:16", 16, 97.5, 48.7, ADA),
        GPU("rtx3090:24", 24, 71.0, 35.6, AMPERE),
        # Of this one, the vendor names the tensor peak for float16 sums and sparse matrices, 101: float32 sums take twice the
        # time on these cards, and dense matrices too.
        GPU("rtx3060:12", 12, 25.3, 12.7, "vendor's figures, a quarter of its sparse 101 TFLOP/s with float16 sums"),
        GPU("v100:16", 16, 125.0, 15.7, bfloat16=False),  # SXM2
        GPU("v100:32", 32, 125.0, 15.7, bfloat16=False),
        GPU("t4:16", 16, 65.0, 8.1, bfloat16=False),
    )
}


def find_gpu(name: str | None) -> GPU:
    """The GPU of a name such as `h100:80` or `cpu`, or that of this machine."""
    if name is None:
        import torch

        from ..devices import accelerator

        if accelerator() != "cuda":
            return this_cpu()
        device, total = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory / GIGA
        known = [gpu for gpu in GPUS.values() if is_named(device, gpu)]
        if not known:
            raise UsageError(
                f"{device} is not among the known GPUs: name the most similar of {known_gpus()} as --gpu."
            )
        return min(known, key=lambda gpu: abs(gpu.memory - total))
    if name == "cpu":
        return this_cpu()
    matching = [gpu for gpu in GPUS.values() if name in (gpu.name, gpu.name.split(":")[0])]
    if not matching:
        raise UsageError(f"gpu must be one of {known_gpus()}, got {name!r}.")
    if len(matching) > 1:
        raise UsageError(f"gpu {name!r}: say {' or '.join(gpu.name for gpu in matching)}.")
    return matching[0]


def is_named(device: str, gpu: GPU) -> bool:
    """Whether PyTorch's name of a device, such as `NVIDIA GeForce RTX 4090` or `Tesla V100-SXM2-16GB`, is that of a GPU."""
    letters, number = re.fullmatch(r"([a-z]+)(\d.*)", gpu.name.split(":")[0]).groups()
    return re.search(rf"\b(?:{letters} {number}|{letters}{number})\b", device.lower()) is not None


def known_gpus() -> str:
    return ", ".join([*GPUS, "cpu"])


def this_cpu() -> GPU:
    """This machine's CPU, its peak measured with a matrix product: no data sheet gives it."""
    import torch

    a = torch.rand(512, 512)
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    peak = round(2 * 512**3 / min(seconds) / TERA, 3)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIGA
    return GPU("cpu", round(memory, 1), peak, peak, "a matrix product measured here, now")
