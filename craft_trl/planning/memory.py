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

"""Memory of one GPU while a stage is at work, computed."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..candidates.config import SamplingConfig
from ..rewards import RewardSpec
from .gpus import GIGA
from .operations import Tower, reward_towers


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
AUTOCAST_ACTIVATIONS = 1.25  # norms and their inputs stay in float32
CONTEXT = 1.5 * GIGA  # CUDA's own memory, cuDNN's workspaces, fragments


@dataclass(frozen=True)
class Profile:
    """
    How training is spread out.

    Args:
        num_processes (`int`):
            GPUs.
        zero_stage (`int`):
            Stage of ZeRO; 0 without DeepSpeed.
        dtype (`str`):
            Precision of forward and backward pass.
        autocast (`bool`, *optional*, defaults to `False`):
            Whether autocast chooses the precision of each operation, or the whole module computes in `dtype`, see
            [`compute_in_bfloat16`].
        offload_optimizer (`bool`, *optional*, defaults to `False`):
            Whether DeepSpeed keeps master weights and moments in the memory of the host: 16 bytes a trained parameter there,
            with the gradients that its optimizer reads.
    """

    num_processes: int
    zero_stage: int
    dtype: str
    autocast: bool = False
    offload_optimizer: bool = False

    def static_bytes(self, trained: int, frozen: int) -> float:
        """Weights, gradients and AdamW's states on one GPU, with `trained` and `frozen` parameters."""
        n = self.num_processes
        if self.zero_stage == 0:
            # float32 weights, gradients and two moments; and, where it computes in 16 bits, copies of the weights. DDP sends
            # gradients from buffers of its own. They hold the gradients themselves only from the last micro-batch of a step
            # on: before, while they are added up, both are there.
            buffers = 4 if n > 1 else 0
            if self.dtype == "float32":
                return (16 + buffers) * trained + 4 * frozen
            # What is frozen is kept in 16 bits, but under autocast to bfloat16.
            float32 = self.autocast and self.dtype == "bfloat16"
            return (18 + buffers) * trained + (6 if float32 else 2) * frozen
        if self.offload_optimizer:
            if self.zero_stage == 3:  # bfloat16 weights, and gradients until they are on the host
                return (4 * trained + 2 * frozen) / n
            # bfloat16 weights, and float32 sums of gradients, which DeepSpeed (0.19) brings to the host at the end of a step
            return (2 + 4 / (n if self.zero_stage == 2 else 1)) * trained + 2 * frozen
        # bfloat16 weights, float32 sums of gradients, float32 master weights and two moments
        sharded = {1: 12, 2: 16, 3: 18}[self.zero_stage]
        whole = {1: 6, 2: 2, 3: 0}[self.zero_stage]
        return (whole + sharded / n) * trained + 2 * frozen / (n if self.zero_stage == 3 else 1)


def reward_bytes(specs: Sequence[RewardSpec]) -> float:
    """Weights of reward models, in float32."""
    towers: list[Tower] = [tower for spec in specs for tower in reward_towers(spec) or () if tower]
    return 4.0 * sum(tower.parameters for tower in towers)


def sampling_memory(
    config: SamplingConfig, parameters: int, rewards: Sequence[RewardSpec], denoising: int, decoding: int
) -> float:
    """
    Peak of a stage that draws and scores: pipeline and rewards lie side by side, a batch is denoised, then its images
    are decoded one by one.
    """
    activations = max(config.batch_size * denoising, decoding)
    return BYTES[config.dtype] * parameters + reward_bytes(rewards) + activations
