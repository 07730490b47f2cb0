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

"""What it takes to draw images and to judge them: in stages of their own, and while a model trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..candidates.config import CandidatesConfig
from ..evaluation.config import EvaluationConfig
from ..families.family import computed_steps, guided_steps
from ..rewards import RewardSpec, parse_rewards
from ..rewards.reward_model import RewardModel
from ..trainer.sampling import LARGEST_BATCH
from .memory import SamplingMemory, reward_networks, sampling_memory
from .operations import Count, MetaPipeline


if TYPE_CHECKING:
    from .recipes import RunRecipes


@dataclass(frozen=True)
class Counts:
    """Work for one image: of its prompt's encoding, a call of the denoiser, and its decoding."""

    text: Count
    denoising: Count
    decoding: Count

    @classmethod
    def of(cls, meta: MetaPipeline, height: int, width: int, max_sequence_length: int | None = None) -> "Counts":
        return cls(
            meta.count_text(max_sequence_length),
            meta.count_denoising(height, width, max_sequence_length),
            meta.count_decoding(height, width),
        )

    def flops(
        self, steps: int, calls: int, guidance_cutoff: float | None = None, cache_interval: int | None = None
    ) -> float:
        """
        Operations of an image in so many steps, of so many calls of the denoiser each with guidance, and of one after its cutoff.
        What is left of a call that a cache stands for is little, and is not counted.
        """
        guided = guided_steps(steps, guidance_cutoff)
        made = sum(calls if step < guided else 1 for step in computed_steps(steps, cache_interval))
        return made * self.denoising.flops + calls * self.text.flops + self.decoding.flops


@dataclass(frozen=True)
class Drawing:
    """
    A stage that draws and scores.

    Args:
        size (`tuple[int, int]`):
            Height and width of an image.
        steps (`int`):
            Steps of an image.
        calls (`int`):
            Calls of the denoiser for an image in a step: 2 with guidance, of most models.
        guided (`int`):
            Steps that take so many calls; the others take one.
        computed (`int`):
            Steps in which the denoiser is computed, and not extrapolated.
        counts ([`Counts`]):
            Work for one image.
        flops (`float`):
            Operations of an image.
        score_flops (`float`):
            Operations of its scores.
        memory ([`SamplingMemory`]):
            Memory of the stage.
    """

    size: tuple[int, int]
    steps: int
    calls: int
    guided: int
    computed: int
    counts: Counts
    flops: float
    score_flops: float
    memory: SamplingMemory

    @property
    def work(self) -> str:
        """Calls of the denoiser for an image, in words."""
        guided = f" x {self.calls}" if self.calls > 1 else ""
        if self.guided < self.steps:
            guided = f", of which {self.guided} are guided{guided}"
        if self.computed < self.steps:
            guided += f", {self.computed} of them computed"
        return f"{self.steps} calls{guided}"

    @classmethod
    def of(
        cls,
        config: CandidatesConfig | EvaluationConfig,
        meta: MetaPipeline,
        specs: Sequence[RewardSpec],
        counts: Counts | None = None,
    ) -> "Drawing":
        """The stage of a configuration, with a pipeline of its precision, and work for an image that is counted already."""
        steps = meta.steps(config.num_inference_steps, config.scheduler, config.timestep_spacing)
        size, guided = meta.size(config), guided_steps(steps, config.guidance_cutoff)
        calls = meta.family.calls(config.guidance_scale)
        counts = counts or Counts.of(meta, *size, config.max_sequence_length)
        return cls(
            size=size,
            steps=steps,
            calls=calls,
            counts=counts,
            guided=guided,
            computed=len(computed_steps(steps, config.cache_interval)),
            flops=counts.flops(steps, calls, config.guidance_cutoff, config.cache_interval),
            score_flops=sum(map(flops, specs)),
            memory=sampling_memory(config, meta, specs, counts.denoising, counts.decoding),
        )


@dataclass(frozen=True)
class Watching:
    """
    What is drawn and judged while a model trains: by the guard, and to be looked at.

    Args:
        looks (`int`):
            Times that the guard looks, before training and at its end too.
        images (`int`):
            Images that it draws each time.
        flops (`float`):
            Operations of drawing all images, also those to be looked at.
        judge_flops (`float`):
            Operations of the guard's judges.
        read (`float`):
            Bytes that are read from the disk: the frozen parts of the pipeline every time, and the judges.
        memory (`float`):
            Bytes beside the model that trains.
    """

    looks: int
    images: int
    flops: float
    judge_flops: float
    read: float
    memory: float

    @classmethod
    def of(cls, recipes: "RunRecipes", meta: MetaPipeline, counts: Counts, frozen: float) -> "Watching":
        """
        What a training's recipe asks for, with its pipeline in the precision that it computes in, and bytes of its frozen
        parts as they are read.
        """
        config, args = recipes.train, recipes.training
        looks = images = shows = 0
        if config.held_out_rewards:
            looks = len(range(config.guard_steps, args.max_steps, config.guard_steps)) + 2
            images = config.guard_num_prompts * config.guard_num_images_per_prompt
        if args.validation_prompts:
            shows = -(-args.max_steps // args.validation_steps) + 1

        def image(steps: int, guidance_scale: float) -> float:
            return counts.flops(meta.steps(steps), meta.family.calls(guidance_scale))

        judges = parse_rewards([*(config.guard_rewards or ()), *(config.held_out_rewards or ())])
        networks = [network for spec in judges for network in reward_networks(spec)]
        scales = config.guard_guidance_scale, args.validation_guidance_scale
        batch = max(map(meta.family.calls, scales)) * min(args.per_device_train_batch_size, LARGEST_BATCH)
        drawing = meta.weights() - meta.weights(meta.family.denoiser)
        drawing += max(batch * counts.denoising.activations, counts.decoding.activations)
        judging = 4.0 * sum(network.parameters for network in networks)
        judging += 4.0 * RewardModel.batch_size * max((network.activations for network in networks), default=0)
        return cls(
            looks=looks,
            images=images,
            flops=looks * images * image(config.guard_num_inference_steps, config.guard_guidance_scale)
            + shows
            * len(args.validation_prompts or ())
            * image(args.validation_num_inference_steps, args.validation_guidance_scale),
            judge_flops=looks * images * sum(map(flops, judges)),
            read=(looks + shows) * frozen + 4.0 * looks * sum(network.parameters for network in networks),
            memory=max(drawing, judging if looks else 0.0) if looks or shows else 0.0,
        )


def flops(spec: RewardSpec) -> float:
    """Operations of a reward for one image; its prompt's are shared by a group and are little."""
    return sum(network.flops for network in reward_networks(spec))
