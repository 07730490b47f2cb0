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

"""What a filter will let through, before an image is drawn: the filter itself, run on simulated rewards."""

import math
from dataclasses import dataclass

import numpy as np

from ..candidates.config import CandidatesConfig
from ..conditions import split_conditions
from ..crf import composite_reward_filter, group_advantages


CORRELATION = 0.4


@dataclass(frozen=True)
class Odds:
    """
    What the filter will let through.

    Args:
        pass_rate (`float`):
            Share of variants that beat their original on every filter reward.
        images (`float`):
            Images drawn per group.
        kept_groups (`float`):
            Share of groups of which an image is kept.
        kept_images (`float`):
            Images kept per group.
        weighted (`float`):
            Share of the kept images with an advantage above zero.
    """

    pass_rate: float
    images: float
    kept_groups: float
    kept_images: float
    weighted: float

    def groups_for(self, target_groups: int | None) -> float:
        """Groups that are drawn until so many have passed, on average; without a target, all there are."""
        return math.inf if target_groups is None or not self.kept_groups else target_groups / self.kept_groups

    def describe_target(self, target_groups: int | None, num_prompts: int) -> list[str]:
        """Where drawing stops, or that it does not; without a target, nothing."""
        if target_groups is None:
            return []
        needed = self.groups_for(target_groups)
        if needed <= num_prompts:
            return [f"{target_groups:,} groups pass among about the first {needed:,.0f} of {num_prompts:,} prompts."]
        return [
            f"{num_prompts:,} prompts give fewer than the {target_groups:,} of target_groups: that takes about {needed:,.0f}."
        ]


def simulate(config: CandidatesConfig, pass_rate: float | None = None, num_groups: int = 50_000) -> Odds:
    """
    Odds by simulation with the filter itself, on images whose rewards are Gaussian and correlated by 0.4.

    The images of a group differ by chance, and all of its variants from its original by a shift that gives the pass
    rate, so that variants are compared with one and the same original: where one passes, others are likelier to.

    Args:
        config ([`CandidatesConfig`]):
            Variants, rewards and filter.
        pass_rate (`float`, *optional*):
            Share of variants that pass. Defaults to that without a shift, 50 % for one reward and 22 % for three.
        num_groups (`int`, *optional*, defaults to `50_000`):
            Groups to simulate.
    """
    config = config.without_votes()  # what people will say is not known
    names, n = config.reward_names, config.num_variants
    rng = np.random.default_rng(0)
    common = rng.standard_normal((num_groups, 1 + n, 1), dtype=np.float32)
    own = rng.standard_normal((num_groups, 1 + n, len(names)), dtype=np.float32)
    values = np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * own
    # What share of images is within a limit is not known; the pass rate, which can be given, has it.
    filter_rewards = split_conditions(config.conditions(names))[0] or names
    chosen = [names.index(name) for name in filter_rewards]
    margin = (values[:, 1:, chosen] - values[:, :1, chosen]).min(axis=2)  # (G, n)
    if pass_rate is not None:
        values[:, 1:] -= np.quantile(margin, 1 - pass_rate)
    scores = {name: values[:, :, i] for i, name in enumerate(names)}
    passes = composite_reward_filter(scores, filter_rewards, "image")[:, 1:]
    keep = composite_reward_filter(scores, filter_rewards, config.filter_level)
    advantages = group_advantages(scores, config.weights(names), config.scale_rewards, config.advantage_eps)
    # The first variant is always drawn, another one as long as all so far have passed.
    drawn = np.ones_like(keep)
    if config.reject_on is not None:
        drawn[:, 2:] = np.logical_and.accumulate(passes, axis=1)[:, :-1]
    trained = {"kept": keep, "kept_groups": drawn & keep.any(axis=1, keepdims=True), "all": drawn}[config.train_images]
    return Odds(
        pass_rate=float(passes.mean()),
        images=float(drawn.sum() / num_groups),
        kept_groups=float(keep.any(axis=1).mean()),
        kept_images=float(trained.sum() / num_groups),
        weighted=float((advantages[trained] > 0).mean()) if trained.any() else 1.0,
    )
