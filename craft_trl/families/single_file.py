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
The names that Stable Diffusion and SDXL have in a single file, the layout of their first release.

diffusers reads that layout (`from_single_file`) and does not write it; what it knows about the names, `DIFFUSERS_TO_LDM_MAPPING`,
is used here in the other direction. It is tested, and checked after every export, by reading the file back with it.
"""

import re
from collections.abc import Mapping

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

from ..errors import UsageError
from .checks import V_PREDICTION, ZERO_SNR


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file_state_dict(pipeline: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """
    All weights of a Stable Diffusion 1.x or SDXL pipeline under the names of the single-file layout.

    Raises:
        [`UsageError`]: if a text encoder is of another kind, as that of Stable Diffusion 2.
    """
    layers = pipeline.unet.config.layers_per_block
    unet = pipeline.unet.state_dict()
    state_dict = {f"model.diffusion_model.{unet_name(n, layers, unet)}": value for n, value in unet.items()}
    num_blocks = len(pipeline.vae.config.block_out_channels)
    for name, value in pipeline.vae.state_dict().items():
        new = vae_name(name, num_blocks)
        # The attention's projections are convolutions of one pixel there.
        if ".mid.attn_1." in new and value.ndim == 2:
            value = value[:, :, None, None]
        state_dict[f"first_stage_model.{new}"] = value
    two = hasattr(pipeline, "text_encoder_2")
    if pipeline.text_encoder.config.hidden_act != "quick_gelu":
        raise UsageError("Only the text encoders of Stable Diffusion 1.x and SDXL can be put into a single file.")
    prefix = "conditioner.embedders.0.transformer." if two else "cond_stage_model.transformer."
    for name, value in pipeline.text_encoder.state_dict().items():
        # transformers 5 has dropped the level `text_model` from this class.
        state_dict[f"{prefix}text_model.{name.removeprefix('text_model.')}"] = value
    if two:
        state_dict |= open_clip_state_dict(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    return state_dict


def markers(scheduler: Mapping) -> dict[str, torch.Tensor]:
    """
    Empty tensors that say in a single file what its weights do not: that the model predicts v, and to a zero terminal SNR.
    Without them ComfyUI, Forge and AUTOMATIC1111 take an SDXL model for one that predicts epsilon, and draw noise.
    """
    is_v = scheduler["prediction_type"] == "v_prediction"
    names = [V_PREDICTION] * is_v + [ZERO_SNR] * (is_v and bool(scheduler.get("rescale_betas_zero_snr")))
    return {name: torch.empty(0) for name in names}


def unet_name(name: str, layers_per_block: int, state_dict: dict[str, torch.Tensor]) -> str:
    """Name of a parameter of the UNet: its blocks are numbered through, each resnet with the attention after it."""
    mapping = DIFFUSERS_TO_LDM_MAPPING["unet"]
    named = {**mapping["layers"], **mapping["addition_embed_type"]}
    if name in named:
        return named[name]
    size = layers_per_block + 1
    kind, _, rest = name.partition(".")
    if kind == "mid_block":
        part, index, rest = rest.split(".", 2)
        return (
            f"middle_block.{2 * int(index) if part == 'resnets' else 1}.{_resnet(rest) if part == 'resnets' else rest}"
        )
    block, part, index, rest = rest.split(".", 3)
    i, j = int(block), int(index)
    if part == "downsamplers":
        return f"input_blocks.{size * (i + 1)}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        attention = any(other.startswith(f"up_blocks.{i}.attentions.") for other in state_dict)
        return f"output_blocks.{size * i + layers_per_block}.{2 if attention else 1}.{rest}"
    number = f"input_blocks.{size * i + j + 1}" if kind == "down_blocks" else f"output_blocks.{size * i + j}"
    return f"{number}.0.{_resnet(rest)}" if part == "resnets" else f"{number}.1.{rest}"


def vae_name(name: str, num_blocks: int) -> str:
    """Name of a parameter of the VAE: the decoder's blocks are counted from the image down."""
    if name in DIFFUSERS_TO_LDM_MAPPING["vae"]:
        return DIFFUSERS_TO_LDM_MAPPING["vae"][name]
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{num_blocks - 1 - int(match[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for new, old in VAE_ATTENTION.items():
            name = name.replace(f".{new}.", f".{old}.")
    for new, old in (
        ("down_blocks.", "down."), (".resnets.", ".block."), ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"), ("conv_shortcut", "nin_shortcut"),
    ):  # fmt: skip
        name = name.replace(new, old)
    return name


def open_clip_state_dict(text_encoder: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Weights of a text encoder under open_clip's names: query, key and value are one matrix, the projection is transposed."""
    source, mapping = text_encoder.state_dict(), DIFFUSERS_TO_LDM_MAPPING["openclip"]
    state_dict = {f"{prefix}{old}": source.pop(new) for new, old in mapping["layers"].items()}
    state_dict[f"{prefix}text_projection"] = state_dict[f"{prefix}text_projection"].T.contiguous()
    for name in list(source):
        if ".k_proj." in name or ".v_proj." in name:
            continue
        value = source[name]
        if ".q_proj." in name:
            value = torch.cat([source[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            name = name.replace(".q_proj.", ".in_proj_")
        for new, old in mapping["transformer"].items():
            name = name.replace(new, old)
        state_dict[f"{prefix}transformer.{name}"] = value
    return state_dict


def _resnet(name: str) -> str:
    part, _, rest = name.partition(".")
    return f"{RESNET[part]}.{rest}"
