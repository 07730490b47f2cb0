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
GenEval's object detector: Mask2Former with Swin-S on COCO, from transformers, with mmdet's pixels and scores.

The benchmark's own weights are mmdet's (Apache-2.0), which this converts for transformers:

```bash
python -m craft_trl.rewards.geneval.mask2former mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth mask2former
```
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
from transformers.utils import is_scipy_available

from ...errors import UsageError, exit_code
from .. import loading
from .rules import OBJECT_NAMES, Detection


PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PADDING = 128.0  # mmdet pads before it normalises
SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32
MAX_INSTANCES = 100


class Mask2FormerDetector:
    """
    Boxes, scores and masks of the 80 kinds of objects of COCO.

    Args:
        folder (`Path`):
            Folder of a [`~transformers.Mask2FormerForUniversalSegmentation`].
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Where to run; always in float32.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        if not is_scipy_available():
            raise UsageError("GenEval's detector needs scipy: `pip install craft_trl[geneval]`.")
        self.device = device
        self.model = loading.load_pretrained(Mask2FormerForUniversalSegmentation, Path(folder), torch.float32)
        self.model.to(device).eval().requires_grad_(False)
        if self.model.config.num_labels != len(OBJECT_NAMES):
            raise UsageError(
                f"{folder} knows {self.model.config.num_labels} kinds of objects; GenEval needs COCO's {len(OBJECT_NAMES)}."
            )

    @torch.no_grad()
    def __call__(self, image: Image.Image, min_score: float) -> list[Detection]:
        """What is in the image with a score above `min_score`, in no order."""
        pixel_values, resized = preprocess(image)
        output = self.model(pixel_values=pixel_values.to(self.device))
        return instances(
            output.class_queries_logits[0],
            output.masks_queries_logits[0],
            padded=tuple(pixel_values.shape[-2:]),
            resized=resized,
            original=(image.height, image.width),
            min_score=min_score,
        )


def preprocess(image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
    """
    Pixels as mmdet's test pipeline makes them, and the image's height and width in them.

    The sides are scaled to fit 800 by 1333, bilinearly without antialiasing as OpenCV does it (whose integer arithmetic
    rounds a few pixels otherwise, by one level), then padded at the right and below to multiples of 32.

    Returns:
        `tuple[torch.Tensor, tuple[int, int]]`: shape `(1, 3, H, W)`, and the size without the padding.
    """
    pixels = TF.pil_to_tensor(image.convert("RGB"))[None].float()
    height, width = pixels.shape[-2:]
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    resized = int(height * scale + 0.5), int(width * scale + 0.5)
    if resized != (height, width):
        pixels = F.interpolate(pixels, size=resized, mode="bilinear", align_corners=False).round()
    pixels = F.pad(pixels, (0, -resized[1] % DIVISOR, 0, -resized[0] % DIVISOR), value=PADDING)
    return TF.normalize(pixels, PIXEL_MEAN, PIXEL_STD), resized


def instances(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    padded: tuple[int, int],
    resized: tuple[int, int],
    original: tuple[int, int],
    min_score: float = 0.0,
) -> list[Detection]:
    """
    Instances as mmdet's `MaskFormerFusionHead` makes them of a network's raw output.

    Not `post_process_instance_segmentation` of transformers, which shrinks masks to 384 pixels and lets one mask take
    pixels from another.

    Args:
        class_logits (`torch.Tensor` of shape `(Q, 81)`):
            Of every query, the last for "nothing".
        mask_logits (`torch.Tensor` of shape `(Q, h, w)`):
            Of every query.
        padded (`tuple[int, int]`):
            Height and width of the network's input.
        resized (`tuple[int, int]`):
            Height and width of the image in it.
        original (`tuple[int, int]`):
            Height and width of the image before that.
        min_score (`float`, *optional*, defaults to `0.0`):
            Instances that do not score above it are left out.
    """
    classes = class_logits.shape[-1] - 1
    scores, indices = class_logits.softmax(-1)[:, :-1].flatten().topk(min(MAX_INSTANCES, class_logits[:, :-1].numel()))
    # The mask can only lower a score: those below need none.
    indices, scores = indices[scores > min_score], scores[scores > min_score]
    detections = []
    for index, score in zip(indices.tolist(), scores, strict=True):
        # One mask at a time: a hundred of 1024 x 1024 pixels would take gigabytes.
        mask = mask_logits[index // classes][None, None]
        mask = F.interpolate(mask, size=padded, mode="bilinear", align_corners=False)[..., : resized[0], : resized[1]]
        mask = F.interpolate(mask, size=original, mode="bilinear", align_corners=False)[0, 0]
        inside = mask > 0
        score = float(score * (mask.sigmoid() * inside).sum() / (inside.sum() + 1e-6))
        if score > min_score:
            rows, columns = torch.where(inside.any(1))[0].tolist(), torch.where(inside.any(0))[0].tolist()
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            detections.append(Detection(OBJECT_NAMES[index % classes], box, score, inside.cpu().numpy()))
    return detections


# Parts of parameter names in mmdet 2.x and in transformers, in the order in which they are replaced.
RENAMES = [
    (
        r"^backbone\.patch_embed\.projection",
        "model.pixel_level_module.encoder.swin.embeddings.patch_embeddings.projection",
    ),
    (r"^backbone\.patch_embed\.norm", "model.pixel_level_module.encoder.swin.embeddings.norm"),
    (r"^backbone\.stages", "model.pixel_level_module.encoder.swin.encoder.layers"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.w_msa\.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"\.attn\.w_msa\.qkv", ".attention.qkv"),
    (r"\.attn\.w_msa\.proj", ".attention.o_proj"),
    (r"\.ffn\.layers\.0\.0", ".mlp.fc1"),
    (r"\.ffn\.layers\.1", ".mlp.fc2"),
    (r"^panoptic_head\.pixel_decoder", "model.pixel_level_module.decoder"),
    (r"\.input_convs\.(\d)\.conv", r".input_projections.\1.0"),
    (r"\.input_convs\.(\d)\.gn", r".input_projections.\1.1"),
    (r"\.lateral_convs\.0\.conv", ".adapter_1.0"),
    (r"\.lateral_convs\.0\.gn", ".adapter_1.1"),
    (r"\.output_convs\.0\.conv", ".layer_1.0"),
    (r"\.output_convs\.0\.gn", ".layer_1.1"),
    (r"\.mask_feature\.", ".mask_projection."),
    (r"\.level_encoding\.weight", ".level_embed"),
    (r"(\.encoder\.layers\.\d)\.attentions\.0", r"\1.self_attn"),
    (r"(\.encoder\.layers\.\d)\.norms\.0", r"\1.self_attn_layer_norm"),
    (r"(\.encoder\.layers\.\d)\.norms\.1", r"\1.final_layer_norm"),
    (r"^panoptic_head\.transformer_decoder\.layers", "model.transformer_module.decoder.layers"),
    # The order in which the decoder attends: to the image first, then to itself.
    (r"(\.decoder\.layers\.\d)\.attentions\.0\.attn", r"\1.cross_attn"),
    (r"(\.decoder\.layers\.\d)\.attentions\.1\.attn", r"\1.self_attn"),
    (r"(\.decoder\.layers\.\d)\.norms\.0", r"\1.cross_attn_layer_norm"),
    (r"(\.decoder\.layers\.\d)\.norms\.1", r"\1.self_attn_layer_norm"),
    (r"(\.decoder\.layers\.\d)\.norms\.2", r"\1.final_layer_norm"),
    (r"\.ffns\.0\.layers\.0\.0", ".fc1"),
    (r"\.ffns\.0\.layers\.1", ".fc2"),
    (r"^panoptic_head\.transformer_decoder\.post_norm", "model.transformer_module.decoder.layernorm"),
    (r"^panoptic_head\.query_embed", "model.transformer_module.queries_embedder"),
    (r"^panoptic_head\.query_feat", "model.transformer_module.queries_features"),
    (r"^panoptic_head\.level_embed", "model.transformer_module.level_embed"),
    (r"^panoptic_head\.cls_embed", "class_predictor"),
]
MASK_EMBEDDER = "model.transformer_module.decoder.mask_predictor.mask_embedder"
# What transformers has and mmdet has not: a norm that the backbone does not use, and a weight of the training loss.
NOT_IN_MMDET = {
    "model.pixel_level_module.encoder.swin.layernorm.weight",
    "model.pixel_level_module.encoder.swin.layernorm.bias",
    "criterion.empty_weight",
}


def mmdet_config() -> Mask2FormerConfig:
    """Configuration of mmdet's `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`."""
    stages = [f"stage{i}" for i in range(1, 5)]
    backbone = SwinConfig(
        embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=stages
    )
    return Mask2FormerConfig(backbone_config=backbone, num_labels=len(OBJECT_NAMES), num_queries=100)


