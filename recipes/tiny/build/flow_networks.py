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
The networks of the flow model: SD3's classes on the autoencoder and the text encoders of a tiny SDXL.

SD3 reads CLIP's two encoders as SDXL does, with the pooled text of both; its third encoder, T5, is left out.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .assembly import load_part, save_pipeline
from .networks import encode_prompt, load_text_encoders


TextEncoders = tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]


def flow_text_encoders(teacher: Path) -> TextEncoders:
    """The text encoders of a tiny SDXL as SD3 has them, in single precision."""
    first, second = load_text_encoders(teacher, torch.device("cpu"))
    return _with_identity_projection(first).eval(), second.eval()


def encode_flow_prompt(encoders: TextEncoders, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    SD3's text condition.

    Args:
        encoders (`TextEncoders`):
            Of [`flow_text_encoders`].
        token_ids (`torch.Tensor` of shape `(N, 32)`):
            Tokens, padded with the end of text.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the last but one hidden states of both encoders, as in SDXL, `(N, 32, width_1
        + width_2)`, and the pooled projections of both, `(N, projection_1 + projection_2)`.
    """
    sequence, pooled = encode_prompt(*encoders, token_ids)
    return sequence, torch.cat([encoders[0](input_ids=token_ids).text_embeds, pooled], dim=-1)


def assemble_flow_pipeline(folder: Path, transformer: SD3Transformer2DModel, teacher: Path) -> None:
    """Put the transformer and the parts of a tiny SDXL together and write the pipeline to `folder`."""
    text_encoder, text_encoder_2 = flow_text_encoders(teacher)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        # SDXL's has no shift, which SD3's pipeline does not take for zero.
        vae=load_part(AutoencoderKL, teacher / "vae", shift_factor=0.0),
        text_encoder=text_encoder.half(),
        tokenizer=CLIPTokenizer.from_pretrained(teacher / "tokenizer"),
        text_encoder_2=text_encoder_2.half(),
        tokenizer_2=CLIPTokenizer.from_pretrained(teacher / "tokenizer_2"),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    save_pipeline(pipeline, folder)


def _with_identity_projection(plain: CLIPTextModel) -> CLIPTextModelWithProjection:
    """SDXL's first text encoder has no projection and SD3's has: with the identity its pooled text stays what it is."""
    config = CLIPTextConfig.from_dict({**plain.config.to_dict(), "projection_dim": plain.config.hidden_size})
    projecting = CLIPTextModelWithProjection(config)
    projecting.text_model.load_state_dict(plain.state_dict())
    torch.nn.init.eye_(projecting.text_projection.weight)
    return projecting
