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

"""An adapter that draws the candidates in a few steps, and is not trained."""

import io
import json

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image

from craft_trl.candidates.config import CandidatesConfig
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.evaluation.models import load_drawing
from craft_trl.families.adapters import merge_adapter
from craft_trl.parser import CraftParser
from craft_trl.planning.recipes import RunRecipes
from craft_trl.scripts.generate import check

from ..conftest import ROOT
from ..evaluation.test_models import save_lora
from ..families.random_pipelines import CASES


STEPS = ["--scheduler", "EulerDiscreteScheduler", "--timestep_spacing", "trailing", "--num_inference_steps", "2"]
STEPS += ["--guidance_scale", "1.0"]


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_lora(UNet2DConditionModel.from_pretrained(tiny / "pipeline", subfolder="unet"), folder)
    return folder / "pytorch_lora_weights.safetensors"


def argv(tiny, *options):
    return ["--config", str(tiny / "candidates.yaml"), *STEPS, *options]


def config(tiny, *options):
    return CraftParser([CandidatesConfig]).parse_args_and_config(argv(tiny, *options))[0]


def test_draws_the_candidates(tiny, adapter, tmp_path, capsys):
    """The images are those of diffusers' own pipeline with its own `fuse_lora`, at the steps that a few-step adapter wants."""
    options = argv(tiny, "--num_prompts", "1", "--num_variants", "1", "--batch_size", "2", "--generate_all", "true")
    options += ["--output_dir", str(tmp_path / "run"), "--draft_adapter", str(adapter)]
    for command in ("expand", "generate"):
        assert main([command, *options]) == 0, capsys.readouterr().err
    pool = CandidatePool(tmp_path / "run" / "pool", ["hpsv2", "pickscore", "aesthetic"])
    assert len(pool) == 2
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    pipeline.load_lora_weights(adapter.parent)
    pipeline.fuse_lora()
    keys = sorted(pool.scores)

    def drawn(pipeline):
        return [
            np.asarray(
                pipeline(
                    text, generator=torch.Generator().manual_seed(seed), num_inference_steps=2, guidance_scale=1.0,
                    height=64, width=64,
                ).images[0]
            ).astype(int)
            for _, text, seed in keys
        ]  # fmt: skip

    got = [np.asarray(Image.open(io.BytesIO(png))).astype(int) for png in pool.images(keys)]
    merged = drawn(pipeline)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    base = drawn(pipeline)
    assert max(abs(a - b).max() for a, b in zip(got, merged, strict=True)) <= 1
    assert min(abs(a - b).max() for a, b in zip(got, base, strict=True)) > 30
    # What is trained is the model without it: nothing but the sampling knows of the adapter.
    record = json.loads((tmp_path / "run" / "pool" / "stage.json").read_text())
    assert len(record["settings"]["sampling"]["draft_adapter"]) == 64
    assert record["settings"]["sampling"]["timestep_spacing"] == "trailing"


def test_leaves_no_layer(tiny, adapter):
    pipeline = load_drawing(config(tiny, "--draft_adapter", str(adapter), "--dtype", "bfloat16"))
    names = [name for name, _ in pipeline.unet.named_parameters()]
    plain = UNet2DConditionModel.from_pretrained(tiny / "pipeline", subfolder="unet")
    assert names == [name for name, _ in plain.named_parameters()] and pipeline.unet.dtype == torch.bfloat16
    assert not pipeline.get_active_adapters()
    assert load_drawing(config(tiny)) == str(tiny / "pipeline")


@torch.no_grad()
def test_merged_where_diffusers_loads_none(tmp_path):
    """PixArt's pipelines have no loader of adapters, and so no `fuse_lora`."""
    pipeline = CASES["pixart_sigma"]()
    plain = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    settings = LoraConfig(r=2, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False)
    inject_adapter_in_model(settings, pipeline.transformer)
    layers = {n: p.clone() for n, p in pipeline.transformer.named_parameters() if "lora_" in n}
    merge_adapter(pipeline)
    merged = pipeline.transformer.state_dict()
    assert merged.keys() == plain.keys()
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed == {name for name in plain if name.endswith("to_q.weight")}
    name = min(changed)
    stem = name.removesuffix(".weight")
    a, b = (layers[f"{stem}.lora_{part}.default.weight"] for part in "AB")
    assert torch.allclose(merged[name], plain[name] + 4 * b @ a, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/at/all.safetensors", "Model draft_adapter: there is no nowhere/at/all.safetensors here, and the Hub says"),
        ("{}/candidates.yaml", "must hold one .safetensors file, found candidates.yaml"),
        ("{}/pipeline/unet/diffusion_pytorch_model.safetensors", "is not a LoRA for .*: 0 of its .* tensors are read"),
    ],
)  # fmt: skip
def test_mistakes(tiny, source, message):
    with pytest.raises(UsageError, match=message) as error:
        check(config(tiny, "--draft_adapter", source.format(tiny)))
    assert "\n" not in str(error.value)


def test_is_not_what_is_trained():
    folder = ROOT / "recipes" / "tiny"
    with pytest.raises(UsageError, match="draft_adapter runs/tiny/model is what .*craft.yaml writes"):
        RunRecipes.load(folder, ["--draft_adapter", "runs/tiny/model"])


def test_timestep_spacing_where_there_is_none(tiny):
    with pytest.raises(
        UsageError, match="timestep_spacing trailing: LCMScheduler of a StableDiffusionXLPipeline spaces"
    ):
        check(config(tiny, "--scheduler", "LCMScheduler"))
