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
The advantage-weighted denoising loss: the second half of CRAFT (https://huggingface.co/papers/2603.18991).

`L = E_{i,j,t,eps} [ I_ij * A_ij * || eps_theta(x_t^(ij), t, c_i) - eps ||^2 ]`: the filter `I` is the choice of the
dataset's rows, the advantage `A` its column, and the expectation a mean over the batch. What stands for `eps`, and how `x_t` is
made, is the affair of the model's [`noise_process`]: on rectified flow the loss is `A * || v_theta(x_t, t, c) - (eps - x_0) ||^2`.
"""

from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from .noise import NoiseProcess


def per_sample_mse(model_pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample in float32: two tensors of shape `(B, ...)` to one of shape `(B,)`."""
    return (model_pred.float() - target.float()).square().flatten(1).mean(1)


def min_snr_weights(noise_process: "NoiseProcess", timesteps: torch.Tensor, snr_gamma: float) -> torch.Tensor:
    """
    Min-SNR weight of each sample (https://huggingface.co/papers/2303.09556): `min(SNR(t), gamma)` on the error of the image,
    which is over `SNR(t)` on that of the noise, over `SNR(t) + 1` on that of diffusion's velocity, and times `sigma^2` on
    that of a flow's. Timesteps of shape `(B,)` to weights of shape `(B,)`.
    """
    return noise_process.snr(timesteps).clamp(max=snr_gamma) / noise_process.error_scale(timesteps)


def advantage_weighted_loss(
    losses: torch.Tensor, advantages: torch.Tensor, negative_advantages: str = "zero"
) -> torch.Tensor:
    """
    `A * loss` of each sample; the objective is its mean over the batch.

    Args:
        losses (`torch.Tensor` of shape `(B,)`):
            Denoising loss of each sample.
        advantages (`torch.Tensor` of shape `(B,)`):
            Advantage of each sample. 1 everywhere is plain supervised fine-tuning.
        negative_advantages (`"zero"`, `"keep"` or `"proximal"`, *optional*, defaults to `"zero"`):
            `"zero"` clips at 0: only for `A >= 0` is the loss a bound of the policy objective, while a negative weight
            on a squared error has no minimum. `"keep"` pushes the model away from images below their group's mean, and so
            does `"proximal"`, which needs [`proximal_term`] beside it to have one.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return advantage_weights(advantages, negative_advantages) * losses


def advantage_weights(advantages: torch.Tensor, negative_advantages: str = "zero") -> torch.Tensor:
    """Weight of each sample, shape `(B,)`, see [`advantage_weighted_loss`]."""
    if negative_advantages == "zero":
        return advantages.clamp(min=0)
    if negative_advantages in ("keep", "proximal"):
        return advantages
    raise ValueError(f"negative_advantages must be 'zero', 'keep' or 'proximal', got {negative_advantages!r}.")


def proximal_term(distances: torch.Tensor, advantages: torch.Tensor, tau: float) -> torch.Tensor:
    """
    `(tau - A) || f_theta - f_old ||^2` of each sample. With `e = f_old - target` and `d = f_theta - f_old` it makes of the
    loss `A || e ||^2 + 2 A <e, d> + tau || d ||^2`: the same slope where training begins, and a curvature that is `tau` for
    advantages of either sign, so that there is a minimum. Ours, and not the paper's: see docs/source/theory.md.

    Args:
        distances (`torch.Tensor` of shape `(B,)`):
            Mean squared distance of each prediction to that of the model that training began with.
        advantages (`torch.Tensor` of shape `(B,)`):
            Advantage of each sample.
        tau (`float`):
            The curvature.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return (tau - advantages) * distances
