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
Noise processes: how images are noised, at which levels, and what a model is to say of a noised image.

Which one a model was trained on follows from the configuration of its scheduler, not from its family: [`noise_process`].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler

from .errors import UsageError


class DiffusionNoise:
    """
    Variance-preserving diffusion in discrete steps, `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps` (equation 4 of DDPM,
    https://huggingface.co/papers/2006.11239). The model predicts the noise `eps`, or the velocity
    `sqrt(abar_t) eps - sqrt(1 - abar_t) x_0` (https://huggingface.co/papers/2202.00512).

    Args:
        config (`Mapping[str, Any]`):
            Configuration of the model's scheduler.
    """

    clean = -1  # the timestep of an image without noise

    def __init__(self, config: Mapping[str, Any]):
        self.scheduler = DDPMScheduler.from_config(config)
        self.prediction_type = self.scheduler.config.prediction_type

    def draw(self, rng: np.random.Generator) -> torch.Tensor:
        """A timestep, int64, uniformly from all."""
        return torch.tensor(int(rng.integers(self.scheduler.config.num_train_timesteps)))

    def add(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`x_t` of latents and standard normal noise of shape `(B, C, h, w)` at timesteps of shape `(B,)`."""
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the model is to predict, shape `(B, C, h, w)`."""
        if self.prediction_type == "epsilon":
            return noise
        return self.scheduler.get_velocity(latents, noise, timesteps)

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio, shape `(B,)`."""
        share = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        return share / (1 - share)

    def levels(self, count: int) -> torch.Tensor:
        """So many timesteps at equal distances, from the lowest on, shape `(count,)`: 1, 101, ... 901 where there are ten."""
        return torch.arange(count) * (self.scheduler.config.num_train_timesteps // count) + 1

    def rates(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`alpha_t = sqrt(abar_t)` and `sigma_t = sqrt(1 - abar_t)`, each `(B,)`: 1 and 0 of the clean image, timestep -1."""
        share = torch.cat([self.scheduler.alphas_cumprod.double(), torch.ones(1).double()])  # its last stands at -1
        alpha, sigma = (rate.float().to(timesteps.device) for rate in (share.sqrt(), (1 - share).sqrt()))
        return alpha[timesteps], sigma[timesteps]

    def implied(
        self, noisy_latents: torch.Tensor, prediction: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The image and the noise that a prediction of noisy latents stands for, each of shape `(B, C, h, w)`."""
        if self.prediction_type == "epsilon":
            return separate(self, noisy_latents, prediction, timesteps), prediction
        alpha, sigma = (_like(rate, noisy_latents) for rate in self.rates(timesteps))
        return alpha * noisy_latents - sigma * prediction, alpha * prediction + sigma * noisy_latents

    def transition(
        self,
        noisy_latents: torch.Tensor,
        prediction: torch.Tensor,
        timesteps: torch.Tensor,
        next_timesteps: torch.Tensor,
    ) -> torch.Tensor:
        """
        Mean of the latents at less noise, shape `(B, C, h, w)`: the step of DDIM with `eta = 1` (equations 12 and 16 of
        https://huggingface.co/papers/2010.02502).
        """
        latents, noise = self.implied(noisy_latents, prediction, timesteps)
        (alpha, sigma), (next_alpha, next_sigma) = self.rates(timesteps), self.rates(next_timesteps)
        direction = next_sigma.square() * alpha / (sigma * next_alpha)  # sqrt(sigma_s^2 - std^2)
        return _like(next_alpha, latents) * latents + _like(direction, latents) * noise

    def transition_std(self, timesteps: torch.Tensor, next_timesteps: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the step of [`transition`], shape `(B,)`."""
        (_, sigma), (next_alpha, next_sigma) = self.rates(timesteps), self.rates(next_timesteps)
        # Of the sigmas: `1 - alpha_t^2 / alpha_s^2`, as the paper has it, loses digits in float32 where both are close to 1.
        return next_sigma / sigma * (sigma.square() - next_sigma.square()).sqrt() / next_alpha

    def error_scale(self, timesteps: torch.Tensor) -> torch.Tensor:
        """How many times the squared error of the prediction is that of the image it implies, shape `(B,)`."""
        snr = self.snr(timesteps)
        return snr if self.prediction_type == "epsilon" else snr + 1


class FlowNoise:
    """
    Rectified flow, `x_t = (1 - sigma) x_0 + sigma eps` (https://huggingface.co/papers/2209.03003). The model predicts the
    velocity `eps - x_0`. Timesteps are `1000 sigma`, float32: 16 bits would round them.

    Args:
        config (`Mapping[str, Any]`):
            Configuration of the model's scheduler.
        shift (`float`, *optional*, defaults to `1.0`):
            `s` of `sigma = s u / (1 + (s - 1) u)`: above 1, more of the levels are high (equation 23 of
            https://huggingface.co/papers/2403.03206).
        sampling (`"uniform"` or `"logit_normal"`, *optional*, defaults to `"uniform"`):
            Distribution of `u`: uniform, or the logistic function of a standard normal number.
    """

    prediction_type = "flow_prediction"
    clean = 0  # the timestep of an image without noise

    def __init__(self, config: Mapping[str, Any], shift: float = 1.0, sampling: str = "uniform"):
        self.num_train_timesteps = config.get("num_train_timesteps", 1000)
        self.shift, self.sampling = shift, sampling

    def draw(self, rng: np.random.Generator) -> torch.Tensor:
        """A timestep, float32."""
        u = rng.random() if self.sampling == "uniform" else 1 / (1 + np.exp(-rng.standard_normal()))
        return torch.tensor(
            self.num_train_timesteps * self.shift * u / (1 + (self.shift - 1) * u), dtype=torch.float32
        )

    def levels(self, count: int) -> torch.Tensor:
        """So many timesteps, from the lowest on to pure noise, shape `(count,)`: at equal distances but for the shift."""
        u = torch.arange(1, count + 1, dtype=torch.float32) / count
        return self.num_train_timesteps * self.shift * u / (1 + (self.shift - 1) * u)

    def sigma(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise levels in [0, 1], shape `(B,)`."""
        return timesteps / self.num_train_timesteps

    def rates(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`1 - sigma` and `sigma`, each of shape `(B,)`: 1 and 0 of the clean image, timestep 0."""
        sigma = self.sigma(timesteps)
        return 1 - sigma, sigma

    def add(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`x_t` of latents and standard normal noise of shape `(B, C, h, w)` at timesteps of shape `(B,)`."""
        sigma = _like(self.sigma(timesteps), latents)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the model is to predict, shape `(B, C, h, w)`."""
        return noise - latents

    def implied(
        self, noisy_latents: torch.Tensor, prediction: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The image and the noise that a prediction of noisy latents stands for, each of shape `(B, C, h, w)`."""
        sigma = _like(self.sigma(timesteps), noisy_latents)
        return noisy_latents - sigma * prediction, noisy_latents + (1 - sigma) * prediction

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio, shape `(B,)`."""
        sigma = self.sigma(timesteps)
        return ((1 - sigma) / sigma).square()

    def error_scale(self, timesteps: torch.Tensor) -> torch.Tensor:
        """How many times the squared error of the prediction is that of the image it implies, shape `(B,)`."""
        return self.sigma(timesteps).square().reciprocal()


NoiseProcess = DiffusionNoise | FlowNoise


def separate(
    process: NoiseProcess, noisy_latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The image that noisy latents are of, shape `(B, C, h, w)`, if this is their noise: `(x_t - sigma_t eps) / alpha_t`."""
    alpha, sigma = (_like(rate, noisy_latents) for rate in process.rates(timesteps))
    return (noisy_latents - sigma * noise) / alpha


def noise_of(
    process: NoiseProcess, noisy_latents: torch.Tensor, latents: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The noise in noisy latents of an image, shape `(B, C, h, w)`: `(x_t - alpha_t x_0) / sigma_t`."""
    alpha, sigma = (_like(rate, noisy_latents) for rate in process.rates(timesteps))
    return (noisy_latents - alpha * latents) / sigma


def _like(rates: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """A number for each sample, `(B,)`, in the precision of latents and so that it is multiplied with them."""
    return rates.to(latents.dtype).view(-1, *(1,) * (latents.ndim - 1))


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is of rectified flow."""
    return config.get("_class_name", "").startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"


def noise_process(
    config: Mapping[str, Any],
    log_shift: float = 0.0,
    timestep_sampling: str | None = None,
    timestep_shift: float | None = None,
) -> NoiseProcess:
    """
    The process that a pipeline's scheduler solves.

    Args:
        config (`Mapping[str, Any]`):
            Configuration of the scheduler with its `_class_name`.
        log_shift (`float`, *optional*, defaults to `0.0`):
            `mu` of the images that are trained on, for a scheduler whose shift depends on their size.
        timestep_sampling (`str`, *optional*):
            See [`FlowNoise`]. Defaults to `"uniform"`.
        timestep_shift (`float`, *optional*):
            See [`FlowNoise`]. Defaults to the model's own.

    Raises:
        [`UsageError`]: the model is of diffusion, which has neither sampling nor shift of timesteps, or of neither process.
    """
    if is_flow(config):
        shift = model_shift(config, log_shift) if timestep_shift is None else timestep_shift
        return FlowNoise(config, shift, timestep_sampling or "uniform")
    for name, value in (("timestep_sampling", timestep_sampling), ("timestep_shift", timestep_shift)):
        if value is not None:
            raise UsageError(f"{name} {value}: it is for models of flow matching, and this one is of diffusion.")
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        raise UsageError(
            f"A model that predicts {prediction_type!r} is not supported. Supported are epsilon, v_prediction and "
            "flow_prediction."
        )
    return DiffusionNoise(config)


def model_shift(config: Mapping[str, Any], log_shift: float) -> float:
    """
    The shift that a scheduler draws with. What Qwen-Image's does after it, to stretch the levels to end at `shift_terminal`, is
    a matter of the steps of drawing.
    """
    if config.get("use_dynamic_shifting"):
        return float(np.exp(log_shift)) if config.get("time_shift_type", "exponential") == "exponential" else log_shift
    return config.get("shift") or config.get("flow_shift") or 1.0
