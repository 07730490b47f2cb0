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

"""How large a model's images are, in pixels and on disk, before it is loaded."""

import json
from pathlib import Path

from ..families import get_family
from ..families.checks import is_sdxl_file, read_header
from .config import SamplingConfig


PNG_BYTES_PER_PIXEL = 1.6  # of pictures, as the pool writes them


def image_bytes(height: int, width: int) -> float:
    """Bytes of an image in the pool."""
    return PNG_BYTES_PER_PIXEL * height * width


def image_size(config: SamplingConfig, source: str, revision: str | None = None) -> tuple[int, int]:
    """Height and width in pixels of what a model draws: the configuration's, else the model's own."""
    if config.height is None or config.width is None:
        height, width = native_size(source, revision)
        return config.height or height, config.width or width
    return config.height, config.width


def native_size(source: str, revision: str | None = None) -> tuple[int, int]:
    """
    Height and width in pixels of a model's own images, from the configurations of its denoiser and its VAE.

    Args:
        source (`str`):
            Hub id or folder of a pipeline, or a single `.safetensors` file, which without a configuration beside it has
            the size of the original Stable Diffusion or SDXL.
        revision (`str`, *optional*):
            Revision on the Hub.
    """
    path = Path(source)
    if path.suffix == ".safetensors":
        if not (path.parent / "model_index.json").is_file():
            return (1024, 1024) if is_sdxl_file(read_header(path)) else (512, 512)
        source = str(path.parent)

    def read(name: str) -> dict:
        file = Path(source) / name
        if not Path(source).is_dir():
            from huggingface_hub import hf_hub_download  # here: a folder needs no import of it

            file = Path(hf_hub_download(source, name, revision=revision))
        return json.loads(file.read_text(encoding="utf-8"))

    family = get_family(read("model_index.json")["_class_name"])
    return family.size(read(f"{family.denoiser}/config.json"), read("vae/config.json"))
