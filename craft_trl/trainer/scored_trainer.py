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

"""Fine-tuning on single images with a score, good and bad ones, relative to a frozen reference model."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import TrainerCallback

from ..errors import UsageError
from ..losses import per_sample_mse
from ..noise import NoiseProcess
from .diffusion_trainer import DiffusionTrainer
from .papers import PAPERS
from .reference import ReferenceModel
from .scored_config import ScoredConfig
from .scored_losses import awm_loss, nft_loss, tgo_loss
from .training_samples import TrainingSamples


class ScoredTrainer(ReferenceModel, DiffusionTrainer):
    """
    Trainer for methods that learn from single images and how good each is: by its `loss_type` DiffusionNFT, Advantage Weighted
    Matching or threshold-guided optimization, see [`ScoredConfig`]. Unlike CRAFT they are pushed away from images below the
    mean, and held by a frozen reference model.

    DiffusionNFT and Advantage Weighted Matching draw new images with the model at every step. Here they are given a dataset once,
    and the model that training starts from stands for the old one.

    Arguments are those of [`DiffusionTrainer`]: rows with `image`, `prompt` and `advantage`, best of all images and not of those
    alone that a filter keeps.
    """

    _tag_names = ["craft_trl", "scored"]
    _name = "scored images"
    # No row is left out: one of advantage 0 ties the model to the reference.
    samples_class = partial(TrainingSamples, every_row=True)
    args: ScoredConfig

    def __init__(
        self,
        model: str,
        args: ScoredConfig,
        train_dataset: Dataset,
        revision: str | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ):
        self._name, self._paper = PAPERS[args.loss_type].method, PAPERS[args.loss_type].card()
        super().__init__(model, args, train_dataset, revision, peft_config, callbacks, optimizers)

    def sample_weights(self, advantages: torch.Tensor) -> torch.Tensor:
        if (advantages == advantages[0]).all():
            raise UsageError(f"The advantage of every row is {advantages[0]:g}: there is nothing to tell images by.")
        if self.args.loss_type != "tgo":
            return advantages
        scores = advantages.double()  # of any scale
        return ((scores - scores.quantile(0.5)) / scores.std(correction=0)).float()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> torch.Tensor:
        """The mean over the batch of the loss of each image, this micro-batch's part of it, a scalar."""
        args, advantages = self.args, inputs["advantage"]  # (B,)
        target = self.noise_process.target(inputs["latents"], inputs["noise"], inputs["timesteps"])
        reference = self.predict_reference(inputs)  # before there are activations
        prediction = self.predict(model, inputs)
        errors, reference_errors = (per_sample_mse(predicted, target) for predicted in (prediction, reference))  # (B,)
        distances = per_sample_mse(prediction, reference)
        self.log_metric("denoising_loss", errors)
        self.log_metric("distance_to_base", distances)
        if args.loss_type == "tgo":
            losses = tgo_loss(0.5 * args.beta * (reference_errors - errors), advantages, args.confidence_weight)
            return self.batch_mean(losses)
        if args.loss_type == "nft":
            scale = self.noise_process.error_scale(
                inputs["timesteps"]
            )  # squared error of the prediction over the image's
            shape = (-1, *(1,) * (target.ndim - 1))
            of_image = (scale.rsqrt().view(shape) * (p.float() - target.float()) for p in (prediction, reference))
            losses = nft_loss(*of_image, advantages, args.beta, args.advantage_clip)
        else:
            levels, weights = as_flow(self.noise_process, inputs["timesteps"])
            of_velocity = (weights * value for value in (errors, reference_errors, distances))
            options = args.clip_range, args.kl_beta, args.advantage_clip
            losses = awm_loss(*of_velocity, levels, advantages, *options)
        return self.batch_mean(losses)


def as_flow(noise_process: NoiseProcess, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The level `t` of the flow `(1 - t) x_0 + t eps` that a noise process is up to its scale, and what the squared error
    of the prediction is to be multiplied by for that of the flow's velocity, which is the image's error over `t`. Timesteps and results of shape `(B,)`.
    """
    levels = 1 / (1 + noise_process.snr(timesteps).sqrt())
    return levels, 1 / (noise_process.error_scale(timesteps) * levels.square())
