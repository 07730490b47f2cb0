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

"""What the HTML pages share: how they are made from their templates, and how pictures are put into them."""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image

from .conditions import describe


TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values) -> str:
    """A self-contained page. Every value is escaped: prompts come from anywhere."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["conditions"] = describe
    return environment.get_template(template).render(**values)


def data_uri(png: bytes, largest: int = 512) -> str:
    """A PNG as a `data:` address, shrunk where it is large so that the report stays light."""
    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) > largest:
            image = image.convert("RGB")
            image.thumbnail((largest, largest))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=90)
            return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return "data:image/png;base64," + base64.b64encode(png).decode()


def thumbnail(png: bytes, largest: int, quality: int = 85) -> str:
    """A picture of at most `largest` pixels a side, as WebP in base64: a few kilobytes."""
    with Image.open(io.BytesIO(png)) as image:
        image = image.convert("RGB")
        image.thumbnail((largest, largest), reducing_gap=2)
        buffer = io.BytesIO()
        image.save(buffer, format="WEBP", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode()
