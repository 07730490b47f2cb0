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


"""SPO: fine-tuning on pairs of denoising steps, the better against the worse, relative to a frozen reference model."""

import math
import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import TrainerCallback

from ..candidates.tree_config import check_diffusion
from ..candidates.trees import guided
from ..errors import UsageError
from .diffusion_trainer import DiffusionTrainer
from .reference import ReferenceModel
from .spo_config import SPOConfig
from .training_samples import TrainingSamples


def spo_loss(
    mean: torch.Tensor,
    reference_mean: torch.Tensor,
    better: torch.Tensor,
    worse: torch.Tensor,
    std: torch.Tensor,
    beta: float,
    ratio_clip: float,
) -> torch.Tensor:
    """
    Loss of each pair of transitions from the same latents (https://huggingface.co/papers/2406.04314):
    `-log sigmoid(beta * (log rho_w - log rho_l))`, where `rho` is the density of a transition in the model over that in the
    reference model.

    As in the published code, the logarithm of a density is the mean over the elements, where it would be the sum, and each
    ratio is clamped to `1 +- ratio_clip`, beyond which a transition has no gradient, on whichever side it is. Unlike it, the
    difference of the two squares is never formed: it is 1e-5 of each, and float32 would lose it.

    Args:
        mean, reference_mean (`torch.Tensor` of shape `(B, C, h, w)`):
            Mean of the next latents, by the model and by the reference model.
        better, worse (`torch.Tensor` of shape `(B, C, h, w)`):
            What the next latents were.
        std (`torch.Tensor` of shape `(B,)`):
            Their standard deviation, that of both models.
        beta (`float`):
            Factor of the difference.
        ratio_clip (`float`):
            How far from 1 a ratio is followed.

    Returns:
        `torch.Tensor` of shape `(B,)`; `log 2` where the model is the reference model.
    """
    moved = mean - reference_mean

    def log_ratio(latents: torch.Tensor) -> torch.Tensor:  # ((x - mu_ref)^2 - (x - mu)^2) / 2 std^2
        difference = moved * (2 * latents - mean - reference_mean)
        ratio = difference.flatten(1).mean(1) / (2 * std.square())
        return ratio.clamp(math.log1p(-ratio_clip), math.log1p(ratio_clip))

    return -F.logsigmoid(beta * (log_ratio(better) - log_ratio(worse)))


class TransitionSamples(TrainingSamples):
    """
    The `k`-th pair of transitions, see [`TrainingSamples`]: the noisy latents, what became of them for better and for worse,
    the noise levels before and after, and the texts that guidance goes towards and away from.

    Args:
        transitions ([`~datasets.Dataset`]):
            Rows of [`build_transitions`].
        images (`dict[str, int]`):
            Row of an encoded image, by prompt.
        **kwargs:
            Of [`TrainingSamples`].
    """

    def __init__(self, *args, transitions: Dataset, images: dict[str, int], **kwargs):
        super().__init__(*args, **kwargs)
        columns = ["prompt", "x_t", "x_w", "x_l", "t", "t_prev", "guidance_scale"]
        self.transitions, self.images = transitions.select_columns(columns).with_format("numpy"), images

    @property
    def count(self) -> int:
        """What the stream is drawn from: so many pairs."""
        return len(self.transitions)

    def row(self, k: int) -> int:
        """Row of an image under the prompt of sample `k`: what has been encoded."""
        return self.images[str(self.transitions[self.place(k)]["prompt"])]

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        pair, image = self.transitions[self.place(k)], self.row(k)
        prompt = self.encoded["prompt_index"][image]
        conditioning = {}
        for name, values in self.encoded.items():
            kind, _, name = name.partition("/")
            if name:
                conditioning[name] = values[prompt if kind == "prompt" else image]
                conditioning[f"empty/{name}"] = values[-1 if kind == "prompt" else image]
        latents = {name: torch.from_numpy(pair[name].astype(np.float32)) for name in ("x_t", "x_w", "x_l")}
        return {
            "noisy_latents": latents["x_t"],
            "better": latents["x_w"],
            "worse": latents["x_l"],
            "timesteps": torch.tensor(int(pair["t"])),
            "next_timesteps": torch.tensor(int(pair["t_prev"])),
            "guidance_scale": torch.tensor(float(pair["guidance_scale"])),
            **conditioning,
        }


