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

"""CLIPScore: how well an image fits its caption (https://huggingface.co/papers/2104.08718)."""

from collections.abc import Sequence

import torch

from . import loading
from .clip import ClipReward
from .weights import CLIP_L


class CLIPScore(ClipReward):
    """
    Cosine between image and prompt in CLIP, times 100 and not below 0, as torchmetrics defines it.

    Larger is better: about 25 to 35. The paper multiplies by 2.5 instead of 100. A prompt of more than 77 tokens is
    truncated before its end token; torchmetrics cuts the end token off and reads the text at some other one.

    Args:
        source (`str`, *optional*, defaults to `"openai/clip-vit-large-patch14"`):
            A folder or a repository on the Hub with a [`~transformers.CLIPModel`]. Defaults to OpenAI's, pinned. Scores
            of different ones cannot be compared.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Where to run.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Precision of the network. Lower ones make ties and flips in a filter.
    """

    scale = 100.0

    def __init__(
        self,
        source: str = "openai/clip-vit-large-patch14",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(loading.find(source, CLIP_L), device, dtype)

    def forward(self, pixel_values: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores of shape `(N,)`."""
        return super().forward(pixel_values, prompts).clamp(min=0)
