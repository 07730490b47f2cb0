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

"""
Distils the tiny SDXL's UNet into the flow model's transformer.

A rectified flow mixes a picture with noise, `x = (1 - sigma) picture + sigma noise`, and predicts the velocity `noise -
picture`. SDXL's noisy picture of the same ratio of noise to signal is x divided by `sqrt((1 - sigma)^2 + sigma^2)`, so
that the UNet's prediction of the noise gives a velocity for x too. It is what the transformer learns; it is less noisy
than the velocity of the one picture and its noise, which it learns only where sigma is higher than the UNet knows.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTokenizer

from .checkpoints import Checkpoint
from .drawing import SIZE
from .flow_networks import encode_flow_prompt, flow_text_encoders
from .networks import noise_scheduler, to_unit_range
from .progress import progress_bar
from .settings import FlowSettings
from .training import Averaging, Recipe, autocast, fit, load_rows, random_rows


RECIPE = Recipe(
    learning_rate=1e-3,  # the settings have their own
    weight_decay=1e-3,
    beta2=0.99,
    warmup_steps=200,
    averaging=Averaging(lag=19, max_decay=0.999),
)
EMPTY_PROMPTS = 0.1
UNIFORM_SIGMAS = 0.2  # the others are logit-normal, as SD3's
MIN_SIGMA = 1e-3
NUM_TRAIN_TIMESTEPS = 1000  # of the transformer, which reads 1000 sigma
ENCODING_BATCH = 128
MEASURING_BATCH, MEASURING_SEED = 128, 7


@dataclass
class Batch:
    """Noisy pictures, and what is to be predicted of them."""

    noisy: torch.Tensor  # (B, 4, 16, 16)
    sigmas: torch.Tensor  # (B,), 0 to 1
    text: torch.Tensor  # (B, 32, width_1 + width_2)
    pooled_text: torch.Tensor  # (B, projection_1 + projection_2)
    velocity: torch.Tensor  # (B, 4, 16, 16), of this picture and this noise
    taught: torch.Tensor  # (B, 4, 16, 16), the UNet's
    has_teacher: torch.Tensor  # (B,), where sigma is one that the UNet knows

    @property
    def target(self) -> torch.Tensor:
        """The velocity to learn."""
        return torch.where(_beside_latents(self.has_teacher), self.taught, self.velocity)


class Teacher:
    """
    The UNet of a tiny SDXL as a rectified flow.

    Args:
        pipeline (`Path`):
            Folder of the tiny SDXL.
        device (`torch.device`):
            Where to compute.
    """

    def __init__(self, pipeline: Path, device: torch.device):
        self.unet = UNet2DConditionModel.from_pretrained(pipeline / "unet").to(device).requires_grad_(False)
        signal_share = noise_scheduler().alphas_cumprod.to(device)
        # The logarithm of noise / signal at every timestep, rising: (1000,). Of a flow it is logit(sigma).
        self.log_ratios = ((1 - signal_share) / signal_share).log() / 2
        self.max_sigma = self.log_ratios[-1].sigmoid()
        # Size, crop and size again, as the pipeline has them for an image that is not cropped.
        self.time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32, device=device)

    def timesteps(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The timesteps of SDXL's schedule with the ratios of noise to signal of a flow at `sigmas`, with fractions."""
        wanted = sigmas.logit()
        above = torch.searchsorted(self.log_ratios, wanted).clamp(1, len(self.log_ratios) - 1)
        low, high = self.log_ratios[above - 1], self.log_ratios[above]
        return (above - 1 + (wanted - low) / (high - low)).clamp(0, len(self.log_ratios) - 1)

    def velocity(
        self, noisy: torch.Tensor, sigmas: torch.Tensor, text: torch.Tensor, pooled_text: torch.Tensor
    ) -> torch.Tensor:
        """The velocity at noisy latents of shape `(B, 4, 16, 16)`, where `sigmas` are not above `max_sigma`."""
        sigmas = sigmas.clamp(max=self.max_sigma)
        noise_scale = _beside_latents(sigmas)
        signal_scale = 1 - noise_scale
        noise = self.unet(
            noisy / (signal_scale.square() + noise_scale.square()).sqrt(),
            self.timesteps(sigmas),
            text,
            added_cond_kwargs={"text_embeds": pooled_text, "time_ids": self.time_ids.expand(len(noisy), -1)},
        ).sample
        return (noise.float() - noisy) / signal_scale


