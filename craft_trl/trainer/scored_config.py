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

from dataclasses import dataclass, field, fields
from typing import Literal

from ..errors import UsageError
from .diffusion_config import DiffusionConfig


# Which losses read an option.
READ_BY = {
    "beta": ("nft", "tgo"), "advantage_clip": ("nft", "awm"), "clip_range": ("awm",), "kl_beta": ("awm",),
    "confidence_weight": ("tgo",),
}  # fmt: skip
BETAS = {"nft": 1.0, "tgo": 2000.0, "awm": None}


@dataclass
class ScoredConfig(DiffusionConfig):
    """
    Configuration of [`ScoredTrainer`].

    This class includes only the parameters that are specific to it, see also [`DiffusionConfig`] and
    [`~transformers.TrainingArguments`].

    Parameters:
        learning_rate (`float`, *optional*, defaults to `5e-5`):
            Initial learning rate of AdamW. Published are 3e-4 for adapters (`nft`, `awm`) and 1e-5 (`tgo`).
        loss_type (`str`, *optional*, defaults to `"nft"`):
            - `"nft"`: DiffusionNFT, see [`nft_loss`].
            - `"awm"`: Advantage Weighted Matching, see [`awm_loss`].
            - `"tgo"`: threshold-guided optimization, see [`tgo_loss`]. The column `advantage` may hold scores on any scale: the
              threshold is their median, and they are divided by their standard deviation.
        beta (`float`, *optional*):
            Of `nft`: how far its two branches reach, 1 by default; the smaller, the further the model goes. Of `tgo`: strength of
            the tie to the reference model, 2,000 by default.
        advantage_clip (`float`, *optional*, defaults to `5.0`):
            Of `nft` and `awm`: advantages count from minus it to it.
        clip_range (`float`, *optional*, defaults to `1.0`):
            Of `awm`: how far the ratio to the reference model may be from 1.
        kl_beta (`float`, *optional*, defaults to `1e-3`):
            Of `awm`: strength of the tie to the reference model. Published are 1e-4 to 3e-3.
        confidence_weight (`float`, *optional*, defaults to `5.0`):
            Of `tgo`: the larger, the more images far from the threshold count.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "The initial learning rate for AdamW."})
    loss_type: Literal["nft", "awm", "tgo"] = field(
        default="nft",
        metadata={"help": "nft is DiffusionNFT, awm Advantage Weighted Matching, tgo threshold-guided optimization."},
    )
    beta: float | None = field(
        default=None,
        metadata={
            "help": "Of nft: reach of its branches, 1 by default. Of tgo: tie to the reference model, 2000 by default."
        },
    )
    advantage_clip: float = field(
        default=5.0, metadata={"help": "Of nft and awm: advantages count from minus it to it."}
    )
    clip_range: float = field(default=1.0, metadata={"help": "Of awm: how far the ratio may be from 1."})
    kl_beta: float = field(default=1e-3, metadata={"help": "Of awm: strength of the tie to the reference model."})
    confidence_weight: float = field(
        default=5.0, metadata={"help": "Of tgo: the larger, the more images far from the threshold count."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.loss_type not in BETAS:
            raise UsageError(f"loss_type must be one of {', '.join(BETAS)}, got {self.loss_type!r}.")
        if self.snr_gamma is not None:
            raise UsageError(f"snr_gamma is not part of these losses, got {self.snr_gamma}: leave it out.")
        defaults = {option.name: option.default for option in fields(self)}
        for name, readers in READ_BY.items():
            if getattr(self, name) != defaults[name] and self.loss_type not in readers:
                raise UsageError(
                    f"{name} is of loss_type {' and '.join(readers)}, and loss_type is {self.loss_type}: leave it out."
                )
        if self.beta is None:
            self.beta = BETAS[self.loss_type]
