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

"""LAION aesthetic score v2 (https://github.com/christophschuhmann/improved-aesthetic-predictor)."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionModelWithProjection

from . import loading
from .preprocessing import TorchvisionCrop
from .reward_model import EmbeddingReward
from .weights import AESTHETIC_HEAD, CLIP_L


class LinearHead(nn.Module):
    """
    Five linear layers with no activation between them (one affine map), as LAION's and ImageReward's heads are.

    Args:
        width (`int`):
            Size of the feature it reads.
        widths (`tuple[int, ...]`, *optional*, defaults to `(1024, 128, 64, 16)`):
            Sizes between the layers.
    """

    def __init__(self, width: int, widths: tuple[int, ...] = (1024, 128, 64, 16)):
        super().__init__()
        sizes = (width, *widths, 1)
        # The published weights are numbered 0, 2, 4, 6, 7: places 1, 3 and 5 are dropouts, nothing at inference.
        linears = [nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        gaps = [nn.Identity() for _ in range(3)]
        self.layers = nn.Sequential(*(m for pair in zip(linears, gaps, strict=False) for m in pair), *linears[3:])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features of shape `(N, width)` to scores of shape `(N,)`."""
        return self.layers(features)[:, 0]


class Aesthetic(EmbeddingReward):
    """
    Predicted aesthetic rating of an image: a linear head on CLIP ViT-L/14. The prompt is not read.

    Larger is better. Trained on ratings from 1 to 10 and not bounded; images of current models score about 5 to 7. The
    original runs CLIP in float16 on a GPU.

    Args:
        source (`str`, *optional*, defaults to `"openai/clip-vit-large-patch14"`):
            A folder or a repository on the Hub with a [`~transformers.CLIPVisionModelWithProjection`] and the head as
            `aesthetic_head.safetensors`. Defaults to OpenAI's CLIP with LAION's head, both pinned.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Where to run.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Precision of CLIP; the head is always float32. Lower ones make ties and flips in a filter.
    """

    def __init__(
        self,
        source: str = "openai/clip-vit-large-patch14",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(device, dtype)
        folder = loading.find(source, CLIP_L)
        head_file = folder / "aesthetic_head.safetensors"
        if source == CLIP_L.repo_id:
            head_file = loading.find(None, AESTHETIC_HEAD) / AESTHETIC_HEAD.files[0]
        weights = {key: value.float() for key, value in loading.read(head_file).items()}
        model = loading.load_pretrained(CLIPVisionModelWithProjection, folder, dtype)
        widths = [len(weights.get(f"layers.{i}.bias", ())) for i in (0, 2, 4, 6)]
        self.head = LinearHead(model.config.projection_dim, tuple(widths))
        loading.load_into(self.head, weights, head_file)
        self.head.to(device).eval().requires_grad_(False)
        self.model = model.to(device).eval().requires_grad_(False)
        self.preprocess = TorchvisionCrop(model.config.image_size)

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Scores of shape `(N,)`, float32 on the CPU."""
        return super().__call__(images, [""] * len(images) if prompts is None else prompts)

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).image_embeds

    def forward(self, pixel_values: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores of shape `(N,)`."""
        return self.head(self.unit_image_features(pixel_values))
