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

"""Settings of a comparison of arms."""

from dataclasses import dataclass, field
from typing import Annotated

from ..candidates.tree_config import TreeConfig
from ..errors import UsageError
from ..ranges import Count, Positive, Processes, Range
from .arms import BASELINES


@dataclass
class BakeoffConfig(TreeConfig):
    """
    Configuration of `craft bakeoff`. What it does not name is as the three recipes have it.

    Parameters:
        candidates (`str`):
            Recipe of the candidates. Every image is drawn, with no early rejection: milder filters need them.
        training (`str`):
            Recipe of the training; its schedule, and its learning rate unless an arm has its own, are those of all arms.
        evaluation (`str`):
            Recipe of the evaluation; its held-out rewards decide.
        arms (`list[str]`, *optional*):
            What to compare, see [`bakeoff.METHODS`]: names, or `NAME@RATE` for an arm at a learning rate of its own, such as
            `inpo@2e-5`; the others have the training recipe's. `NAME+NAME` is the mean of the models of two or more of the arms, of
            the same training seed each. Defaults to CRAFT, its ablations and its baselines,
            [`bakeoff.BASELINES`].
        seeds (`list[int]`, *optional*, defaults to `[0, 1, 2]`):
            Training seeds of each arm.
        num_prompts (`int`, *optional*):
            Prompts of the pool. Defaults to those of the recipe.
        num_test_prompts (`int`, *optional*):
            Prompts of the evaluation. Defaults to those of the recipe.
        num_images_per_prompt (`int`, *optional*, defaults to `1`):
            Images per prompt and model of the evaluation.
        frontier (`bool`, *optional*, defaults to `False`):
            Also hold what every arm gains against what it costs in variety, see [`Frontier`]. It draws more images of the base,
            and needs two images per prompt.
        max_steps (`int`, *optional*):
            Optimizer steps of every arm. Defaults to those of the recipe.
        global_batch_size (`int`, *optional*):
            Images per step of every arm; of arms on pairs, half as many pairs, and on lists as many whole lists as have no more
            images. Defaults to that of the recipe.
        beta (`float`, *optional*, defaults to `5000.0`):
            Strength of the tie to the reference model, of the arms that `craft dpo` trains.
        num_processes (`int`, *optional*, defaults to `1`):
            Processes on this machine, each with a GPU of its own: they share out the images of the pool and of the evaluation, and so
            many trainings run at a time. The results do not depend on it.
        output_dir (`str`):
            Where to write the pool, the models, `bakeoff.json`, `bakeoff.html` and, with `frontier`, `frontier.svg`.

        The parameters of the trees of `spo_offline` are those of [`TreeConfig`].
    """

    candidates: str = field(default=None, metadata={"help": "Recipe of the candidates."})
    training: str = field(default=None, metadata={"help": "Recipe of the training."})
    evaluation: str = field(default=None, metadata={"help": "Recipe of the evaluation."})
    arms: list[str] = field(
        default_factory=lambda: list(BASELINES),
        metadata={
            "help": "What to compare, as NAME, NAME@RATE or, of arms, NAME+NAME. Defaults to CRAFT, its ablations and baselines."
        },
    )
    seeds: list[Annotated[int, Range(0, 2**32 - 1)]] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Training seeds of each arm."}
    )
    num_prompts: Count | None = field(default=None, metadata={"help": "Prompts of the pool."})
    num_test_prompts: Count | None = field(default=None, metadata={"help": "Prompts of the evaluation."})
    num_images_per_prompt: Count = field(default=1, metadata={"help": "Images per prompt of the evaluation."})
    frontier: bool = field(
        default=False, metadata={"help": "Also hold every arm's gain against what it costs in variety."}
    )
    max_steps: Count | None = field(default=None, metadata={"help": "Optimizer steps of every arm."})
    global_batch_size: Count | None = field(default=None, metadata={"help": "Samples per step of every arm."})
    beta: Positive = field(default=5000.0, metadata={"help": "Diffusion-DPO's tie to the reference model."})
    num_processes: Processes = field(
        default=1,
        metadata={"help": "Processes on this machine, which share out GPUs and images, and trainings at a time."},
    )
    output_dir: str = field(
        default=None, metadata={"help": "Where to write the pool, the models, bakeoff.json and bakeoff.html."}
    )

    def __post_init__(self):
        for name in ("candidates", "training", "evaluation", "output_dir"):
            if not getattr(self, name):
                raise UsageError(f"{name} is missing: give it in the recipe or as --{name}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise UsageError(f"seeds must be different numbers from 0 on, at least one; got {self.seeds}.")
        TreeConfig.__post_init__(self)
        if self.frontier and self.num_images_per_prompt < 2:
            raise UsageError(
                "frontier needs num_images_per_prompt of 2 or more: variety is between images of a prompt."
            )
        drawn = {name: getattr(self, name) for name in TreeConfig.__dataclass_fields__}
        if not any(arm.partition("@")[0] == "spo_offline" for arm in self.arms) and (
            given := [n for n in drawn if drawn[n] != getattr(TreeConfig, n)]
        ):
            raise UsageError(f"{given[0]} is of the arm spo_offline, which is not among the arms: leave it out.")
