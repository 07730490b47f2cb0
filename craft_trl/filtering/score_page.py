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


"""The page of `craft score`."""

import io
from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ..pages import render, thumbnail
from ..stages import write_atomically
from .collection import ImageCollection


THUMBNAIL = 256
SHOWN = 24  # at either end of each reward's order


def write_score_page(
    path: Path,
    images: ImageCollection,
    scores: Mapping[str, np.ndarray],
    lower: Container[str],
) -> None:
    """
    Write a page of the best and the worst images by each reward.

    Args:
        path (`Path`):
            File to write.
        images ([`ImageCollection`]):
            The images.
        scores (`Mapping[str, np.ndarray]`):
            Scores of shape `(N,)` per reward.
        lower (`Container[str]`):
            Rewards of which less is better.
    """
    rewards = []
    for name, values in scores.items():
        order = np.argsort(values if name in lower else -values, kind="stable").tolist()
        rewards.append(
            {
                "name": name,
                "lower": name in lower,
                "numbers": [float(f(values)) for f in (np.mean, np.std, np.min, np.median, np.max)],
                "best": order[:SHOWN],
                "worst": order[max(SHOWN, len(order) - SHOWN) :][::-1],
            }
        )
    shown = sorted({number for reward in rewards for end in ("best", "worst") for number in reward[end]})
    figures = {
        number: {
            "picture": thumbnail(_png(images.images[number]), THUMBNAIL),
            "name": images.names[number],
            "prompt": images.prompts[number],
            "scores": {name: float(values[number]) for name, values in scores.items()},
        }
        for number in shown
    }
    write_atomically(path, render("scores.html", rewards=rewards, figures=figures, num_images=len(images)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