def from_mmdet(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of mmdet's checkpoint under the names, and in the order of channels, of transformers."""
    converted = {}
    for key, value in state_dict.items():
        if key.endswith("relative_position_index"):  # transformers computes it
            continue
        if match := re.fullmatch(r"backbone\.norm(\d)\.(weight|bias)", key):
            stage, kind = int(match[1]) + 1, match[2]
            converted[f"model.pixel_level_module.encoder.hidden_states_norms.stage{stage}.{kind}"] = value
            continue
        if match := re.fullmatch(r"panoptic_head\.mask_embed\.(\d)\.(weight|bias)", key):
            converted[f"{MASK_EMBEDDER}.{int(match[1]) // 2}.0.{match[2]}"] = value
            continue
        if ".downsample." in key:
            value = channels_of_unfold(value)
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        if ".attention.qkv." in key:
            parts = zip("qkv", value.chunk(3), strict=True)
            converted.update({key.replace("qkv", f"{letter}_proj"): part for letter, part in parts})
        elif ".self_attn.in_proj_" in key:
            parts = zip("qkv", value.chunk(3), strict=True)
            converted.update({key.replace("in_proj_", f"{letter}_proj."): part for letter, part in parts})
        else:
            converted[key] = value
    return converted


def channels_of_unfold(value: torch.Tensor) -> torch.Tensor:
    """
    Weights of Swin's patch merging, of shape `(..., 4 * C)`, from the order of `nn.Unfold`, which mmdet uses, to that of
    the original: four blocks of `C` channels, the pixels of a patch column by column.
    """
    *rest, size = value.shape
    value = value.reshape(*rest, size // 4, 4).transpose(-1, -2)  # (..., pixel, channel)
    return value[..., [0, 2, 1, 3], :].reshape(*rest, size)


def convert(checkpoint: str | Path, folder: str | Path) -> None:
    """Write mmdet's checkpoint, a pickle that is read without executing it, as a folder for transformers."""
    if Path(folder).exists():
        raise UsageError(f"{folder} is there already: name another folder.")
    content = loading.read(Path(checkpoint))
    state_dict = from_mmdet(content.get("state_dict", content))
    with torch.device("meta"):
        expected = Mask2FormerForUniversalSegmentation(mmdet_config()).state_dict().keys()
    loading.check_keys(expected - state_dict.keys() - NOT_IN_MMDET, state_dict.keys() - expected, checkpoint)
    model = Mask2FormerForUniversalSegmentation(mmdet_config())
    model.load_state_dict(state_dict, strict=False)
    model.save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert mmdet's Mask2Former for transformers.")
    parser.add_argument("checkpoint", help="mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco*.pth")
    parser.add_argument("folder", help="Folder to write, for a recipe's `geneval=FOLDER`.")
    args = parser.parse_args(argv)
    convert(args.checkpoint, args.folder)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
