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

"""A pipeline and rewards on one GPU, beside each other or in turns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..devices import default_device
from ..offloading import Offloaded
from ..rewards import Reward, RewardSpec
from ..rewards.config import ScoringConfig
from ..rewards.reward_model import RewardModel
from .config import CandidatesConfig
from .generation import ImageGenerator


class Turns:
    """
    A pipeline and rewards that lie on a GPU in turns, since it does not hold both.

    The pipeline is there outside of [`~Turns.scoring`], and inside of it one reward at a time.

    Args:
        generator ([`ImageGenerator`]):
            What draws.
        rewards (`dict[str, Offloaded]`):
            The built-in rewards' weights by the rewards' names, all in the memory of the host.
    """

    # Moving 16 GB there and back takes seconds, drawing so many images minutes.
    num_images = 32

    def __init__(self, generator: ImageGenerator, rewards: dict[str, Offloaded]):
        self.rewards = rewards
        components = generator.pipeline.components.values()
        self.pipeline = Offloaded(part for part in components if isinstance(part, nn.Module))

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Inside, the pipeline waits in the memory of the host."""
        self.pipeline.away()
        try:
            yield
        finally:
            self.pipeline.back()

    @contextmanager
    def reward(self, name: str) -> Iterator[None]:
        """Inside, a reward is on the GPU."""
        weights = self.rewards.get(name)
        if weights is None:  # the user's own is where it is
            yield
            return
        weights.back()
        try:
            yield
        finally:
            weights.away()


def load_reward(spec: RewardSpec, config: ScoringConfig, device: str | torch.device) -> Reward:
    """A reward as the configuration wants it, of which `device` is that of the pipeline."""
    dtype = getattr(torch, config.reward_dtype) if config.is_rounded(spec) else None
    return spec.load("cpu" if config.reward_device == "cpu" else device, dtype)


def load_stage(
    config: CandidatesConfig,
    specs: Sequence[RewardSpec],
    offload: bool,
    model: str | DiffusionPipeline,
) -> tuple[ImageGenerator, dict[str, Reward], Turns | None]:
    """
    Pipeline and rewards of a stage that draws and scores, on this process's device.

    Args:
        config ([`CandidatesConfig`]):
            Settings.
        specs (`Sequence[RewardSpec]`):
            The rewards.
        offload (`bool`):
            Whether they take turns on the device.
        model (`str` or [`~diffusers.DiffusionPipeline`]):
            What draws: the configuration's model, or its pipeline with an adapter.

    Returns:
        `tuple[ImageGenerator, dict[str, Reward], Turns | None]`: the turns are `None` if they lie beside each other.
    """
    device = default_device()
    rewards: dict[str, Reward] = {}
    offloaded: dict[str, Offloaded] = {}
    for spec in specs if offload else ():
        # On the device first, and one at a time: what is computed while a reward is loaded is rounded as it is there.
        rewards[spec.name] = reward = load_reward(spec, config, device)
        if isinstance(reward, RewardModel):
            offloaded[spec.name] = Offloaded(reward.networks)
            offloaded[spec.name].away()
    generator = ImageGenerator(model, config, config.model_revision, device)
    if offload:
        return generator, rewards, Turns(generator, offloaded)
    return generator, {spec.name: load_reward(spec, config, device) for spec in specs}, None
