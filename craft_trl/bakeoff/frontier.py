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

"""What the gain of each arm costs in variety: the models of its training seeds as one point of a frontier."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..evaluation.frontier import Frontier


def of_arms(frontier: Frontier, arms: Sequence[str], seeds: Sequence[int]) -> Frontier:
    """
    A frontier of arms instead of models. Of every prompt and image, an arm has the mean of what the models of its training seeds
    have, by every judge and of the variety: so its intervals are over prompts alone, of these trainings.

    Args:
        frontier ([`Frontier`]):
            That of the models, of which those of an arm are named `ARM-SEED`.
        arms (`Sequence[str]`):
            Names of the arms.
        seeds (`Sequence[int]`):
            Training seeds.
    """
    models = {arm: [frontier.arms[f"{arm}-{seed}"] for seed in seeds] for arm in arms}
    means = {
        arm: {name: np.mean([of_seed[name] for of_seed in trained], axis=0) for name in trained[0]}
        for arm, trained in models.items()
    }
    base, *others = (name for name, way in frontier.ways.items() if way != "model")
    names = [base, *means, *others]
    return replace(
        frontier,
        arms={name: means[name] if name in means else frontier.arms[name] for name in names},
        ways={name: "model" if name in means else frontier.ways[name] for name in names},
        labels={name: name if name in means else frontier.labels[name] for name in names},
    )
