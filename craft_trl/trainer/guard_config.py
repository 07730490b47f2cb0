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

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from ..errors import UsageError
from ..prompts.benchmarks import load_evaluation_prompts
from ..ranges import Count, Range, check_ranges
from ..rewards import parse_rewards
from ..stages import fingerprint
from .image_statistics import PICTURE_METRICS


@dataclass
class GuardConfig:
    """
    Configuration of the guard. It is on where held-out rewards are named.

    Parameters:
        held_out_rewards (`list[str]`, *optional*):
            Judges that training never sees, as `NAME` or `NAME=SOURCE`. Naming them turns the guard on; `none` turns the guard
            of a recipe off.
        guard_rewards (`list[str]`, *optional*):
            Rewards that the training set was filtered with. If given, training stops only if one of them rises while a
            held-out one falls; else whenever a held-out one falls.
        guard_prompts (`str`, *optional*):
            Prompts to draw: a file, a dataset on the Hub or a published prompt set; best none that you report on later.
        guard_num_prompts (`int`, *optional*, defaults to `16`):
            Number of prompts, evenly spaced over the file. More make the guard surer and slower.
        guard_num_images_per_prompt (`int`, *optional*, defaults to `2`):
            Images of each. Two or more show diversity.
        guard_steps (`int`, *optional*, defaults to `25`):
            Look every so many steps, before the first and after the last.
        guard_num_inference_steps (`int`, *optional*, defaults to `25`):
            Denoising steps.
        guard_guidance_scale (`float`, *optional*, defaults to `5.0`):
            Scale of classifier-free guidance.
        guard_stop (`bool`, *optional*, defaults to `True`):
            Whether to stop, or only to say that one should.
    """

    held_out_rewards: list[str] | None = field(
        default=None,
        metadata={"help": "Judges that training never sees, NAME or NAME=SOURCE. Naming them turns the guard on."},
    )
    guard_rewards: list[str] | None = field(
        default=None, metadata={"help": "Rewards the training set was filtered with, NAME or NAME=SOURCE."}
    )
    guard_prompts: str | None = field(
        default=None, metadata={"help": "Prompts to draw: a file, a dataset on the Hub or a published prompt set."}
    )
    guard_num_prompts: Count = field(default=16, metadata={"help": "Number of prompts, evenly spaced over the file."})
    guard_num_images_per_prompt: Count = field(
        default=2, metadata={"help": "Images of each. Two or more show diversity."}
    )
    guard_steps: Count = field(default=25, metadata={"help": "Look every so many steps."})
    guard_num_inference_steps: Annotated[int, Range(1, 1000)] = field(
        default=25, metadata={"help": "Denoising steps of the guard's images."}
    )
    guard_guidance_scale: Annotated[float, Range(0, 1000)] = field(
        default=5.0, metadata={"help": "Guidance scale of the guard's images."}
    )
    guard_stop: bool = field(default=True, metadata={"help": "Whether to stop, or only to say that one should."})

    def __post_init__(self):
        check_ranges(self)
        if self.held_out_rewards == ["none"]:
            self.held_out_rewards = self.guard_rewards = self.guard_prompts = None
        if not self.held_out_rewards:
            if self.guard_rewards or self.guard_prompts:
                raise UsageError("The guard needs judges that training never sees: name held_out_rewards.")
            return
        if not self.guard_prompts:
            raise UsageError("held_out_rewards turn the guard on, which needs prompts: name guard_prompts.")
        for spec in parse_rewards([*self.held_out_rewards, *(self.guard_rewards or ())]):
            if spec.name in PICTURE_METRICS:
                raise UsageError(f"The guard measures {spec.name} itself: give the reward {spec.name!r} another name.")
        if self.guard_num_prompts < 8:  # fewer say nothing about chance
            raise UsageError(f"guard_num_prompts must be at least 8, got {self.guard_num_prompts}.")

    def load_guard_prompts(self) -> list[str]:
        """The prompts to draw."""
        rows, column, _ = load_evaluation_prompts(self.guard_prompts)
        if self.guard_num_prompts > len(rows):
            raise UsageError(
                f"guard_num_prompts must be at most {len(rows)}, the prompts in {self.guard_prompts}; got "
                f"{self.guard_num_prompts}."
            )
        chosen = np.linspace(0, len(rows) - 1, self.guard_num_prompts).round().astype(int)
        return [" ".join(rows[i][column].split()) for i in chosen]

    def guard_settings(self) -> dict:
        """What decides when training stops and which step is saved."""
        lists = {"held_out_rewards": self.held_out_rewards, "guard_rewards": self.guard_rewards or []}
        settings = {name: getattr(self, name) for name in GuardConfig.__dataclass_fields__}
        scorers = {
            name: {spec.name: spec.fingerprint() for spec in parse_rewards(texts)} for name, texts in lists.items()
        }
        return {**settings, **scorers, "guard_prompts": fingerprint(self.load_guard_prompts())}
