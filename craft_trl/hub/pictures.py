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


"""Pictures of a card: rows of images, each no larger than it is to be shown."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from diffusers.utils import make_image_grid
from PIL import Image

from ..candidates.groups import Group
from ..candidates.pool import CandidatePool


PICTURE = 192  # pixels of an image in a card's picture


def group_pictures(groups: Sequence[Group], pool: CandidatePool, rows: Sequence[dict], shown: int = 4) -> list[dict]:
    """Pictures of groups that were kept and of groups that were dropped, evenly spaced over the prompts."""
    kept_ids = {row["group_id"] for row in rows if row["keep"]}
    pictures = []
    for name, title, chosen in (
        ("kept", "Kept", [g for g in groups if g.group_id in kept_ids]),
        ("dropped", "Dropped", [g for g in groups if g.group_id not in kept_ids]),
    ):
        chosen = [chosen[i] for i in spaced(len(chosen), shown)]
        if not chosen:
            continue
        columns = min(9, max(len(group.keys) for group in chosen))
        rows_of_images = [pool.images([key for key in group.keys if key in pool][:columns]) for group in chosen]
        pictures.append(
            {
                "path": f"images/{name}.png",
                "png": grid(rows_of_images, columns),
                "title": f"{title} groups, a row each, the original prompt's image first; evenly spaced, not chosen",
                "prompts": [group.prompt for group in chosen],
            }
        )
    return pictures


def spaced(length: int, shown: int) -> list[int]:
    """Indices evenly spaced over a list."""
    return np.unique(np.linspace(0, length - 1, min(length, shown)).astype(int)).tolist()


def grid(rows: Iterable[Iterable[bytes]], columns: int) -> bytes:
    """PNG images in rows, white where a row has fewer than `columns`, as one PNG file."""
    strips = [[_thumbnail(png) for png in row] for row in rows]
    blank = Image.new("RGB", strips[0][0].size, "white")
    tiles = [image for strip in strips for image in strip + [blank] * (columns - len(strip))]
    buffer = io.BytesIO()
    make_image_grid(tiles, rows=len(strips), cols=columns).save(buffer, format="PNG")
    return buffer.getvalue()


def _thumbnail(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((PICTURE, PICTURE))
    return image