class Distillation:
    """
    Batches of rendered scenes with the teacher's velocities.

    Args:
        teacher (`Path`):
            Folder of the tiny SDXL.
        scenes (`Path`), latents (`Path`):
            The rendered scenes, and the folder of [`encode_latents`].
        device (`torch.device`):
            Where to compute.
    """

    def __init__(self, teacher: Path, scenes: Path, latents: Path, device: torch.device):
        self.teacher, self.device = Teacher(teacher, device), device
        self.encoders = tuple(encoder.to(device).requires_grad_(False) for encoder in flow_text_encoders(teacher))
        self.latents = load_rows(latents, "latents", slice(None), device)  # (N, 4, 16, 16)
        self.tokens = load_rows(scenes, "tokens", slice(None), device)[:, :2]  # (N, 2, 32): two captions
        empty = CLIPTokenizer.from_pretrained(teacher / "tokenizer")("", padding="max_length", return_tensors="pt")
        self.empty_tokens = empty.input_ids.to(device)  # (1, 32)

    @torch.no_grad()
    def batch(self, rows: torch.Tensor, empty_prompts: float) -> Batch:
        """
        Draw noise, sigmas and captions.

        Args:
            rows (`torch.Tensor` of shape `(B,)`):
                Numbers of the scenes.
            empty_prompts (`float`):
                Share of the scenes that are shown with an empty prompt instead.

        Returns:
            [`Batch`]: the batch.
        """
        count, device = len(rows), self.device
        latents = self.latents[rows].float()
        noise = torch.randn_like(latents)
        uniform = torch.rand(count, device=device) < UNIFORM_SIGMAS
        sigmas = torch.randn(count, device=device).sigmoid()
        sigmas = torch.where(uniform, torch.rand(count, device=device), sigmas).clamp(min=MIN_SIGMA)
        noise_scale = _beside_latents(sigmas)
        noisy = (1 - noise_scale) * latents + noise_scale * noise

        is_empty = torch.rand(count, device=device) < empty_prompts
        tokens = self.tokens[rows, random_rows(2, count, device)].long()
        tokens = torch.where(is_empty[:, None], self.empty_tokens, tokens)
        text, pooled_text = encode_flow_prompt(self.encoders, tokens)
        # SDXL has zeros for an empty prompt, and the pooled text of its second encoder only.
        kept = (~is_empty).float()
        second_pooled = pooled_text[:, -self.encoders[1].config.projection_dim :]
        taught = self.teacher.velocity(noisy, sigmas, text * kept[:, None, None], second_pooled * kept[:, None])
        has_teacher = sigmas <= self.teacher.max_sigma
        return Batch(noisy, sigmas, text, pooled_text, noise - latents, taught, has_teacher)


