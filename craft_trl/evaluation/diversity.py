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

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from PIL import Image


# Of images of some prompts, their features if there are any, and how many each prompt has.
Measure = Callable[[list[Image.Image], np.ndarray | None, int], np.ndarray]


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


def pair_distances(images: Sequence[Image.Image], features: np.ndarray | None = None) -> np.ndarray:
    """
    How much each two images of a prompt differ: root mean square difference of pixels from 0 to 1, of images of a size, and
    before it one minus the cosine of unit features of shape `(S, D)`, if there are any. Shape `(1, S, S)` or `(2, S, S)`.
    """
    distances = np.zeros((1, len(images), len(images)))
    pixels = [np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in images]
    for a, b in combinations(range(len(images)), 2):
        distances[0, a, b] = distances[0, b, a] = np.sqrt(np.mean(np.square(pixels[a] - pixels[b])))
    if features is None:
        return distances
    return np.concatenate([(1 - features @ features.T)[None], distances])


def mean_distances(images: Sequence[Image.Image], features: np.ndarray | None, n: int) -> np.ndarray:
    """How much `n` images each of some prompts differ, in their features `(prompts, n, D)`, if there are any, and in pixels: `(prompts, 1 or 2)`."""
    pixels = np.array([pixel_distance(images[i : i + n]) for i in range(0, len(images), n)])[:, None]
    return pixels if features is None else np.hstack([diversity(features), pixels])


def all_distances(images: Sequence[Image.Image], features: np.ndarray | None, n: int) -> np.ndarray:
    """How much each two of them differ: `(prompts, 1 or 2, n, n)`."""
    parts = [images[i : i + n] for i in range(0, len(images), n)]
    return np.stack([pair_distances(p, None if features is None else features[i]) for i, p in enumerate(parts)])
