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


"""CRAFT: fine-tuning on the model's own filtered images, weighted by group advantage."""

import textwrap
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ..errors import UsageError
from ..losses import (
    advantage_weighted_loss,
    advantage_weights,
    min_snr_weights,
    per_sample_mse,
    proximal_term,
)
from .craft_config import CraftConfig
from .diffusion_trainer import DiffusionTrainer
from .reference import ReferenceModel
from .training_samples import TrainingSamples


class CraftTrainer(ReferenceModel, DiffusionTrainer):
    """
    Trainer for CRAFT (https://huggingface.co/papers/2603.18991): supervised fine-tuning on images that the model drew
    itself and that passed Composite Reward Filtering, each weighted by its group-normalised advantage.

    The rewards are not here: they are in the dataset's column `advantage`. With 1 in every row this is plain
    supervised fine-tuning, and every ablation of the filter is another dataset.

    Examples:

    ```python
    from datasets import load_from_disk
    from craft_trl import CraftConfig, CraftTrainer

    trainer = CraftTrainer(
        model="stabilityai/stable-diffusion-xl-base-1.0",
        args=CraftConfig(output_dir="sdxl-craft", max_steps=200, global_batch_size=128),
        train_dataset=load_from_disk("runs/sdxl/dataset")["train"],
    )
    trainer.train()
    trainer.save_model()
    ```
    """

    _tag_names = ["craft_trl", "craft"]
    _name = "CRAFT"
    _paper = {
        "title": "CRAFT: Aligning Diffusion Models with Fine-Tuning Is Easier Than You Think",
        "id": "2603.18991",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @misc{craft2026,
                title         = {{CRAFT: Aligning Diffusion Models with Fine-Tuning Is Easier Than You Think}},
                year          = 2026,
                eprint        = {2603.18991},
                archivePrefix = {arXiv},
                note          = {CVPR 2026},
            }"""),
    }
    args: CraftConfig

    def sample_weights(self, advantages: torch.Tensor) -> torch.Tensor:
        weights = advantage_weights(advantages, self.args.negative_advantages)
        if not weights.any():
            raise UsageError("No advantage is above 0: there is nothing to train on.")
        if self.args.normalize_advantages:
            if weights.mean() <= 0:
                raise UsageError(f"normalize_advantages needs a mean above 0, got {weights.mean():.4f}.")
            weights = weights / weights.mean()
        return weights

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> torch.Tensor:
        """
        `L = mean_k A_k || f_theta(x_t, t, c) - target ||^2`, this micro-batch's part of it, a scalar; with [`proximal_term`]
        added where negative advantages are to have it.
        """
        target = self.noise_process.target(inputs["latents"], inputs["noise"], inputs["timesteps"])
        reference = self.predict_reference(inputs) if self.needs_reference else None  # before there are activations
        prediction = self.predict(model, inputs)
        denoising_loss = per_sample_mse(prediction, target)  # (B,)
        self.log_metric("denoising_loss", denoising_loss, counted=inputs["advantage"] != 0)
        weights = 1.0
        if self.args.snr_gamma is not None:
            weights = min_snr_weights(self.noise_process, inputs["timesteps"], self.args.snr_gamma)
        losses = advantage_weighted_loss(weights * denoising_loss, inputs["advantage"], self.args.negative_advantages)
        if reference is not None:
            distances = per_sample_mse(prediction, reference)  # (B,)
            self.log_metric("distance_to_base", distances, counted=inputs["advantage"] != 0)
            losses = losses + proximal_term(weights * distances, inputs["advantage"], self.args.proximal_tau)
        return self.batch_mean(losses)

    @property
    def samples_class(self) -> Callable[..., TrainingSamples]:
        # A sample of advantage 0 still counts in the proximal term.
        return partial(TrainingSamples, every_row=self.needs_reference)

    @property
    def needs_reference(self) -> bool:
        return self.args.negative_advantages == "proximal"
