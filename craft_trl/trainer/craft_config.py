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
from typing import Literal

from ..errors import UsageError
from .diffusion_config import DiffusionConfig


@dataclass
class CraftConfig(DiffusionConfig):
    """
    Configuration of [`CraftTrainer`].

    This class includes only the parameters that are specific to CRAFT, see also [`DiffusionConfig`] and
    [`~transformers.TrainingArguments`].

    Parameters:
        learning_rate (`float`, *optional*, defaults to `5e-5`):
            Initial learning rate of AdamW, the paper's value.
        negative_advantages (`"zero"`, `"keep"` or `"proximal"`, *optional*, defaults to `"zero"`):
            Weight of images below the mean of their group: `"zero"` leaves them out, `"keep"` pushes the model away
            from them, without end, and `"proximal"` pushes it away and ties it to the model that training began with, which
            is ours and not the paper's, see [`proximal_term`]. Only the first keeps the loss a bound of the group-RL objective.
        proximal_tau (`float`, *optional*, defaults to `1.0`):
            Strength of the tie of `"proximal"`: the smaller, the further the model goes.
        normalize_advantages (`bool`, *optional*, defaults to `False`):
            Divide the weights by their mean over the dataset, so that the loss is on the scale of plain supervised
            fine-tuning whatever the filter let through.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "The initial learning rate for AdamW."})
    negative_advantages: Literal["zero", "keep", "proximal"] = field(
        default="zero",
        metadata={
            "help": "Weight of images below the mean of their group: zero leaves them out, keep pushes the model away "
            "from them, proximal does so and ties it to the model that training began with."
        },
    )
    proximal_tau: float = field(
        default=1.0, metadata={"help": "Strength of the tie of negative_advantages: proximal."}
    )
    normalize_advantages: bool = field(
        default=False, metadata={"help": "Divide the weights by their mean over the dataset."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.negative_advantages not in ("zero", "keep", "proximal"):
            raise UsageError(
                f"negative_advantages must be 'zero', 'keep' or 'proximal', got {self.negative_advantages!r}."
            )
        if self.proximal_tau != 1.0 and self.negative_advantages != "proximal":
            raise UsageError(
                f"proximal_tau {self.proximal_tau:g} has no effect with negative_advantages: {self.negative_advantages}."
            )
