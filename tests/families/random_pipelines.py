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
A small random pipeline of every class that is supported, made offline of diffusers' and transformers' own classes. The tokenizer of
the tiny model stands for all.
"""

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from ..conftest import TINY


def tokenizer(length: int = 512) -> CLIPTokenizer:
    made = CLIPTokenizer.from_pretrained(TINY / "pipeline" / "tokenizer")
    made.model_max_length = length
    made.chat_template = "{{ messages[0]['content'] }}"
    return made


def clip(network_class=CLIPTextModelWithProjection) -> torch.nn.Module:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=1022, eos_token_id=1023, projection_dim=32,
    )  # fmt: skip
    return network_class(config).eval()


def t5(width: int = 32) -> T5EncoderModel:
    torch.manual_seed(0)
    config = T5Config(vocab_size=1024, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval()


def vae(latent_channels: int = 4, levels: int = 1, **options) -> diffusers.AutoencoderKL:
    """One level leaves an image of 32 pixels 32 latents wide, so that the denoiser has something to do."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * levels, down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels, layers_per_block=1, latent_channels=latent_channels,
        norm_num_groups=1, sample_size=32, **{"scaling_factor": 1.5035, "shift_factor": 0.0609, **options},
    ).eval()  # fmt: skip


def network(network_class, **config) -> torch.nn.Module:
    """A denoiser in which nothing is hidden: what begins as zeros, such as gates and heads, or as no number, is random."""
    torch.manual_seed(0)
    made = network_class(**config).eval()
    for name, parameter in made.named_parameters():
        if not torch.isfinite(parameter).all() or name.endswith("pad_token"):
            parameter.data.normal_()
        elif not parameter.data.any():
            parameter.data.normal_(std=0.1)
    return made


def stable_diffusion_3(with_t5: bool = True) -> diffusers.StableDiffusion3Pipeline:
    transformer = network(
        diffusers.SD3Transformer2DModel, sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64,
        pooled_projection_dim=64, pos_embed_max_size=16,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(),
        text_encoder=clip(), text_encoder_2=clip(), tokenizer=tokenizer(32), tokenizer_2=tokenizer(32),
        text_encoder_3=t5(64) if with_t5 else None, tokenizer_3=tokenizer() if with_t5 else None,
    )  # fmt: skip


# Of a family or of a model in it that is another case: how to make it, and what its pipeline needs to encode a text as we do.
CASES = {
    "stable_diffusion_3": (stable_diffusion_3, {}),
    "stable_diffusion_3_without_t5": (lambda: stable_diffusion_3(with_t5=False), {}),
}
