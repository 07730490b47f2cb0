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

"""What the built-in reward models share: from images to pixels, and through a network in batches that fit."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ..arithmetic import exact_float32
from ..errors import UsageError, out_of_memory
from .preprocessing import Preprocess, prepare


class RewardModel:
    """
    A callable `(images, prompts) -> scores` around a network.

    A subclass sets `preprocess`, `device` and `dtype`, and defines `forward(pixel_values, prompts)`.

    Attributes:
        preprocess (`Callable[[PIL.Image.Image], torch.Tensor]`):
            From an image to pixels of shape `(3, size, size)`, where `size` is an attribute of it. Reward models with
            equal ones share the work, see [`score`].
        batch_size (`int`):
            Images that go through the network at once, at most. Halved whenever the device's memory runs out.
        num_prompts (`int`):
            How many prompts to remember what the text tower made of; the oldest go first.
    """

    preprocess: Preprocess
    batch_size = 64
    num_prompts = 65536

    def __init__(self, device: str | torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.prompts: dict[str, Any] = {}

    @property
    def networks(self) -> list[nn.Module]:
        """What holds its weights."""
        return [value for value in vars(self).values() if isinstance(value, nn.Module)]

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        """Scores of shape `(N,)`, float32 on the CPU, of each image under the prompt at the same place."""
        check_lengths(images, prompts)
        scores = [
            self.score_pixels(pixel_values[self.preprocess], prompts[part])
            for part, pixel_values in prepare(images, [self.preprocess], self.batch_size)
        ]
        return torch.cat(scores).cpu() if scores else torch.zeros(0)

    @torch.no_grad()
    def score_pixels(self, pixel_values: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores of shape `(N,)`, float32 on the device, for preprocessed pixels of shape `(N, 3, S, S)`."""
        return self.in_batches(self.forward, pixel_values, prompts).float()

    @exact_float32()
    def in_batches(self, network: Callable, pixel_values: torch.Tensor, *columns: Sequence) -> torch.Tensor:
        """`network(pixel_values, *columns)`, piece by piece, with smaller pieces whenever the memory runs out."""
        outputs, start = [], 0
        while start < len(pixel_values):
            part = slice(start, start + self.batch_size)
            try:
                pixels = pixel_values[part].to(self.device, non_blocking=True).to(self.dtype)
                outputs.append(network(pixels, *(column[part] for column in columns)))
                start = part.stop
                continue
            except RuntimeError as error:
                tried = min(self.batch_size, len(pixel_values) - start)
                if tried == 1 or out_of_memory(error) is None:
                    raise
            # Outside the `except`: its traceback keeps the tensors that did not fit.
            self.batch_size = tried // 2
            torch.accelerator.empty_cache()
        return torch.cat(outputs)

    def prompt_features(self, prompt: str) -> Any:
        """
        What `encode_prompt` makes of a prompt, made once: a group of images shares its prompt. One prompt at a time, so
        that it depends on nothing else.
        """
        if prompt not in self.prompts:
            if len(self.prompts) >= self.num_prompts:
                del self.prompts[next(iter(self.prompts))]
            self.prompts[prompt] = self.encode_prompt(prompt)
        return self.prompts[prompt]


class EmbeddingReward(RewardModel):
    """
    A reward model that puts images, and mostly prompts too, into one space.

    A subclass defines `encode_image(pixel_values)`, of shape `(N, D)`, and `encode_text(prompt)`, of shape `(1, D)`,
    and may set `scale`, which multiplies their cosine.
    """

    scale: float | torch.Tensor = 1.0

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Features of shape `(N, D)`, float32, of unit length."""
        features = [
            self.in_batches(self.unit_image_features, pixel_values[self.preprocess])
            for _, pixel_values in prepare(images, [self.preprocess], self.batch_size)
        ]
        return torch.cat(features)

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> torch.Tensor:
        """Features of shape `(N, D)`, float32, of unit length."""
        return torch.stack([self.prompt_features(prompt) for prompt in prompts])

    def unit_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.encode_image(pixel_values).float(), dim=-1)

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        return F.normalize(self.encode_text(prompt).float(), dim=-1)[0]

    def forward(self, pixel_values: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scaled cosines of shape `(N,)`."""
        return self.scale * (self.unit_image_features(pixel_values) * self.text_features(prompts)).sum(-1)


def check_lengths(images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    """Raise a [`UsageError`] unless every image has a prompt that is a text."""
    if len(images) != len(prompts):
        raise UsageError(f"Got {len(images)} images and {len(prompts)} prompts; each image needs its prompt.")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UsageError(
                f"Prompt {number} of {len(prompts)} is a {type(prompt).__name__}, not a text: {prompt!r}."
            )
