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

"""How fast work goes, assumed or measured."""

from dataclasses import dataclass, field

from .gpus import GIGA


# Shares of the peak that plain loops of diffusers and transformers reach. Sampling of SDXL in half precision: 17 % (H100,
# batch 1, stock) to 40 % (A100) in published measurements. Training it on an H100: 16 % under autocast, 23 % as a
# bfloat16 module, measured at micro-batches of 8 with checkpointing, model operations counted only.
SHARES = {"sampling": 0.3, "training (autocast)": 0.16, "training (16 bits)": 0.23, "float32": 0.5}
# Bytes a second of one NVMe disk as clouds attach it, and from the host's memory to a GPU that is not pinned. A disk in the
# network may have a tenth of the former.
DISK = 1 * GIGA
TRANSFER = 6 * GIGA


@dataclass(frozen=True)
class Rates:
    """
    How fast the work goes on one GPU.

    Args:
        sampling (`float`):
            FLOP/s while images are drawn.
        scoring (`float`):
            Seconds per candidate, all rewards.
        judging (`float`):
            Seconds per evaluated image, all rewards and judges.
        encoding (`float`):
            Seconds per training image and its prompt, before training.
        training (`float`):
            FLOP/s of forward and backward pass, the optimizer's time included.
        storing (`float`, *optional*, defaults to 0):
            Seconds per image until it is in the pool as a PNG.
        saving (`float`, *optional*, defaults to `inf`):
            Bytes/s of the model and its checkpoints, which are read back.
        watching (`float`, *optional*, defaults to 0):
            Seconds of the guard's judges, all images.
        loading (`dict[str, float]`, *optional*):
            Seconds until a stage begins its work.
    """

    sampling: float
    scoring: float
    judging: float
    encoding: float
    training: float
    storing: float = 0.0
    saving: float = float("inf")
    watching: float = 0.0
    loading: dict[str, float] = field(default_factory=dict)
