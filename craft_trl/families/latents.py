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


"""Between pixels, latents and tokens: what the families share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch


def statistics(config: Mapping[str, Any]) -> dict[str, Any]:
    """
    What latents are normalised with, from the configuration of a VAE in whichever of diffusers' conventions: its
    `scaling_factor` and `shift_factor`, and for each channel `latents_mean` and `latents_std` where it has them.
    """
    found = {"scaling_factor": config.get("scaling_factor") or 1.0, "shift_factor": config.get("shift_factor") or 0.0}
    return found | {name: list(config[name]) for name in ("latents_mean", "latents_std") if config.get(name)}


def _factors(statistics: Mapping[str, Any], like: "torch.Tensor") -> tuple[Any, Any]:
    """Mean and deviation of each channel, the third dimension from the end but for a video's."""
    shape = (-1, *(1,) * (like.ndim - 2)) if like.ndim > 3 else (-1, 1, 1)
    mean, std = (
        like.new_tensor(statistics[name]).view(shape) if name in statistics else default
        for name, default in (("latents_mean", 0.0), ("latents_std", 1.0))
    )
    return mean, std


def normalise(latents: "torch.Tensor", statistics: Mapping[str, Any]) -> "torch.Tensor":
    """
    Latents as the denoiser sees them.

    Args:
        latents (`torch.Tensor` of shape `(C, h, w)` or `(B, C, ...)`):
            What the VAE encodes.
        statistics (`Mapping[str, Any]`):
            See [`Family.latent_statistics`].
    """
    mean, std = _factors(statistics, latents)
    return (latents - statistics["shift_factor"] - mean) * statistics["scaling_factor"] / std


def denormalise(latents: "torch.Tensor", statistics: Mapping[str, Any]) -> "torch.Tensor":
    """The inverse of [`normalise`]: latents as the VAE decodes them."""
    mean, std = _factors(statistics, latents)
    return latents * std / statistics["scaling_factor"] + mean + statistics["shift_factor"]


def encode(vae: "torch.nn.Module", pixels: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Mean and deviation of the latents of images in [-1, 1], not normalised."""
    encoded = vae.encode(pixels)
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mean, encoded.latent_dist.std
    # An autoencoder that is no variational one, such as AutoencoderDC.
    return encoded.latent, encoded.latent.new_zeros(encoded.latent.shape)


def decode(vae: "torch.nn.Module", latents: "torch.Tensor", statistics: Mapping[str, Any]) -> "torch.Tensor":
    """Images in [-1, 1] of normalised latents."""
    return vae.decode(denormalise(latents, statistics), return_dict=False)[0]


def pack(latents: "torch.Tensor") -> "torch.Tensor":
    """Squares of 2 x 2 as tokens: `(B, C, h, w)` to `(B, h/2 w/2, 4 C)`, as FLUX and its kin read them."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: "torch.Tensor", height: int, width: int) -> "torch.Tensor":
    """The inverse of [`pack`] for latents of this height and width."""
    b, _, c = tokens.shape
    squares = tokens.view(b, height // 2, width // 2, c // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def positions(height: int, width: int, device: "torch.device") -> "torch.Tensor":
    """Row and column of each token of [`pack`], beside a zero, `(h/2 w/2, 3)` for latents of this height and width."""
    import torch

    return torch.cartesian_prod(
        *(torch.arange(count, device=device).float() for count in (1, height // 2, width // 2))
    )


def stack(rows: "list[torch.Tensor]") -> "torch.Tensor":
    """Texts of one length or several as one batch: shorter ones are filled up with zeros at their end."""
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(rows, batch_first=True)
