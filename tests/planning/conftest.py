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


"""Models of full size without weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file


# Configurations of stabilityai/stable-diffusion-xl-base-1.0, without their defaults.
SDXL = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
    },
    "text_encoder": {
        "model_type": "clip_text_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
    },
    "text_encoder_2": {
        "model_type": "clip_text_model",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
    },
}
# Of stable-diffusion-v1-5/stable-diffusion-v1-5: its VAE and text encoder are SDXL's, but for the scale of the latents.
SD15 = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "vae": SDXL["vae"],
    "text_encoder": SDXL["text_encoder"],
}

VAE16 = SDXL["vae"] | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
T5 = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
SD35 = {
    "transformer": {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": list(range(13)),
        "qk_norm": "rms_norm",
    },
    "vae": VAE16 | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "text_encoder": SDXL["text_encoder"],
    "text_encoder_2": SDXL["text_encoder_2"],
    "text_encoder_3": T5,
}
FLUX = {
    "transformer": {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    },
    "vae": VAE16 | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "text_encoder": SDXL["text_encoder"],
    "text_encoder_2": T5,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DYNAMIC = FLOW | {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def write_model(folder, tiny, parts, changes, scheduler=None):
    """A folder with all of a model but its vocabulary and what is in the files of its weights."""
    index = json.loads((tiny / "pipeline" / "model_index.json").read_text()) | changes
    index = {name: entry for name, entry in index.items() if entry is not None}
    if scheduler is not None:
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(tiny / "pipeline" / "scheduler", folder / "scheduler")
    if scheduler is not None:
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for name in (name for name in index if name.startswith("tokenizer")):
        shutil.copytree(tiny / "pipeline" / "tokenizer", folder / name)
        path = folder / name / "tokenizer_config.json"
        length = {"clip_text_model": 77, "t5": 512}.get(
            parts[name.replace("tokenizer", "text_encoder")]["model_type"], 4096
        )
        settings = {"model_max_length": length, "chat_template": "{{ messages[0]['content'] }}"}
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    for name, settings in parts.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(settings))
        stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        save_file({"none": torch.zeros(1)}, folder / name / f"{stem}.safetensors")
    return folder


@pytest.fixture(scope="package")
def sdxl(tmp_path_factory, tiny):
    return write_model(tmp_path_factory.mktemp("sdxl"), tiny, SDXL, {})


@pytest.fixture(scope="package")
def sd15(tmp_path_factory, tiny):
    changes = {"_class_name": "StableDiffusionPipeline", "text_encoder_2": None, "tokenizer_2": None}
    changes |= dict.fromkeys(("force_zeros_for_empty_prompt", "add_watermarker", "safety_checker", "image_encoder"))
    changes |= {"feature_extractor": [None, None], "safety_checker": [None, None]}
    return write_model(tmp_path_factory.mktemp("sd15"), tiny, SD15, changes)


# Classes of text encoders, by what their configurations say; CLIP's is also a pipeline's choice.
ENCODERS = {
    "clip_text_model": "CLIPTextModelWithProjection",
    "t5": "T5EncoderModel",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2Model",
}


def transformer_of(class_name, parts):
    """Changes to the index of an SDXL that make it that of a transformer's pipeline."""
    changes = {"_class_name": class_name, "unet": None, "force_zeros_for_empty_prompt": None, "add_watermarker": None}
    changes |= dict.fromkeys(("text_encoder_2", "tokenizer_2", "feature_extractor", "image_encoder"))
    for name in (name for name in parts if name.startswith("text_encoder")):
        encoder = (
            "CLIPTextModel" if name + class_name == "text_encoderFluxPipeline" else ENCODERS[parts[name]["model_type"]]
        )
        changes |= {
            name: ["transformers", encoder],
            name.replace("text_encoder", "tokenizer"): ["transformers", "CLIPTokenizer"],
        }
    return changes | {name: ["diffusers", parts[name]["_class_name"]] for name in ("transformer", "vae")}


@pytest.fixture(scope="package")
def sd35(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("sd35")
    return write_model(folder, tiny, SD35, transformer_of("StableDiffusion3Pipeline", SD35), FLOW)


@pytest.fixture(scope="package")
def flux(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("flux")
    return write_model(folder, tiny, FLUX, transformer_of("FluxPipeline", FLUX), DYNAMIC)
