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
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
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


def flux(guidance_embeds: bool = True, **vae_options) -> diffusers.FluxPipeline:
    transformer = network(
        diffusers.FluxTransformer2DModel, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )  # fmt: skip
    # FLUX.1-dev shifts its noise levels by an image's size, and schnell does not at all.
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance_embeds)
    return diffusers.FluxPipeline(
        transformer=transformer, scheduler=scheduler, vae=vae(**vae_options), text_encoder=clip(CLIPTextModel),
        text_encoder_2=t5(), tokenizer=tokenizer(32), tokenizer_2=tokenizer(),
    )  # fmt: skip


def chroma() -> diffusers.ChromaPipeline:
    transformer = network(
        diffusers.ChromaTransformer2DModel, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_num_channels=8,
        approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    return diffusers.ChromaPipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(), text_encoder=t5(), tokenizer=tokenizer(),
    )  # fmt: skip


def qwen_image() -> diffusers.QwenImagePipeline:
    # The pipeline cuts off the first 34 tokens, which are those of its template: here too, with these words.
    words = tokenizer(2048)
    words.add_tokens(
        "<|im_start|> <|im_end|> system describe image by detailing color shape size texture quantity spatial relationships "
        "objects background user assistant".split()
    )
    torch.manual_seed(0)
    text = {
        "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    text_encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()
    torch.manual_seed(0)
    frames = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[2.0, 1.5, 1.0, 2.5],
    ).eval()  # fmt: skip
    transformer = network(
        diffusers.QwenImageTransformer2DModel, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    return diffusers.QwenImagePipeline(
        transformer=transformer, scheduler=scheduler, vae=frames, text_encoder=text_encoder, tokenizer=words
    )


def z_image() -> diffusers.ZImagePipeline:
    torch.manual_seed(0)
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=1024, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=512,
        )
    ).eval()  # fmt: skip
    transformer = network(
        diffusers.ZImageTransformer2DModel, in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    # Three levels: an image of 32 pixels is 16 tokens then, and the denoiser fills them up to 32 with one that it has learned.
    return diffusers.ZImagePipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(levels=3),
        text_encoder=text_encoder, tokenizer=tokenizer(),
    )  # fmt: skip


def gemma(layers: int = 2) -> Gemma2Model:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=1024, head_dim=8, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=layers,
        num_key_value_heads=2, bos_token_id=1022, eos_token_id=1023, pad_token_id=1023,
    )  # fmt: skip
    return Gemma2Model(config).eval()


def flux2_vae() -> diffusers.AutoencoderKLFlux2:
    torch.manual_seed(0)
    made = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,), down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"],
        layers_per_block=1, latent_channels=2, norm_num_groups=1, sample_size=32,
    ).eval()  # fmt: skip
    made.bn.running_mean.normal_()
    made.bn.running_var.uniform_(0.5, 2.0)
    return made


def flux2_transformer(text: int, guidance_embeds: bool) -> diffusers.Flux2Transformer2DModel:
    return network(
        diffusers.Flux2Transformer2DModel, in_channels=8, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=text, axes_dims_rope=[4, 4, 4, 4], guidance_embeds=guidance_embeds,
    )  # fmt: skip


def flux2() -> diffusers.Flux2Pipeline:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = sizes | {
        "model_type": "mistral", "vocab_size": 1027, "num_hidden_layers": 30, "num_key_value_heads": 1, "head_dim": 4,
        "bos_token_id": 1022, "eos_token_id": 1023, "pad_token_id": 1023,
    }  # fmt: skip
    vision = sizes | {"model_type": "pixtral", "image_size": 28, "patch_size": 14}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
    words = tokenizer()
    words.chat_template = None
    words.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])  # which the processor counts
    processor = PixtralProcessor(
        PixtralImageProcessor(), words, patch_size=14, chat_template="{{ messages[-1]['content'][0]['text'] }}"
    )
    return diffusers.Flux2Pipeline(
        transformer=flux2_transformer(24, True), vae=flux2_vae(), tokenizer=processor,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=Mistral3ForConditionalGeneration(config).eval(),
    )  # fmt: skip


def flux2_klein(is_distilled: bool = False) -> diffusers.Flux2KleinPipeline:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024, hidden_size=8, intermediate_size=8, num_hidden_layers=27, num_attention_heads=2, head_dim=4,
        num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    return diffusers.Flux2KleinPipeline(
        transformer=flux2_transformer(24, False), vae=flux2_vae(), tokenizer=tokenizer(), is_distilled=is_distilled,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=Qwen3ForCausalLM(config).eval(),
    )  # fmt: skip


def sana() -> diffusers.SanaPipeline:
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    ).eval()  # fmt: skip
    transformer = network(
        diffusers.SanaTransformer2DModel, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2,
        attention_head_dim=8, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=16, sample_size=32, timestep_scale=0.5,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        transformer=transformer, scheduler=scheduler, vae=autoencoder, text_encoder=gemma(), tokenizer=tokenizer(1024)
    )


def pixart(pipeline_class: type = diffusers.PixArtSigmaPipeline, sample_size: int = 32) -> diffusers.DiffusionPipeline:
    transformer = network(
        diffusers.PixArtTransformer2DModel, sample_size=sample_size, num_layers=2, attention_head_dim=8,
        num_attention_heads=3, caption_channels=32, cross_attention_dim=24,
    )  # fmt: skip
    return pipeline_class(
        transformer=transformer, scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
        vae=vae(shift_factor=None), text_encoder=t5(), tokenizer=tokenizer(),
    )  # fmt: skip


def lumina2() -> diffusers.Lumina2Pipeline:
    transformer = network(
        diffusers.Lumina2Transformer2DModel, sample_size=8, in_channels=16, hidden_size=32, num_layers=2,
        num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=16, axes_dim_rope=[8, 4, 4],
        axes_lens=[300, 32, 32], cap_feat_dim=16,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(16, levels=4), text_encoder=gemma(), tokenizer=tokenizer(),
    )  # fmt: skip


def aura_flow() -> diffusers.AuraFlowPipeline:
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=1024, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    transformer = network(
        diffusers.AuraFlowTransformer2DModel, sample_size=16, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=16,
        pos_embed_max_size=256,
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if "norm1" in name:  # of which the gates are made: open enough for an adapter behind them to be seen
            parameter.data.normal_()
    return diffusers.AuraFlowPipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
        vae=vae(shift_factor=None), text_encoder=UMT5EncoderModel(config).eval(), tokenizer=tokenizer(),
    )  # fmt: skip


# Of each family, and of each model in it that is another case.
CASES = {
    "stable_diffusion_3": stable_diffusion_3,
    "stable_diffusion_3_without_t5": lambda: stable_diffusion_3(with_t5=False),
    "flux_dev": flux,
    "flux_schnell": lambda: flux(guidance_embeds=False),
    "chroma": chroma,
    "qwen_image": qwen_image,
    "z_image": z_image,
    "flux2": flux2,
    "flux2_klein": flux2_klein,
    "sana": sana,
    "pixart_sigma": pixart,
    "pixart_alpha": lambda: pixart(diffusers.PixArtAlphaPipeline, 128),
    "lumina2": lumina2,
    "aura_flow": aura_flow,
}
