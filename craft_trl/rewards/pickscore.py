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

"""PickScore: the preference model of Pick-a-Pic (https://huggingface.co/papers/2305.01569)."""

import torch

from . import loading
from .clip import ClipReward
from .weights import PICKSCORE


class PickScore(ClipReward):
    """
    Scaled cosine between image and prompt in a CLIP ViT-H/14 fine-tuned on users' choices.

    Larger is better: `exp(logit_scale) * cosine`, about 18 to 24. Only images of the same prompt can be compared; the
    softmax of their scores is the predicted share of users who prefer each. Source:
    https://github.com/yuvalkirstain/PickScore.

    Args:
        source (`str`, *optional*, defaults to `"yuvalkirstain/PickScore_v1"`):
            A folder or a repository on the Hub with a [`~transformers.CLIPModel`]. Defaults to the published weights,
            pinned.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Where to run.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Precision of the network. Lower ones make ties and flips in a filter.
    """

    def __init__(
        self,
        source: str = "yuvalkirstain/PickScore_v1",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(loading.find(source, PICKSCORE), device, dtype)
        self.scale = self.model.logit_scale.float().exp()
