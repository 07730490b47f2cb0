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

"""Sizes of the rewards' networks, from their configurations or as they are published."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..rewards import RewardSpec


@dataclass(frozen=True)
class Tower:
    """
    A transformer, as wide as all of its kind: four projections and two layers of the feed-forward network a block.

    Args:
        layers (`int`):
            Blocks.
        width (`int`):
            Hidden size.
        mlp (`int`):
            Inner size of the feed-forward network.
        tokens (`int`):
            Length of its sequence.
        vocabulary (`int`, *optional*, defaults to `0`):
            Rows of its embedding.
    """

    layers: int
    width: int
    mlp: int
    tokens: int
    vocabulary: int = 0

    @property
    def flops(self) -> int:
        """Operations of a forward pass of one sequence."""
        products = self.tokens * (4 * self.width**2 + 2 * self.width * self.mlp) + 2 * self.tokens**2 * self.width
        return 2 * self.layers * products

    @property
    def parameters(self) -> int:
        return self.layers * (4 * self.width**2 + 2 * self.width * self.mlp) + self.vocabulary * self.width

    @property
    def activations(self) -> int:
        """Values alive at once in a block for one sequence: its input before and after the norm, twice the inner layer."""
        return 2 * self.tokens * (self.width + self.mlp)


@dataclass(frozen=True)
class Network:
    """
    A network of another kind, whose work was counted once.

    Args:
        flops (`float`):
            Operations of a forward pass of one image.
        parameters (`int`):
            Number of parameters.
        activations (`int`):
            Values alive at once.
    """

    flops: float
    parameters: int
    activations: int


VIT_H = Tower(32, 1280, 5120, 257), Tower(24, 1024, 4096, 77, 49408)
VIT_L = Tower(24, 1024, 4096, 257), Tower(12, 768, 3072, 77, 49408)
# Mask2Former with Swin-S, of an image of 800 x 800 pixels.
MASK2FORMER = Network(0.442e12, 68_741_083, 176_600_000)
# By name: the tower that sees every image, and the one that sees every prompt once, if there is one, then what else there is.
# MPS's layers in which the image looks at the prompt have 8 + 4 times their width between the projections, as a tower with
# this inner layer. BLIP's text tower has projections to look at the image, counted with its inner layer; it runs for every
# image, and is counted with its prompt.
Towers = tuple[Tower | Network | None, ...]
PUBLISHED: dict[str, Towers] = {
    "hpsv2": VIT_H,
    "pickscore": VIT_H,
    "mps": (*VIT_H, Tower(4, 1024, 12416, 257)),
    "clipscore": VIT_L,
    "aesthetic": (VIT_L[0], None),
    "imagereward": (Tower(24, 1024, 4096, 197), Tower(12, 768, 4864, 35, 30524)),
    "geneval": (MASK2FORMER, None, *VIT_L),
}


def reward_towers(spec: RewardSpec) -> Towers | None:
    """Size of a reward model from its configuration, or of the published one; `None` where it is not known."""
    if spec.custom or spec.remote or spec.vlm:
        return None
    folder = Path(spec.source or "")
    if spec.source and (folder / "open_clip_config.json").is_file():
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
        vision, text = config["vision_cfg"], config["text_cfg"]
        tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
        return (
            Tower(vision["layers"], vision["width"], int(vision["width"] * vision.get("mlp_ratio", 4)), tokens),
            Tower(text["layers"], text["width"], 4 * text["width"], text["context_length"], text["vocab_size"]),
        )
    if spec.source and (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vision, text = config.get("vision_config", config), config.get("text_config")
        if "patch_size" not in vision:
            return PUBLISHED.get(spec.name)
        tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
        image = Tower(vision["num_hidden_layers"], vision["hidden_size"], vision["intermediate_size"], tokens)
        if text is None:
            return image, None
        length = config.get("max_length") or text.get("max_position_embeddings", 77)
        width, mlp = text["hidden_size"], text["intermediate_size"]
        mlp += width + text["encoder_hidden_size"] if "encoder_hidden_size" in text else 0
        towers = image, Tower(text["num_hidden_layers"], width, mlp, length, text.get("vocab_size", 49408))
        if cross := config.get("cross_config"):
            width, heads, head = config["projection_dim"], cross["num_heads"], cross["head_width"]
            towers += (Tower(cross["num_layers"], width, 2 * (heads + 1) * head + 10 * width, tokens),)
        return towers
    return PUBLISHED.get(spec.name)
