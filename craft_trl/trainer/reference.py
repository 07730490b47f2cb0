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

"""The model that training starts from, for methods that compare with it."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import TrainerCallback

from ..candidates.loading import cast
from .denoiser import load_denoiser
from .diffusion_config import DiffusionConfig
from .precision import compute_in_bfloat16
from .zero import zero_init_disabled


class ReferenceModel:
    """
    What a [`DiffusionTrainer`] has before itself to ask the model that training starts from: a second, frozen copy of the
    denoiser, or with an adapter the model itself with the adapter switched off. Arguments are those of [`DiffusionTrainer`].
    """

    def __init__(
        self,
        model: str,
        args: DiffusionConfig,
        train_dataset: Dataset,
        revision: str | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ):
        super().__init__(model, args, train_dataset, revision, peft_config, list(callbacks or ()), optimizers)
        self.reference: nn.Module | None = None
        if self.needs_reference and peft_config is None:
            with zero_init_disabled():
                self.reference = load_denoiser(self.source, revision)
            self.reference.requires_grad_(False).eval().to(args.device)
            if self.bf16_module:
                cast(self.reference, torch.bfloat16)
                compute_in_bfloat16(self.reference)

    @property
    def needs_reference(self) -> bool:
        """Whether the method has a use for the reference, without which no copy is loaded."""
        return True

    @torch.no_grad()
    def predict_reference(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the reference model predicts, shape `(B, C, h, w)`."""
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                return self.predict(model, inputs)
        dtype = next(self.model.parameters()).dtype
        if not self.bf16_module and next(self.reference.parameters()).dtype != dtype:
            # DeepSpeed casts the model when training begins, and `predict` casts its inputs to that.
            cast(self.reference, dtype)
        # In the precision of the model, whose forward method accelerate has wrapped in autocast where there is any.
        with self.accelerator.autocast():
            return self.predict(self.reference, inputs)
