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

"""The colours of detected objects, as GenEval names them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image

from ...sources import HubFiles
from .. import loading
from .rules import Detection


COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
BACKGROUND = "#999"


def hub_files() -> HubFiles:
    """What open_clip downloads for [`ColorClassifier`]."""
    from open_clip import get_pretrained_cfg
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    place = get_pretrained_cfg(ColorClassifier.architecture, ColorClassifier.pretrained)["hf_hub"]
    return HubFiles(place.rstrip("/"), (HF_SAFE_WEIGHTS_NAME,))


class ColorClassifier:
    """
    Colours of objects by OpenAI's CLIP ViT-L/14 in open_clip.

    Args:
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Where to run.
        pretrained (`str`, *optional*, defaults to `"openai"`):
            Weights, as open_clip names them; `None` for random ones.
    """

    # open_clip 3 does not set QuickGELU for `ViT-L-14` of OpenAI any more, which the weights need.
    architecture = "ViT-L-14-quickgelu"
    pretrained = "openai"
    templates = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")

    def __init__(self, device: str | torch.device = "cpu", pretrained: str | None = "openai"):
        import open_clip

        with loading.explain(f"{self.architecture} of open_clip, which names colours for GenEval, is not to be had"):
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(
                self.architecture, pretrained=pretrained, device=device
            )
        self.model.eval()
        self.tokenize, self.device = open_clip.get_tokenizer(self.architecture), device
        self.prototypes: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, image: Image.Image, objects: Sequence[Detection], name: str) -> list[str]:
        """The colour of each object, of `COLORS`."""
        if name not in self.prototypes:
            texts = [template.format(color=color, name=name) for color in COLORS for template in self.templates]
            features = F.normalize(self.model.encode_text(self.tokenize(texts).to(self.device)), dim=-1)
            means = features.view(len(COLORS), len(self.templates), -1).mean(1)
            self.prototypes[name] = F.normalize(means, dim=-1)  # (colours, D)
        pixels = torch.stack([self.preprocess(cut_out(image, detection)) for detection in objects])
        features = F.normalize(self.model.encode_image(pixels.to(self.device)), dim=-1)
        return [COLORS[i] for i in (features @ self.prototypes[name].T).argmax(1).tolist()]


def cut_out(image: Image.Image, detection: Detection) -> Image.Image:
    """The object on grey, cropped to its box; without a mask, the box as it is."""
    image = image.convert("RGB")
    if detection.mask is not None:
        grey = Image.new("RGB", image.size, color=BACKGROUND)
        image = Image.composite(image, grey, Image.fromarray(detection.mask))
    return image.crop(detection.box)
