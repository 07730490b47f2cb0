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

"""How much the images of one prompt differ."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from PIL import Image


def pixel_distance(images: Sequence[Image.Image]) -> float:
    """Root mean square difference of pixel values from 0 to 1, the mean over all pairs of `S >= 2` images of a size."""
    pixels = [np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in images]
    return float(np.mean([np.sqrt(np.mean(np.square(a - b))) for a, b in combinations(pixels, 2)]))


def diversity(features: np.ndarray) -> np.ndarray:
    """
    How much the images of a prompt differ: one minus the mean cosine of all pairs.

    Args:
        features (`np.ndarray` of shape `(P, S, D)`):
            Unit features of the `S >= 2` images of each prompt.

    Returns:
        `np.ndarray` of shape `(P, 1)`, 0 for images that are all the same.
    """
    cosines = features @ features.transpose(0, 2, 1)  # (P, S, S)
    size = features.shape[1]
    return 1 - (cosines.sum(axis=(1, 2)) - size)[:, None] / (size * (size - 1))
