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
Losses of methods that learn from single images with a score, relative to a frozen reference model.

Each takes tensors of `B` images and returns the loss of each, shape `(B,)`. Where model and reference are one, the gradient of
each is that of an image's denoising error, weighted by its score.
"""

import torch
import torch.nn.functional as F


def nft_loss(
    errors: torch.Tensor,
    reference_errors: torch.Tensor,
    advantages: torch.Tensor,
    beta: float = 1.0,
    advantage_clip: float = 5.0,
) -> torch.Tensor:
    """
    The policy loss of DiffusionNFT (https://huggingface.co/papers/2509.16117): `c / beta * (q L+ + (1 - q) L-)` with
    `q = A / 2c + 1/2`. `L+` is the error of the image where the prediction is led from the reference's towards the model's by
    `beta`, `L-` where it is led away from it by as much; each is divided by its mean absolute error, without gradient.

    At the reference the value is `c / beta * L` and the gradient `A` times that of `L`, for any `beta`; the smaller that is, the
    further the model goes. An advantage of 0 ties the model to the reference.

    Args:
        errors, reference_errors (`torch.Tensor` of shape `(B, ...)`):
            The image that a prediction implies minus the image, by the model and by the reference model.
        advantages (`torch.Tensor` of shape `(B,)`):
            `A`.
        beta (`float`, *optional*, defaults to `1.0`):
            How far the two branches reach.
        advantage_clip (`float`, *optional*, defaults to `5.0`):
            `c`: advantages count from `-c` to `c`.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    change = beta * (errors - reference_errors)
    better, worse = (_self_normalised(reference_errors + part) for part in (change, -change))
    chance = (advantages / (2 * advantage_clip) + 0.5).clamp(0.0, 1.0)
    return advantage_clip / beta * (chance * better + (1 - chance) * worse)


def _self_normalised(errors: torch.Tensor) -> torch.Tensor:
    errors = errors.flatten(1)
    return errors.square().mean(1) / errors.detach().abs().mean(1).clamp(min=1e-5)


def awm_loss(
    errors: torch.Tensor,
    reference_errors: torch.Tensor,
    distances: torch.Tensor,
    noise_levels: torch.Tensor,
    advantages: torch.Tensor,
    clip_range: float = 1.0,
    kl_beta: float = 1e-3,
    advantage_clip: float = 5.0,
) -> torch.Tensor:
    """
    The loss of Advantage Weighted Matching (https://huggingface.co/papers/2509.25050), with the reference model as the old one:
    `max(-A rho, -A clip(rho, 1 - eps, 1 + eps)) + kl_beta * distance`, where `rho = exp(f - f_old)` and
    `f = -4 t error^(1/4)`, the published code's `ghuber`.

    Args:
        errors, reference_errors, distances (`torch.Tensor` of shape `(B,)`):
            Mean squared errors of the velocity `eps - x_0` that the predictions imply, by the model and by the reference model,
            and the mean squared distance of the two.
        noise_levels (`torch.Tensor` of shape `(B,)`):
            `t` from 0 to 1.
        advantages (`torch.Tensor` of shape `(B,)`):
            Advantage of each image. `A` is it, clipped, over `advantage_clip`.
        clip_range (`float`, *optional*, defaults to `1.0`):
            `eps`.
        kl_beta (`float`, *optional*, defaults to `1e-3`):
            Strength of the tie to the reference model.
        advantage_clip (`float`, *optional*, defaults to `5.0`):
            Advantages count from minus it to it.

    Returns:
        `torch.Tensor` of shape `(B,)`; `-A` where the model is the reference model.
    """

    def log_likelihood(errors: torch.Tensor) -> torch.Tensor:
        return -4 * noise_levels * ((errors + 1e-10) ** 0.25 - 1e-10**0.25)

    ratio = (log_likelihood(errors) - log_likelihood(reference_errors)).exp()
    advantages = advantages.clamp(-advantage_clip, advantage_clip) / advantage_clip
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped) + kl_beta * distances


def tgo_loss(implicit_rewards: torch.Tensor, scores: torch.Tensor, confidence_weight: float = 5.0) -> torch.Tensor:
    """
    The loss of threshold-guided optimization (https://huggingface.co/papers/2605.04653): logistic regression of whether an image
    is above the threshold on its implicit reward, `-w log sigmoid(u)` above and `-w log sigmoid(-u)` below, with
    `w = 1 + confidence_weight * |score|`.

    Args:
        implicit_rewards (`torch.Tensor` of shape `(B,)`):
            `u = beta / 2 * (reference_error - error)` of the denoising errors; the paper's constants are a `beta` of 2,000.
        scores (`torch.Tensor` of shape `(B,)`):
            Score minus threshold.
        confidence_weight (`float`, *optional*, defaults to `5.0`):
            The larger, the more images far from the threshold count.

    Returns:
        `torch.Tensor` of shape `(B,)`; `w log 2` where the model is the reference model.
    """
    signed = torch.where(scores >= 0, -implicit_rewards, implicit_rewards)
    return (1 + confidence_weight * scores.abs()) * F.softplus(signed)
