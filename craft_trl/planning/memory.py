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

from ..candidates.config import CandidatesConfig
from ..evaluation.config import EvaluationConfig
from ..rewards import RewardSpec
from ..rewards.reward_model import RewardModel
from .gpus import GIGA
from .operations import Count, MetaPipeline
from .towers import Network, Tower, reward_towers


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
        fsdp (`bool`, *optional*, defaults to `False`):
            Whether FSDP shards weights, gradients and moments.
    """

    num_processes: int
    zero_stage: int
    dtype: str
    autocast: bool = False
    offload_optimizer: bool = False
    fsdp: bool = False

    def static_bytes(self, trained: int, frozen: int) -> float:
        """Weights, gradients and AdamW's states on one GPU, with `trained` and `frozen` parameters."""
        n = self.num_processes
        if self.fsdp:  # float32 weights, gradients and moments; a block at a time is gathered beside them
            return (16 * trained + (4 if self.dtype == "float32" else 2) * frozen) / n
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

    def copy_bytes(self, parameters: int) -> float:
        """A frozen copy of a network beside the one in training, whole on every GPU."""
        if self.dtype == "float32":
            return 4 * parameters
        # In the precision that it computes in; autocast to bfloat16 makes copies of float32 weights.
        return (6 if self.autocast and self.dtype == "bfloat16" else 2) * parameters


@dataclass(frozen=True)
class SamplingMemory:
    """
    Memory of a stage that draws and scores, in bytes.

    Args:
        pipeline (`float`):
            Weights of the pipeline, each part in the precision that it draws in.
        drawing (`float`):
            Activations of a batch: it is denoised, then its images are decoded one by one.
        redrawing (`float`):
            Weights and activations while a broken image is drawn again in float32.
        rewards (`dict[str, float]`):
            Weights of each reward whose size is known.
        scoring (`float`):
            Activations of a batch in the largest reward.
    """

    pipeline: float
    drawing: float
    redrawing: float
    rewards: dict[str, float]
    scoring: float

    @property
    def alone(self) -> float:
        """With the rewards elsewhere."""
        return max(self.pipeline + self.drawing, self.redrawing)

    @property
    def beside(self) -> float:
        """With all rewards beside the pipeline, which score a batch while the next one is drawn."""
        return self.alone + sum(self.rewards.values()) + self.scoring

    @property
    def in_turns(self) -> float:
        """With the pipeline or one reward at a time."""
        return max(self.alone, max(self.rewards.values(), default=0.0) + self.scoring)

    def offloads(self, reward_device: str, available: float) -> bool:
        """Whether pipeline and rewards take turns, see [`ScoringConfig`]."""
        if reward_device == "auto":
            return self.beside > available
        return reward_device == "offload"

    def peak(self, reward_device: str, available: float) -> float:
        """What the stage takes in a memory of this size."""
        if reward_device == "cpu":
            return self.alone
        return self.in_turns if self.offloads(reward_device, available) else self.beside


def reward_networks(spec: RewardSpec) -> list[Tower | Network]:
    """The networks of a reward, none if they are not known."""
    return [network for network in reward_towers(spec) or () if network]


def sampling_memory(
    config: CandidatesConfig | EvaluationConfig,
    meta: MetaPipeline,
    specs: Sequence[RewardSpec],
    denoising: Count,
    decoding: Count,
) -> SamplingMemory:
    """
    Memory of a stage that draws and scores.

    Args:
        config ([`CandidatesConfig`] or [`EvaluationConfig`]):
            How it draws and scores.
        meta ([`MetaPipeline`]):
            The pipeline in the precision of `config`.
        specs (`Sequence[RewardSpec]`):
            The rewards.
        denoising ([`Count`]):
            A call of the denoiser for one image.
        decoding ([`Count`]):
            Decoding an image.
    """
    guided = meta.family.calls(config.guidance_scale)
    # The text encoders wait in the memory of the host meanwhile, and values are twice as wide, see `ImageGenerator`.
    redrawing = 4 * meta.parameters(meta.family.denoiser) + meta.weights("vae") + 2 * guided * denoising.activations
    networks = {spec.name: (spec, reward_networks(spec)) for spec in specs}
    width = {
        name: BYTES[config.reward_dtype] if config.is_rounded(spec) else 4 for name, (spec, _) in networks.items()
    }
    # GenEval's detector sees one image at a time, the others a batch.
    size = min(config.batch_size, RewardModel.batch_size)
    return SamplingMemory(
        pipeline=meta.weights(),
        drawing=max(config.batch_size * guided * denoising.activations, decoding.activations),
        redrawing=0.0 if config.dtype == "float32" else redrawing,
        rewards={
            name: width[name] * sum(n.parameters for n in parts) for name, (_, parts) in networks.items() if parts
        },
        scoring=max(
            (
                width[name] * part.activations * (1 if isinstance(part, Network) else size)
                for name, (_, parts) in networks.items()
                for part in parts
            ),
            default=0.0,
        ),
    )
