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

from ..errors import UsageError
from .diffusion_config import DiffusionConfig


@dataclass
class SPOConfig(DiffusionConfig):
    """
    Configuration of [`SPOTrainer`].

    This class includes only the parameters that are specific to SPO, see also [`DiffusionConfig`] and
    [`~transformers.TrainingArguments`]. A sample of a batch is a pair of transitions: with guidance, its noisy latents pass
    through the model twice.

    Parameters:
        learning_rate (`float`, *optional*, defaults to `1e-5`):
            Initial learning rate of AdamW. The published values are 1e-5 for SDXL and 6e-5 for SD 1.5, both of adapters.
        beta (`float`, *optional*, defaults to `10.0`):
            Factor of the difference of log-ratios.
        ratio_clip (`float`, *optional*, defaults to `0.1`):
            How far from 1 the ratio of a transition's density to the reference model's is followed.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    beta: float = field(default=10.0, metadata={"help": "Factor of the difference of log-ratios."})
    ratio_clip: float = field(
        default=0.1, metadata={"help": "How far from 1 the ratio to the reference model's density is followed."}
    )

    def __post_init__(self):
        super().__post_init__()
        unused = {
            "snr_gamma": None,
            "timestep_sampling": None,
            "timestep_shift": None,
            "proportion_empty_prompts": 0.0,
        }
        for name, without in unused.items():
            if getattr(self, name) != without:
                raise UsageError(
                    f"{name} is not part of SPO, whose timesteps and texts are those of the transitions; got "
                    f"{getattr(self, name)}: leave it out."
                )
        if self.train_prompt != "original":
            raise UsageError(f"train_prompt {self.train_prompt}: transitions are drawn from the original prompt.")
