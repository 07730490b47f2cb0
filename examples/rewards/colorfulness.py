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
How colourful an image is (Hasler and Süsstrunk, 2003, "Measuring colourfulness in natural images"): a reward without
weights, to copy and to change.

A recipe names it as `colorfulness=./colorfulness.py:colorfulness`. As a reward to train on it only makes colours louder. As
one of the `held_out_rewards` of an evaluation it shows whether training did.
"""

import numpy as np
import torch
from PIL import Image


def colorfulness(images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
    """
    Spread and mean of the two opponent colours, `sqrt(std_rg^2 + std_yb^2) + 0.3 * sqrt(mean_rg^2 + mean_yb^2)`.

    Args:
        images (`list[PIL.Image.Image]`):
            Images of any size and mode.
        prompts (`list[str]`):
            As many prompts, which are not read.

    Returns:
        `torch.Tensor` of shape `(N,)`, float32: 0 for grey; the authors call 33 moderately and 109 extremely colourful.
    """
    scores = []
    for image in images:
        red, green, blue = np.asarray(image.convert("RGB"), dtype=np.float64).reshape(-1, 3).T  # each (H * W,)
        opponents = np.stack([red - green, (red + green) / 2 - blue])  # (2, H * W)
        scores.append(np.linalg.norm(opponents.std(axis=1)) + 0.3 * np.linalg.norm(opponents.mean(axis=1)))
    return torch.tensor(scores, dtype=torch.float32)
