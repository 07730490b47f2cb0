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


"""Diffusion-DPO: fine-tuning on pairs of images, the better against the worse, relative to a frozen reference model."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from peft import PeftConfig
from torch import nn
from transformers import TrainerCallback

from ..errors import UsageError
from ..families.latents import normalise
from ..filtering.dataset import check_image_column
from ..filtering.images import TrainingImages
from ..losses import per_sample_mse
from .diffusion_trainer import DiffusionTrainer
from .dpo_config import DiffusionDPOConfig
from .reference import ReferenceModel
from .training_samples import TrainingSamples


def diffusion_dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """
    Loss of each pair, equation 14 of Diffusion-DPO (https://huggingface.co/papers/2311.12908):
    `-log sigmoid(-beta / 2 * ((L_w - L_w_ref) - (L_l - L_l_ref)))`.

    The equation's `T omega(lambda_t)` is constant and part of `beta`; the half and the mean over the elements, where the
    equation has a sum, are those of the published code, to which the published values of `beta` belong.

    Args:
        chosen, rejected, reference_chosen, reference_rejected (`torch.Tensor` of shape `(B,)`):
            Denoising errors of the better and the worse image, by the model and by the reference model, at the same noise
            and timestep.
        beta (`float`):
            Strength of the tie to the reference model.

    Returns:
        `torch.Tensor` of shape `(B,)`; `log 2` where the model is the reference model.
    """
    return -F.logsigmoid(-0.5 * beta * ((chosen - rejected) - (reference_chosen - reference_rejected)))


class PairSamples(TrainingSamples):
    """
    The `k`-th training pair, see [`TrainingSamples`]: both images at the same noise, timestep and prompt.

    Of `N` pairs, row `i` of the encoded data is the chosen image of pair `i` and row `N + i` its rejected one.
    """

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(k)
        row = len(self.advantages) + self.row(k)
        mean, std = self.encoded["latent_mean"][row], self.encoded["latent_std"][row]  # (C, h, w)
        posterior_noise = np.random.default_rng((self.seed, 2, k)).standard_normal(mean.shape, dtype=np.float32)
        latents = mean.float() + std.float() * torch.from_numpy(posterior_noise)
        return sample | {"rejected_latents": normalise(latents, self.statistics)}


class DiffusionDPOTrainer(ReferenceModel, DiffusionTrainer):
    """
    Trainer for Diffusion-DPO (https://huggingface.co/papers/2311.12908): the model is to denoise the better image of a pair
    better than the reference model does, and the worse one no better.

    The reference model is the one that training starts from: a second, frozen copy of the denoiser, or with an adapter
    the model itself with the adapter switched off.

    Arguments are those of [`DiffusionTrainer`], but for the dataset: rows with `prompt` and the images `chosen` and
    `rejected`, such as [`build_pairs`] takes from a pool, and `expanded_prompt` if that is what to train on.
    """

    _tag_names = ["craft_trl", "diffusion-dpo"]
    _name = "Diffusion-DPO"
    _paper = {
        "title": "Diffusion Model Alignment Using Direct Preference Optimization",
        "id": "2311.12908",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @misc{wallace2023diffusion,
                title         = {{Diffusion Model Alignment Using Direct Preference Optimization}},
                author        = {Bram Wallace and Meihua Dang and Rafael Rafailov and Linqi Zhou and Aaron Lou and Senthil Purushwalkam and Stefano Ermon and Caiming Xiong and Shafiq Joty and Nikhil Naik},
                year          = 2023,
                eprint        = {2311.12908},
                archivePrefix = {arXiv},
            }"""),
    }
    args: DiffusionDPOConfig

    def __init__(
        self,
        model: str,
        args: DiffusionDPOConfig,
        train_dataset: Dataset,
        revision: str | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ):
        super().__init__(
            model, args, flatten_pairs(train_dataset), revision, peft_config, list(callbacks or ()), optimizers
        )
        samples = self.train_dataset
        self.train_dataset = PairSamples(
            self.encoded,
            torch.ones(len(train_dataset)),
            samples.num_samples,
            samples.draw_timestep,
            samples.seed,
            samples.proportion_empty_prompts,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> torch.Tensor:
        """The mean of [`diffusion_dpo_loss`] over the batch, this micro-batch's part of it, a scalar."""
        rejected_latents = inputs["rejected_latents"]
        images = {n: torch.cat([v, v]) for n, v in inputs.items() if n != "rejected_latents"}  # (2B, ...)
        images["latents"] = torch.cat([inputs["latents"], rejected_latents])
        target = self.noise_process.target(images["latents"], images["noise"], images["timesteps"])
        errors = per_sample_mse(self.predict(model, images), target)  # (2B,)
        reference_errors = per_sample_mse(self.predict_reference(images), target)
        losses = diffusion_dpo_loss(*errors.chunk(2), *reference_errors.chunk(2), self.args.beta)  # (B,)
        self.log_metric("denoising_loss", errors)
        self.log_metric("implicit_accuracy", losses < np.log(2))
        return self.batch_mean(losses)


def flatten_pairs(pairs: Dataset) -> Dataset:
    """Pairs as single images: of `N` pairs, rows `i` and `N + i` are the chosen and the rejected image of pair `i`."""
    for column in ("chosen", "rejected"):
        if column not in pairs.column_names:
            raise UsageError(f"The dataset of pairs has no column {column!r}; it has {', '.join(pairs.column_names)}.")
        check_image_column(pairs, column)
        TrainingImages(pairs, column).check()  # before their rows get other numbers
    prompts = [name for name in ("prompt", "expanded_prompt") if name in pairs.column_names]
    halves = [pairs.select_columns([*prompts, name]).rename_column(name, "image") for name in ("chosen", "rejected")]
    images = concatenate_datasets(halves)
    return images.add_column("advantage", np.ones(len(images), dtype=np.float32))
