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


"""Diffusion-DPO: fine-tuning on pairs or lists of images, the better against the worse, relative to a frozen reference model."""

import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftConfig
from torch import nn
from transformers import TrainerCallback

from ..errors import UsageError
from ..filtering.dataset import check_image_column
from ..filtering.images import TrainingImages
from ..losses import per_sample_mse
from .diffusion_trainer import DiffusionTrainer
from .dpo_config import OF_LISTS, DiffusionDPOConfig
from .inversion import Inversion
from .papers import PAPERS
from .preference_losses import diffusion_dpo_loss, group_loss, plackett_luce_loss, regression_loss, safeguard
from .reference import ReferenceModel
from .training_samples import ListSamples


def stack_lists(inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    The `N` images of a batch of [`ListSamples`] one after the other, the best of all lists first, then the second ones; and
    which they are of `m` times `B`, a mask of shape `(m * B,)`.
    """
    mask = inputs["mask"].T.flatten()
    there = mask.nonzero()[:, 0]  # once, as the device is waited for
    images = {"latents": inputs["latents"].transpose(0, 1).flatten(0, 1)[there]}
    for name, value in inputs.items():
        if name not in ("latents", "advantage", "mask"):
            images[name] = value.expand(inputs["mask"].shape[1], *value.shape).flatten(0, 1)[there]
    return images, mask


def in_lists(values: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    """Numbers of the `N` images of [`stack_lists`] by list, shape `(B, m)`, with zeros where there is no image."""
    return values.new_zeros(len(mask)).masked_scatter(mask, values).view(-1, count).T


class DiffusionDPOTrainer(ReferenceModel, DiffusionTrainer):
    """
    Trainer for Diffusion-DPO (https://huggingface.co/papers/2311.12908): the model is to denoise the better image of a pair
    better than the reference model does, and the worse one no better. By its `loss_type` also for what came of that for ranked
    and scored lists of images, see [`DiffusionDPOConfig`].

    The reference model is the one that training starts from: a second, frozen copy of the denoiser, or with an adapter
    the model itself with the adapter switched off.

    Arguments are those of [`DiffusionTrainer`], but for the dataset. Of pairs: rows with `prompt` and the images `chosen` and
    `rejected`, such as [`build_pairs`] takes from a pool, and `expanded_prompt` if that is what to train on. Of lists: rows with
    `prompt`, `image`, `advantage` and `group_id`, as `craft filter` and [`build_lists`] make them; rows of one group are a list,
    and the larger its advantage the better an image.
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
        self.paired = is_paired(train_dataset)
        if self.paired and args.smoothing is not None:
            raise UsageError(
                "smoothing needs scores, and pairs have none: give rows with image, advantage and group_id, two to a group."
            )
        if self.paired:
            images, number = flatten_pairs(train_dataset), len(train_dataset)
            lists = [[i, number + i] for i in range(number)]
        else:
            images, lists = train_dataset, find_lists(train_dataset, args)
        self.unit = "pairs" if self.paired else "lists"
        options = ("safeguard_mu", "smoothing", "inversion_steps")
        named = next((name for name in options if getattr(args, name) is not None), args.loss_type)
        if paper := PAPERS.get(named):
            self._name, self._paper = paper.method, paper.card()
        self.samples_class = partial(ListSamples, lists=lists, every_row=True)
        super().__init__(model, args, images, revision, peft_config, list(callbacks or ()), optimizers)
        self.inversion: Inversion | None = None
        if args.inversion_steps is not None:
            self.inversion = Inversion(self.noise_process, args.inversion_steps, args.renoise)
            self.train_dataset.draw_timestep = self.inversion.draw

    def sample_weights(self, advantages: torch.Tensor) -> torch.Tensor:
        number = len(advantages) // 2
        return torch.cat([advantages[:number], -advantages[number:]]) if self.paired else advantages

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> torch.Tensor:
        """The mean over the batch of the loss of each list or pair, this micro-batch's part of it, a scalar."""
        args, scores = self.args, inputs["advantage"]  # (B, m)
        images, mask = stack_lists(inputs)
        if self.inversion is not None:

            def predict(noisy_latents: torch.Tensor, timesteps: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
                some = {name: value[rows] for name, value in images.items()}
                return self.denoise(model, noisy_latents, some | {"timesteps": timesteps})

            images["noise"] = self.inversion.noise(predict, images["latents"], images["timesteps"])
        target = self.noise_process.target(images["latents"], images["noise"], images["timesteps"])
        reference_errors = per_sample_mse(self.predict_reference(images), target)  # (N,)
        prediction = self.predict(model, images)
        errors = per_sample_mse(prediction, target)
        self.log_metric("denoising_loss", errors)
        errors, reference_errors = (in_lists(values, mask, len(scores)) for values in (errors, reference_errors))
        if args.safeguard_mu is not None:
            passed = safeguard(*(prediction.float() - target.float()).chunk(2), args.safeguard_mu)  # (B,)
            self.log_metric("safeguard", passed)
            chosen, rejected = errors.unbind(1)
            errors = torch.stack([chosen, rejected.detach() + passed * (rejected - rejected.detach())], dim=1)
        mask, rewards = inputs["mask"], 0.5 * args.beta * (reference_errors - errors)  # (B, m)
        if args.loss_type == "sigmoid":
            beta = args.beta
            if args.smoothing is not None:  # 2 p - 1 is the tangent
                beta = beta * args.smoothing * torch.tanh((scores[:, 0] - scores[:, 1]) / 2)  # (B,)
            losses = diffusion_dpo_loss(*errors.unbind(1), *reference_errors.unbind(1), beta)  # (B,)
        elif args.loss_type == "plackett_luce":
            losses = plackett_luce_loss(rewards, scores, mask)
        elif args.loss_type == "group":
            losses = group_loss(rewards, scores, mask)
        else:
            losses = regression_loss(rewards, scores, mask, args.regression_temperature, args.regression_penalty)
        better = (scores[:, :, None] > scores[:, None]) & mask[:, :, None] & mask[:, None]  # (B, m, m)
        right = rewards[:, :, None] > rewards[:, None]
        self.log_metric("implicit_accuracy", right.flatten(), counted=better.flatten())
        return self.batch_mean(losses)


def is_paired(dataset: Dataset) -> bool:
    """Whether a dataset's rows are pairs. Else they are images, of which lists are made."""
    paired = not {"chosen", "rejected"}.isdisjoint(dataset.column_names)
    if not paired and "group_id" not in dataset.column_names:
        raise UsageError(
            "The dataset has neither 'chosen' and 'rejected' nor a 'group_id'; it has "
            f"{', '.join(dataset.column_names)}. Rows are pairs of images, or images of which those of a group are a list."
        )
    return paired


def find_lists(dataset: Dataset, args: DiffusionDPOConfig) -> list[list[int]]:
    """
    Rows of each list, by `group_id`.

    Raises:
        [`UsageError`]: for lists that cannot be learnt from.
    """
    prompt_column = "prompt" if args.train_prompt == "original" else "expanded_prompt"
    for column in (prompt_column, "advantage"):
        if column not in dataset.column_names:
            raise UsageError(
                f"The dataset of lists has no column {column!r}; it has {', '.join(dataset.column_names)}."
            )
    lists: dict[Any, list[int]] = {}
    for row, group in enumerate(dataset["group_id"]):
        lists.setdefault(group, []).append(row)
    prompts, advantages = dataset[prompt_column], np.array(dataset["advantage"])
    for group, rows in lists.items():
        name = f"group_id {group}"
        if group is None:
            raise UsageError(f"The group_id of row {rows[0]} is null: it says which images are a list.")
        if len(rows) == 1:
            raise UsageError(f"{name} is a list of one image, and there is nothing to compare it with: leave it out.")
        if len({prompts[row] for row in rows}) > 1:
            remedy = ": set train_prompt to original" if args.train_prompt == "expanded" else ""
            raise UsageError(f"{name} has images of several prompts, and a list is of one{remedy}.")
        if args.loss_type == "sigmoid" and len(rows) > 2:
            raise UsageError(
                f"loss_type sigmoid is for pairs, and {name} has {len(rows)} images: set it to {' or '.join(OF_LISTS)}."
            )
        if args.loss_type == "sigmoid" and len(set(advantages[rows])) == 1:
            raise UsageError(f"The two images of {name} have the same advantage: leave it out.")
    if not any(len(set(advantages[rows])) > 1 for rows in lists.values()):
        raise UsageError("All images of each list have the same advantage: there is nothing to learn.")
    return list(lists.values())


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
