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


"""Networks of full size with random weights, batches for them, and pipelines to train them in. Zeros would flatter a GPU."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from craft_trl.families import Family, get_family
from craft_trl.trainer.denoiser import add_adapter, lora_config


TINY = Path(__file__).parents[1] / "recipes" / "tiny" / "pipeline"

# Pipeline, class of the denoiser and what it is made of, side of an image in pixels, channels of the latents and pixels to a side
# of one, and the shapes of a prompt's conditioning.
ARCHITECTURES = {
    "sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "denoiser": "UNet2DConditionModel",
        "size": 1024,
        "latents": (4, 8),
        "texts": {"prompt_embeds": (77, 2048), "pooled_prompt_embeds": (1280,)},
        "config": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    },
    "sd15": {
        "pipeline": "StableDiffusionPipeline",
        "denoiser": "UNet2DConditionModel",
        "size": 512,
        "latents": (4, 8),
        "texts": {"prompt_embeds": (77, 768)},
        "config": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    },
    # Of the published configurations, as are those above: stabilityai/stable-diffusion-3.5-medium
    "sd35_medium": {
        "pipeline": "StableDiffusion3Pipeline",
        "denoiser": "SD3Transformer2DModel",
        "size": 1024,
        "latents": (16, 8),
        "texts": {"prompt_embeds": (77 + 256, 4096), "pooled_prompt_embeds": (2048,)},
        "config": {
            "sample_size": 128,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    },
    # black-forest-labs/FLUX.2-klein-base-4B
    "flux2_klein": {
        "pipeline": "Flux2KleinPipeline",
        "denoiser": "Flux2Transformer2DModel",
        "size": 1024,
        "latents": (128, 16),
        "texts": {"prompt_embeds": (512, 3 * 2560)},
        "config": {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 3 * 2560,
            "guidance_embeds": False,
        },
    },
    # Of these, memory only.
    "flux_dev": {
        "pipeline": "FluxPipeline",
        "denoiser": "FluxTransformer2DModel",
        "size": 1024,
        "latents": (16, 8),
        "texts": {"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)},
        "config": {"guidance_embeds": True},
    },
    "sana": {
        "pipeline": "SanaPipeline",
        "denoiser": "SanaTransformer2DModel",
        "size": 1024,
        "latents": (32, 32),
        "texts": {"prompt_embeds": (300, 2304), "prompt_attention_mask": (300,)},
        "config": {},
    },
    "pixart_sigma": {
        "pipeline": "PixArtSigmaPipeline",
        "denoiser": "PixArtTransformer2DModel",
        "size": 1024,
        "latents": (4, 8),
        "texts": {"prompt_embeds": (300, 4096), "prompt_attention_mask": (300,)},
        "config": {"sample_size": 128, "caption_channels": 4096, "use_additional_conditions": False},
    },
    # To try the whole thing on a CPU.
    "tiny": {
        "pipeline": "StableDiffusionXLPipeline",
        "denoiser": "UNet2DConditionModel",
        "size": 64,
        "latents": (4, 4),
        "texts": {"prompt_embeds": (32, 192), "pooled_prompt_embeds": (128,)},
        "config": diffusers.UNet2DConditionModel.load_config(TINY / "unet"),
    },
    "tiny_sd3": {
        "pipeline": "StableDiffusion3Pipeline",
        "denoiser": "SD3Transformer2DModel",
        "size": 64,
        "latents": (16, 8),
        "texts": {"prompt_embeds": (77 + 256, 4096), "pooled_prompt_embeds": (2048,)},
        "config": {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128},
    },
    "tiny_flux2": {
        "pipeline": "Flux2KleinPipeline",
        "denoiser": "Flux2Transformer2DModel",
        "size": 64,
        "latents": (128, 16),
        "texts": {"prompt_embeds": (512, 3 * 2560)},
        "config": {
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 1,
            "joint_attention_dim": 3 * 2560,
            "guidance_embeds": False,
        },
    },
}
MEMORY_ONLY = ("flux_dev", "sana", "pixart_sigma")


def family_of(name: str) -> Family:
    """Family of an architecture's pipeline."""
    return get_family(ARCHITECTURES[name]["pipeline"])


def make_denoiser(name: str) -> torch.nn.Module:
    """A denoiser of full size with random weights, on the default device."""
    network_class = getattr(diffusers, ARCHITECTURES[name]["denoiser"])
    made = network_class.from_config(ARCHITECTURES[name]["config"])
    for parameter in made.parameters():
        if parameter.device.type != "meta" and not parameter.data.any():  # closed gates, and heads that say nothing
            torch.nn.init.normal_(parameter, std=0.02)
    return made


