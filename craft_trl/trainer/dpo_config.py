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


OF_LISTS = ("plackett_luce", "group", "regression")


@dataclass
class DiffusionDPOConfig(DiffusionConfig):
    """
    Configuration of [`DiffusionDPOTrainer`].

    This class includes only the parameters that are specific to Diffusion-DPO, see also [`DiffusionConfig`] and
    [`~transformers.TrainingArguments`]. A sample of a batch is a pair, or a list of images: `global_batch_size` counts those,
    and as many images as they have pass through the model.

    Parameters:
        learning_rate (`float`, *optional*, defaults to `2.048e-5`):
            Initial learning rate of AdamW. The published value is 1e-8 times the batch size, which is 2,048.
        beta (`float`, *optional*, defaults to `5000.0`):
            Strength of the tie to the reference model. The published values are 5,000 for SDXL and 2,000 for SD 1.5.
        loss_type (`str`, *optional*, defaults to `"sigmoid"`):
            - `"sigmoid"`: Diffusion-DPO, of pairs.
            - `"plackett_luce"`: Diffusion-LPO, of ranked lists, see [`plackett_luce_loss`].
            - `"group"`: DGPO, of lists with advantages, see [`group_loss`].
            - `"regression"`: LAIR, of scored lists, see [`regression_loss`].
        safeguard_mu (`float`, *optional*):
            Diffusion-SDPO: scale down the rejected image's gradient where it would make the chosen image worse, see
            [`safeguard`]; only with `loss_type` `"sigmoid"`. The published values are 0.6 for SDXL and 0.9 for SD 1.5.
        smoothing (`float`, *optional*):
            SmPO (https://huggingface.co/papers/2506.02698): multiply `beta` of each pair by `smoothing * (2 p - 1)`, where `p` is the
            logistic function of the difference of its images' `advantage`; only with `loss_type` `"sigmoid"`, on a dataset of
            lists. The published value is 10, of scores between 0 and 1.
        inversion_steps (`int`, *optional*):
            InPO (https://huggingface.co/papers/2503.18454) and SmPO: noise images by inversion in so many steps at most, and not at
            random, see [`Inversion`]. The published values are 10 for InPO, and for SmPO 10 for SDXL and 5 for SD 1.5.
        renoise (`bool`, *optional*, defaults to `False`):
            Of `inversion_steps`: two calls of the model in each step instead of one, as SmPO has it.
        regression_temperature (`float`, *optional*, defaults to `1.0`):
            Of `loss_type` `"regression"`: the lower, the more the best image counts. None is published.
        regression_penalty (`float`, *optional*, defaults to `1.0`):
            Of `loss_type` `"regression"`: the larger, the closer the model stays to the reference. None is published.
    """

    learning_rate: float = field(default=2.048e-5, metadata={"help": "The initial learning rate for AdamW."})
    beta: float = field(default=5000.0, metadata={"help": "Strength of the tie to the reference model."})
    loss_type: Literal["sigmoid", "plackett_luce", "group", "regression"] = field(
        default="sigmoid",
        metadata={
            "help": "sigmoid is Diffusion-DPO, on pairs; on lists, plackett_luce is Diffusion-LPO, group DGPO and regression LAIR."
        },
    )
    safeguard_mu: float | None = field(
        default=None,
        metadata={
            "help": "Diffusion-SDPO: how much of the chosen image's gain is kept, from 0 to 1. Defaults to off."
        },
    )
    smoothing: float | None = field(
        default=None,
        metadata={"help": "SmPO: weight of pairs by the difference of their scores. The published value is 10."},
    )
    inversion_steps: int | None = field(
        default=None,
        metadata={"help": "InPO and SmPO: noise images by inversion in so many steps at most. Defaults to at random."},
    )
    renoise: bool = field(
        default=False, metadata={"help": "Of inversion_steps: two calls of the model in each step, as SmPO has it."}
    )
    regression_temperature: float = field(
        default=1.0, metadata={"help": "Of loss_type regression: the lower, the more the best image counts."}
    )
    regression_penalty: float = field(
        default=1.0, metadata={"help": "Of loss_type regression: the larger, the closer to the reference model."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.snr_gamma is not None:
            raise UsageError(f"snr_gamma is not part of the Diffusion-DPO loss, got {self.snr_gamma}: leave it out.")
        choices = ("sigmoid", *OF_LISTS)
        if self.loss_type not in choices:
            raise UsageError(f"loss_type must be one of {', '.join(choices)}, got {self.loss_type!r}.")
        if self.safeguard_mu is not None and self.loss_type != "sigmoid":
            raise UsageError(f"safeguard_mu is of loss_type sigmoid, and loss_type is {self.loss_type}: leave it out.")
        if self.smoothing is not None and self.loss_type != "sigmoid":
            raise UsageError(f"smoothing is of loss_type sigmoid, and loss_type is {self.loss_type}: leave it out.")
        if self.inversion_steps is not None and self.timestep_sampling is not None:
            raise UsageError(
                f"timestep_sampling {self.timestep_sampling} has no effect with inversion_steps, which draws from its own levels: "
                "leave it out."
            )
        for name in ("regression_temperature", "regression_penalty"):
            if getattr(self, name) != 1.0 and self.loss_type != "regression":
                raise UsageError(
                    f"{name} is of loss_type regression, and loss_type is {self.loss_type}: leave it out."
                )
