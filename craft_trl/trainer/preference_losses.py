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
Losses of methods that learn from ranked or scored lists of images, relative to a frozen reference model.

`B` lists of `m` images, all of one list at one noise and timestep. `errors` and `reference_errors` are the denoising errors of
model and reference, means over the elements of an image, and `implicit_rewards` is `u = beta / 2 * (reference_errors - errors)`,
`beta` as in [`diffusion_dpo_loss`]. `mask` says which images there are. Each function returns the loss of each list, shape `(B,)`.
Where model and reference are one, the gradient of each is a sum of those of the errors, weighted by image.
"""

import torch
import torch.nn.functional as F


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


def plackett_luce_loss(implicit_rewards: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    `sum_j [log sum_(k no better than j) exp u_k - u_j]`, Diffusion-LPO (https://huggingface.co/papers/2510.01540): how unlikely
    the ranking is under Plackett and Luce's model. Of two images it is Diffusion-DPO. Images of equal score are each other's
    rivals, so that nothing depends on their order.

    Args:
        implicit_rewards, scores (`torch.Tensor` of shape `(B, m)`):
            `u`, and what ranks the images.
        mask (`torch.Tensor` of shape `(B, m)`):
            Which images there are.

    Returns:
        `torch.Tensor` of shape `(B,)`; `log m!` where the model is the reference model and no scores are equal.
    """
    rivals = (scores[:, None] <= scores[:, :, None]) & mask[:, None]  # (B, j, k)
    rivals = rivals | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)  # a row of none has no gradient
    tails = implicit_rewards[:, None].masked_fill(~rivals, -torch.inf).logsumexp(2)  # (B, m)
    return (tails - implicit_rewards).masked_fill(~mask, 0.0).sum(1)


def group_loss(implicit_rewards: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    `-log sigmoid(2 / m * sum_k A_k u_k)`, the loss of DGPO (https://huggingface.co/papers/2510.08425): a group's better half
    against its worse half, each image by its advantage. Of two images with advantages 1 and -1 it is Diffusion-DPO.

    Args:
        implicit_rewards, advantages (`torch.Tensor` of shape `(B, m)`):
            `u` and `A`.
        mask (`torch.Tensor` of shape `(B, m)`):
            Which images there are.

    Returns:
        `torch.Tensor` of shape `(B,)`; `log 2` where the model is the reference model.
    """
    return F.softplus(-2 / mask.sum(1) * (advantages * implicit_rewards).masked_fill(~mask, 0.0).sum(1))


def regression_loss(
    implicit_rewards: torch.Tensor,
    scores: torch.Tensor,
    mask: torch.Tensor,
    temperature: float = 1.0,
    penalty: float = 1.0,
) -> torch.Tensor:
    """
    `-sum_k w_k u_k + penalty / m * sum_k u_k^2` with `w = softmax(scores / temperature) - 1 / m`, the loss of LAIR
    (https://huggingface.co/papers/2605.26491). It is least at `u_k = m w_k / (2 penalty)`: no image is pushed without end.

    Args:
        implicit_rewards, scores (`torch.Tensor` of shape `(B, m)`):
            `u`, and scores on any scale.
        mask (`torch.Tensor` of shape `(B, m)`):
            Which images there are.
        temperature (`float`, *optional*, defaults to `1.0`):
            The lower, the more the best image counts.
        penalty (`float`, *optional*, defaults to `1.0`):
            The larger, the closer the model stays to the reference.

    Returns:
        `torch.Tensor` of shape `(B,)`; 0 where the model is the reference model.
    """
    counts = mask.sum(1)
    weights = (scores / temperature).masked_fill(~mask, -torch.inf).softmax(1) - 1 / counts[:, None]
    gain = (weights * implicit_rewards).masked_fill(~mask, 0.0).sum(1)
    return penalty / counts * implicit_rewards.masked_fill(~mask, 0.0).square().sum(1) - gain


def safeguard(chosen: torch.Tensor, rejected: torch.Tensor, mu: float) -> torch.Tensor:
    """
    How much of the rejected image's gradient Diffusion-SDPO (https://huggingface.co/papers/2511.03317) lets through, so that
    to first order, in what is predicted, the chosen image's error does not grow:
    `(1 - mu) ||d_w||^2 / <d_w, d_l>`, at least 0 and at most 1, and 1 where the two do not point the same way.

    Args:
        chosen, rejected (`torch.Tensor` of shape `(B, ...)`):
            Prediction minus target of each pair's images, `d_w` and `d_l`.
        mu (`float`):
            From 0 to 1; of the gain on the chosen image at least so much is kept.

    Returns:
        `torch.Tensor` of shape `(B,)`, without gradient. The published code has one number for the whole micro-batch; here it
        is each pair's own, so that nothing depends on the size of the batch.
    """
    chosen, rejected = chosen.detach().flatten(1), rejected.detach().flatten(1)
    product = (chosen * rejected).sum(1)
    share = (1 - mu) * chosen.square().sum(1) / (product + 1e-9)
    return torch.where(product > 0, share, 1.0).clamp(0.0, 1.0)
