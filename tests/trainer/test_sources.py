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

"""What a training starts from: a folder in half precision only, as one that has all."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from craft_trl import CraftTrainer
from craft_trl.errors import UsageError

from ..helpers import config, make_dataset, weights
from ..models import edit, linked, sharded
from ..pipelines import make_pipeline


@pytest.fixture
def half(tiny, tmp_path):
    """A small SDXL of files of the fp16 variant only, one of them in two shards, whose tokenizer states no length."""
    make_pipeline("sdxl", "epsilon", tiny).to(torch.float16).save_pretrained(tmp_path / "whole")
    folder = linked(tmp_path / "whole", tmp_path / "half")
    sharded(folder, "vae", "diffusion_pytorch_model", ".fp16")
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model"):
        (folder / f"{name}.safetensors").rename(folder / f"{name}.fp16.safetensors")
    edit(folder, "tokenizer/tokenizer_config.json", model_max_length=...)
    return folder


def test_a_variant(half, tmp_path):
    """The weights are cast to the master weights of float32, and what is written needs no variant."""
    trainer = CraftTrainer(str(half), config(tmp_path, learning_rate=1e-3), make_dataset([1.0] * 4))
    stored = load_file(half / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert all(
        value.dtype == torch.float32 and torch.equal(value, stored[n].float()) for n, value in weights(trainer).items()
    )
    trainer.train()
    trainer.save_model()
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*model*")}
    assert not [name for name in names if "fp16" in name] and "text_encoder_2/model.safetensors" in names
    assert "vae/diffusion_pytorch_model-00002-of-00002.safetensors" in names
    saved = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out", dtype=torch.float32)
    whole = StableDiffusionXLPipeline.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    assert all(torch.equal(v, saved.vae.state_dict()[n]) for n, v in whole.vae.state_dict().items())
    assert all(torch.equal(v, saved.unet.state_dict()[n]) for n, v in weights(trainer).items())


def test_one_that_cannot_be_trained(tiny, tmp_path):
    folder = linked(tiny / "pipeline", tmp_path / "lcm")
    edit(folder, "unet/config.json", time_cond_proj_dim=32)
    with pytest.raises(UsageError, match="It can be drawn from and judged, not trained"):
        CraftTrainer(str(folder), config(tmp_path), make_dataset())
