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


def write_model(folder, tiny, parts, changes):
    """A folder with all of a model but its vocabulary and what is in the files of its weights."""
    index = json.loads((tiny / "pipeline" / "model_index.json").read_text()) | changes
    index = {name: entry for name, entry in index.items() if entry is not None}
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(tiny / "pipeline" / "scheduler", folder / "scheduler")
    for name in {"tokenizer", "tokenizer_2"} & index.keys():
        shutil.copytree(tiny / "pipeline" / name, folder / name)
        path = folder / name / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 77}))
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