def train_flow(
    folder: Path,
    checkpoint: Checkpoint,
    teacher: Path,
    init: Path | None,
    scenes: Path,
    latents: Path,
    settings: FlowSettings,
    device: torch.device,
) -> dict:
    """
    Train the transformer and write it to `folder`.

    Args:
        folder (`Path`):
            Where to write.
        checkpoint ([`Checkpoint`]):
            Where to keep the state of the training, and to go on from if there is one.
        teacher (`Path`):
            Folder of the tiny SDXL.
        init (`Path`, *optional*):
            Folder of a pipeline whose transformer to start from, instead of random weights.
        scenes (`Path`), latents (`Path`):
            The rendered scenes, and the folder of [`encode_latents`].
        settings ([`FlowSettings`]):
            Sizes and counts.
        device (`torch.device`):
            Where to train.

    Returns:
        `dict`: the log of [`fit`] with the numbers of [`measure`].
    """
    network = SD3Transformer2DModel(**settings.transformer_config(teacher)).to(device)
    if init:
        network.load_state_dict(SD3Transformer2DModel.from_pretrained(init / "transformer").state_dict())
    distillation = Distillation(teacher, scenes, latents, device)
    training_scenes = len(distillation.latents) - settings.scenes_held_out

    def loss_function(progress: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rows = random_rows(training_scenes, settings.run.batch_size, device)
        with autocast(device, everywhere=settings.bfloat16):
            batch = distillation.batch(rows, EMPTY_PROMPTS)
            return (predict(network, batch) - batch.target).square().mean(), {}

    recipe = dataclasses.replace(RECIPE, learning_rate=settings.learning_rate)
    log = fit("transformer", network.parameters(), loss_function, settings.run, recipe, device, checkpoint)
    network = network.half().float()  # measure what is shipped
    log |= measure(network, distillation, settings.scenes_held_out)
    network.half().save_pretrained(folder)
    return log


def predict(network: SD3Transformer2DModel, batch: Batch) -> torch.Tensor:
    """The transformer's velocity for a batch, `(B, 4, 16, 16)`."""
    timesteps = NUM_TRAIN_TIMESTEPS * batch.sigmas
    return network(batch.noisy, batch.text, batch.pooled_text, timesteps, return_dict=False)[0].float()


@torch.no_grad()
def measure(network: SD3Transformer2DModel, distillation: Distillation, held_out: int) -> dict[str, float]:
    """
    Mean squared errors of the velocity on the held-out scenes, the last ones, where there is a teacher.

    Returns:
        `dict[str, float]`: `error_to_teacher`, and for comparison `error_to_scenes`, to the velocity of the scene and
        its noise, and `error_of_teacher`, the teacher's to that.
    """
    torch.manual_seed(MEASURING_SEED)
    count, errors = len(distillation.latents), []
    with autocast(distillation.device):
        for rows in torch.arange(count - held_out, count, device=distillation.device).split(MEASURING_BATCH):
            batch = distillation.batch(rows, empty_prompts=0)
            prediction, known = predict(network, batch), batch.has_teacher
            pairs = ((prediction, batch.taught), (prediction, batch.velocity), (batch.taught, batch.velocity))
            errors.append(torch.stack([(one - other).square().mean((1, 2, 3))[known] for one, other in pairs]))
    names = ("error_to_teacher", "error_to_scenes", "error_of_teacher")
    return {name: round(error, 4) for name, error in zip(names, torch.cat(errors, 1).mean(1).tolist(), strict=True)}


@torch.no_grad()
def encode_latents(folder: Path, scenes: Path, teacher: Path, settings: FlowSettings, device: torch.device) -> None:
    """Encode the scenes with the autoencoder of a tiny SDXL: `latents.npy` of shape `(N, 4, 16, 16)`, float16."""
    vae = AutoencoderKL.from_pretrained(teacher / "vae").to(device)
    count, latents = settings.scenes, []
    precision = autocast(device, everywhere=settings.bfloat16)
    with progress_bar("encoding scenes", count, "scene") as progress, precision:
        for start in range(0, count, ENCODING_BATCH):
            pixels = to_unit_range(load_rows(scenes, "images", slice(start, start + ENCODING_BATCH), device))
            encoded = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
            latents.append(encoded.half().cpu())
            progress.update(len(encoded))
    folder.mkdir(parents=True)
    np.save(folder / "latents.npy", torch.cat(latents).numpy())


def _beside_latents(values: torch.Tensor) -> torch.Tensor:
    """Shape `(B,)` as `(B, 1, 1, 1)`."""
    return values[:, None, None, None]
