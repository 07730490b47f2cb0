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
class DiffusionDPOConfig(DiffusionConfig):
    """
    Configuration of [`DiffusionDPOTrainer`].

    This class includes only the parameters that are specific to Diffusion-DPO, see also [`DiffusionConfig`] and
    [`~transformers.TrainingArguments`]. A sample of a batch is a pair: `global_batch_size` counts pairs, and twice as many
    images pass through the model.

    Parameters:
        learning_rate (`float`, *optional*, defaults to `2.048e-5`):
            Initial learning rate of AdamW. The published value is 1e-8 times the batch size, which is 2,048.
        beta (`float`, *optional*, defaults to `5000.0`):
            Strength of the tie to the reference model. The published values are 5,000 for SDXL and 2,000 for SD 1.5.
    """

    learning_rate: float = field(default=2.048e-5, metadata={"help": "The initial learning rate for AdamW."})
    beta: float = field(default=5000.0, metadata={"help": "Strength of the tie to the reference model."})

    def __post_init__(self):
        super().__post_init__()
        if self.snr_gamma is not None:
            raise UsageError(f"snr_gamma is not part of the Diffusion-DPO loss, got {self.snr_gamma}: leave it out.")
