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

"""What the guard measures of the pictures themselves."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..evaluation.diversity import diversity, pixel_distance


PICTURE_METRICS = (
    "saturation", "brightness", "high_frequency", "nearest_training_image", "diversity", "pixel_diversity",
)  # fmt: skip


def picture_metrics(
    images: Sequence[Image.Image], features: np.ndarray, train_features: np.ndarray, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """
    `PICTURE_METRICS` of images, the two of diversity only with two or more images of a prompt.

    Args:
        images (`Sequence[PIL.Image.Image]`):
            `P * S` images, those of a prompt side by side.
        features (`np.ndarray` of shape `(P * S, D)`):
            Their features, unit vectors.
        train_features (`np.ndarray` of shape `(N, D)`):
            Features of the training images.
        shape (`tuple[int, int]`):
            `P` and `S`.

    Returns:
        `dict[str, np.ndarray]`: arrays of shape `(P, S)`, those of diversity `(P, 1)`.
    """
    metrics = image_statistics(images) | {"nearest_training_image": (features @ train_features.T).max(axis=1)}
    metrics = {name: values.reshape(shape) for name, values in metrics.items()}
    if shape[1] > 1:
        metrics["diversity"] = diversity(features.reshape(*shape, -1))
        prompts = [images[i : i + shape[1]] for i in range(0, len(images), shape[1])]
        metrics["pixel_diversity"] = np.array([[pixel_distance(prompt)] for prompt in prompts])
    return metrics


def image_statistics(images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
    """
    Saturation and brightness, each 0 to 1, and the share of a picture's energy in high frequencies, those above a quarter
    of the sampling frequency; arrays of shape `(N,)`.
    """
    rows = []
    for image in images:
        saturation = np.asarray(image.convert("HSV"), dtype=np.float64)[..., 1].mean() / 255
        grey = np.asarray(image.convert("L"), dtype=np.float64) / 255
        energy = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
        frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in grey.shape), indexing="ij"))
        high = energy[frequency > 0.25].sum() / energy.sum() if energy.sum() > 1e-9 else 0.0
        rows.append((saturation, grey.mean(), high))
    return dict(zip(("saturation", "brightness", "high_frequency"), np.array(rows).T, strict=True))


def thumbnail_features(images: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of 16 x 16 pixels as unit vectors around their mean, shape `(N, 768)`: features where no reward has any."""
    pixels = np.array([np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BOX)) for image in images])
    pixels = pixels.reshape(len(images), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)