def put_adapter_on(denoiser: torch.nn.Module, name: str, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    """A frozen denoiser with an adapter as `craft train` makes it."""
    # Not the classes' own `to`, which warns that weights that were loaded can be rounded.
    torch.nn.Module.to(denoiser.requires_grad_(False), dtype)
    return add_adapter(denoiser, lora_config(family_of(name).lora_target_modules, rank=64))


def make_batch(name: str, batch_size: int) -> dict[str, torch.Tensor]:
    """A batch as the trainer has it, random, on the default device."""
    made, family = ARCHITECTURES[name], family_of(name)
    channels, factor = made["latents"]
    shape = (batch_size, channels, made["size"] // factor, made["size"] // factor)
    flow = family.noise == "flow"
    batch = {
        "latents": torch.randn(shape),
        "noise": torch.randn(shape),
        "timesteps": 1000 * torch.rand(batch_size) if flow else torch.randint(1000, (batch_size,)),
        "advantage": torch.rand(batch_size) + 0.5,
        **{key: torch.randn(batch_size, *text) for key, text in made["texts"].items()},
    }
    for key, value in family.image_conditioning(made["config"], made["size"], made["size"], 1.0).items():
        batch[key] = value.expand(batch_size, *value.shape)
    return batch


def predict(name: str, denoiser: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The denoiser's output for a batch; its latents stand for noisy ones."""
    return family_of(name).predict(denoiser, batch["latents"], batch["timesteps"], batch)


def make_source(name: str, folder: Path, device: torch.device) -> str:
    """
    A pipeline folder to train from: the denoiser at full size; the encoders, which are not in the loop, as small as the shapes
    of their outputs allow. What was made before in `folder` is used again.
    """
    if name == "tiny":
        return str(TINY)
    if (folder / "model_index.json").is_file():
        return str(folder)
    made, family = ARCHITECTURES[name], family_of(name)
    with torch.device(device):
        denoiser = make_denoiser(name)
    parts: dict[str, Any] = {family.denoiser: denoiser.cpu(), "scheduler": make_scheduler(made["pipeline"])}
    parts |= make_encoders(made["pipeline"], made["latents"][0])
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    getattr(diffusers, made["pipeline"])(**parts).save_pretrained(unfinished)
    unfinished.rename(folder)
    return str(folder)


def make_scheduler(pipeline: str) -> diffusers.SchedulerMixin:
    """Scheduler of the published model."""
    if pipeline == "StableDiffusion3Pipeline":
        return FlowMatchEulerDiscreteScheduler(shift=3.0)
    if pipeline == "Flux2KleinPipeline":
        return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def make_encoders(pipeline: str, channels: int) -> dict[str, Any]:
    """VAE, text encoders and tokenizers of a pipeline, small and random."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    blocks |= {"block_out_channels": [32] * 4}
    tokenizer = CLIPTokenizer.from_pretrained(TINY / "tokenizer", model_max_length=77)
    ids = {"vocab_size": 1024, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if pipeline == "Flux2KleinPipeline":
        tokenizer = CLIPTokenizer.from_pretrained(TINY / "tokenizer", model_max_length=512)
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        # The states after layers 9, 18 and 27 are read.
        text = Qwen3Config(
            **ids, hidden_size=2560, intermediate_size=64, num_hidden_layers=27, num_attention_heads=1,
            num_key_value_heads=1, head_dim=64, max_position_embeddings=512,
        )  # fmt: skip
        vae = diffusers.AutoencoderKLFlux2(**blocks, latent_channels=channels // 4)
        return {"vae": vae, "text_encoder": Qwen3ForCausalLM(text), "tokenizer": tokenizer}
    text = ids | {"num_hidden_layers": 2, "max_position_embeddings": 77}
    small = CLIPTextConfig(**text, hidden_size=768, num_attention_heads=12, projection_dim=768)
    large = CLIPTextConfig(**text, hidden_size=1280, num_attention_heads=20, projection_dim=1280)
    vae = AutoencoderKL(**blocks, latent_channels=channels, shift_factor=0.0)
    parts = {"vae": vae, "tokenizer": tokenizer}
    if pipeline == "StableDiffusionPipeline":
        absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return parts | absent | {"text_encoder": CLIPTextModel(small)}
    parts |= {"text_encoder_2": CLIPTextModelWithProjection(large), "tokenizer_2": tokenizer}
    if pipeline == "StableDiffusion3Pipeline":
        # Without T5 its 256 tokens are zeros, and cost as much.
        absent = {"text_encoder_3": None, "tokenizer_3": None}
        return parts | absent | {"text_encoder": CLIPTextModelWithProjection(small)}
    return parts | {"text_encoder": CLIPTextModel(small)}
