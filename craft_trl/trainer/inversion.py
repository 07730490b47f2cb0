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

"""Inversion: the noise from which a model would draw an image, instead of noise that has nothing to do with it."""

from collections.abc import Callable

import numpy as np
import torch

from ..noise import NoiseProcess, noise_of, separate


# Noisy latents, timesteps and numbers of the samples that they are of to what the model says of them.
Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Inversion:
    """
    Deterministic noising, DDIM's sampling run backwards, as InPO (https://huggingface.co/papers/2503.18454) and SmPO
    (https://huggingface.co/papers/2506.02698) have it.

    An image goes up a grid of noise levels to a timestep that is drawn from the grid, and the noise that is then in it takes the
    place of random noise, in the noised latents and in the target. The published code draws any timestep, stops at a level of
    the grid beside it, and takes the one for the other.

    Args:
        noise_process ([`NoiseProcess`]):
            Of the model.
        steps (`int`):
            Levels of the grid.
        renoise (`bool`, *optional*, defaults to `False`):
            Ask the model again at the end of each step, and repeat the step with the mean of both answers: one iteration of
            ReNoise (https://huggingface.co/papers/2403.14602), which SmPO has and InPO has not.
    """

    def __init__(self, noise_process: NoiseProcess, steps: int, renoise: bool = False):
        self.noise_process, self.renoise = noise_process, renoise
        self.levels = noise_process.levels(steps)

    def draw(self, rng: np.random.Generator) -> torch.Tensor:
        """A timestep, uniformly from the grid."""
        return self.levels[int(rng.integers(len(self.levels)))]

    @torch.no_grad()
    def noise(self, predict: Predict, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """
        The noise that an image has in it once it is inverted, shape `(B, C, h, w)`.

        Args:
            predict (`Callable`):
                Noisy latents of shape `(b, C, h, w)`, timesteps of shape `(b,)` and the numbers of the samples, from 0 to B - 1, of
                shape `(b,)`, to the model's prediction, without guidance.
            latents (`torch.Tensor` of shape `(B, C, h, w)`):
                Images.
            timesteps (`torch.Tensor` of shape `(B,)`):
                Where each ends: levels of the grid.
        """
        process, noisy = self.noise_process, latents.clone()
        below, ends = process.clean, timesteps.tolist()  # once, as the device is waited for
        for level in self.levels.tolist():
            left = [row for row, end in enumerate(ends) if end >= level]  # the others are where they are to be
            if not left:
                break
            rows = torch.tensor(left, device=noisy.device)
            start, here, there = noisy[rows], *(timesteps.new_full((len(rows),), value) for value in (below, level))
            # The model is asked at the level that the step goes to: of a clean image it knows nothing.
            _, noise = process.implied(start, predict(start, there, rows).float(), here)
            end = process.add(separate(process, start, noise, here), noise, there)
            if self.renoise:
                _, again = process.implied(end, predict(end, there, rows).float(), there)
                noise = (noise + again) / 2
                end = process.add(separate(process, start, noise, here), noise, there)
            noisy[rows], below = end, level
        return noise_of(process, noisy, latents, timesteps)