class SPOTrainer(ReferenceModel, DiffusionTrainer):
    """
    Trainer for SPO (https://huggingface.co/papers/2406.04314): of two ways in which denoising could go on from the same noisy
    latents, the model is to take the better more often than the reference model does, and the worse less often.

    The loss is that of the published code. The data are given: SPO itself draws them anew from the model as it is trained, and
    judges them by a model of preference that was trained for noisy images.

    Arguments are those of [`DiffusionTrainer`], but for the dataset: the rows of [`build_transitions`].
    """

    _tag_names = ["craft_trl", "spo"]
    _name = "SPO"
    _paper = {
        "title": "Aesthetic Post-Training Diffusion Models from Generic Preferences with Step-by-step Preference Optimization",
        "id": "2406.04314",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @misc{liang2024aesthetic,
                title         = {{Aesthetic Post-Training Diffusion Models from Generic Preferences with Step-by-step Preference Optimization}},
                author        = {Zhanhao Liang and Yuhui Yuan and Shuyang Gu and Bohan Chen and Tiankai Hang and Mingxi Cheng and Ji Li and Liang Zheng},
                year          = 2024,
                eprint        = {2406.04314},
                archivePrefix = {arXiv},
            }"""),
    }
    args: SPOConfig
    unit = "pairs of transitions"

    def __init__(
        self,
        model: str,
        args: SPOConfig,
        train_dataset: Dataset,
        revision: str | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ):
        check_diffusion(model, revision)
        shown = self.pictured(train_dataset)
        images = {prompt: row for row, prompt in enumerate(shown["prompt"])}
        self.samples_class = partial(TransitionSamples, transitions=train_dataset, images=images, every_row=True)
        super().__init__(model, args, shown, revision, peft_config, list(callbacks or ()), optimizers)
        self.calls = self.family.calls(float(train_dataset["guidance_scale"][0]))

    @staticmethod
    def pictured(transitions: Dataset) -> Dataset:
        """A row for each prompt of pairs of transitions, with the image that one of its walks ended in: what has to be encoded."""
        wanted = ("prompt", "image", "x_t", "x_w", "x_l", "t", "t_prev", "guidance_scale")
        for column in wanted:
            if column not in transitions.column_names:
                raise UsageError(
                    f"The dataset of transitions has no column {column!r}; it has {', '.join(transitions.column_names)}."
                )
        if not len(transitions):
            raise UsageError("The dataset has no rows.")
        if len(scales := set(transitions["guidance_scale"])) > 1:
            raise UsageError(
                f"All transitions must be drawn at one guidance_scale, got {min(scales):g} and {max(scales):g}."
            )
        table = transitions.with_format("arrow").select_columns(["prompt", "image"])[:]
        held = table["image"].is_valid().to_pylist()
        rows = {prompt: row for row, prompt in reversed(list(enumerate(table["prompt"].to_pylist()))) if held[row]}
        if missing := sorted({*table["prompt"].to_pylist()} - {*rows}):
            raise UsageError(f"No row of the prompt {missing[0]!r} has an image, of which the size is taken.")
        shown = transitions.select_columns(["prompt", "image"]).select(sorted(rows.values()))
        return shown.add_column("advantage", np.ones(len(shown), dtype=np.float32))

    def predict(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean of the next latents with guidance, shape `(B, C, h, w)`."""
        noisy_latents, timesteps = inputs["noisy_latents"], inputs["timesteps"]
        texts = {name.partition("/")[2] for name in inputs if name.startswith("empty/")}
        halves = ["empty/{}", "{}"][-self.calls :]  # without the prompt and with it
        batch = {name: torch.cat([inputs[half.format(name)] for half in halves]) for name in texts}
        batch["timesteps"] = timesteps.repeat(self.calls)
        said = self.denoise(model, noisy_latents.repeat(self.calls, 1, 1, 1), batch).float()
        scale = inputs["guidance_scale"].view(-1, 1, 1, 1)
        said = guided(said, self.calls, scale)
        return self.noise_process.transition(noisy_latents, said, timesteps, inputs["next_timesteps"])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> torch.Tensor:
        """The mean of [`spo_loss`] over the batch, this micro-batch's part of it, a scalar."""
        reference = self.predict_reference(inputs)  # before there are activations
        mean = self.predict(model, inputs)
        std = self.noise_process.transition_std(inputs["timesteps"], inputs["next_timesteps"])
        losses = spo_loss(
            mean, reference, inputs["better"], inputs["worse"], std, self.args.beta, self.args.ratio_clip
        )
        self.log_metric("implicit_accuracy", losses < math.log(2))
        self.log_metric("distance_to_base", ((mean - reference) / std.view(-1, 1, 1, 1)).square().flatten(1).mean(1))
        return self.batch_mean(losses)
