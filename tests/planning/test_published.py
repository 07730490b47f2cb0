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


"""The memory that the pages and the recipes of transformers speak of is what `craft plan` computes, of published configurations."""

import re

import diffusers
import pytest
import torch

from craft_trl.candidates.config import SamplingConfig
from craft_trl.families.checks import check_model
from craft_trl.planning.gpus import find_gpu
from craft_trl.planning.memory import CONTEXT
from craft_trl.planning.operations import MetaPipeline
from craft_trl.planning.recipes import RunRecipes
from craft_trl.planning.training import Training
from craft_trl.scripts.plan import training_profile
from craft_trl.trainer.denoiser import add_adapter, lora_config

from ..conftest import ROOT
from .conftest import DYNAMIC, FLOW, FLUX, SD35, SDXL, T5, transformer_of, write_model


QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
GEMMA2 = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
FLUX2_VAE = SDXL["vae"] | {"_class_name": "AutoencoderKLFlux2", "latent_channels": 32}
DC_AE = {
    "_class_name": "AutoencoderDC",
    "latent_channels": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}
DIFFUSION = {
    "_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"
}  # fmt: skip
SANA_FLOW = {
    "_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction",
    "flow_shift": 3.0,
}  # fmt: skip
# Scheduler, and the parts beside the denoiser, whose configuration is that of `benchmarks/architectures.py`.
MODELS = {
    "sd35_medium": (FLOW, SD35),
    "flux_dev": (DYNAMIC, FLUX),
    "flux2_klein": (DYNAMIC, {"vae": FLUX2_VAE, "text_encoder": QWEN3}),
    "sana": (SANA_FLOW, {"vae": DC_AE, "text_encoder": GEMMA2}),
    "pixart_sigma": (DIFFUSION, {"vae": SDXL["vae"], "text_encoder": T5}),
}
RECIPES, PAGES = ROOT / "recipes", ROOT / "docs" / "source"
FAMILIES = (PAGES / "families.md").read_text()
# Of the page on training: micro-batch, checkpointing; parameters, gradients, optimizer, activations and sum in GB.
ROWS = {
    (folder, f"{recipe}.yaml"): cells.split(" | ")
    for folder, recipe, cells in re.findall(
        r"^\| `(\w+)/(\w+)\.yaml`.*? \| (.*) \|$", (PAGES / "training.md").read_text(), flags=re.MULTILINE
    )
    if folder in MODELS
}
# Of the page on families: what they are called there.
NAMES = {
    "sd35_medium": "Stable Diffusion 3.5 medium",
    "flux_dev": "FLUX.1-dev",
    "flux2_klein": "FLUX.2 klein base 4B",
    "sana": "Sana 1.6B",
    "pixart_sigma": "PixArt-Sigma",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny, benchmark_train):
    """A function that makes the folder of a model, once."""
    folder = tmp_path_factory.mktemp("published")

    def model(name):
        made = benchmark_train.ARCHITECTURES[name]
        scheduler, parts = MODELS[name]
        with torch.device("meta"):
            denoiser = getattr(diffusers, made["denoiser"]).from_config(made["config"])
        parts = parts | {"transformer": dict(denoiser.config) | {"_class_name": made["denoiser"]}}
        if not (folder / name).exists():
            (folder / name).mkdir()
            write_model(folder / name, tiny, parts, transformer_of(made["pipeline"], parts), scheduler)
        return folder / name

    return model


def test_every_recipe_has_a_row():
    assert ROWS.keys() == {
        (path.parent.name, path.name) for name in MODELS for path in RECIPES.glob(f"{name}/craft*.yaml")
    }


def load(name, recipe, model):
    """Recipes of a folder for a model that is here, with the cells of the row of the page on training, as numbers."""
    recipes = RunRecipes.load(RECIPES / name, ["--train_recipe", recipe, "--train.model_name_or_path", model])
    args = recipes.training
    check_model(model, train=args)
    micro_batch, checkpointing, *memory = ROWS[name, recipe]
    assert args.per_device_train_batch_size == int(micro_batch)
    assert args.activation_checkpointing == (checkpointing == "yes")
    return recipes, [1e9 * float(cell) for cell in memory]


@pytest.mark.parametrize("name", MODELS)
def test_memory_of_training(name, published):
    """What the pages say, which `benchmarks/train.py` counts in another way, and what the recipe says of itself."""
    model = str(published(name))
    recipes, (_, gradients, optimizer, _, total) = load(name, "craft.yaml", model)
    meta = MetaPipeline(model, dtype=torch.bfloat16)
    parameters = meta.parameters("transformer")
    training = Training.of(recipes, training_profile(recipes, find_gpu("h100:80")), meta, meta.size(SamplingConfig()))
    assert [gradients, optimizer] == pytest.approx([4 * training.trained, 8 * training.trained], rel=5e-3)
    assert training.memory() == pytest.approx(total, rel=0.1)
    card = re.match(r"#.* on one GPU of (\d+) GB\.", (RECIPES / name / "craft.yaml").read_text())
    assert training.memory() + CONTEXT < 1e9 * float(card[1])
    row = re.search(rf"^\| {re.escape(NAMES[name])} \| (\S+) B .* \| (\S+) \| (\S+) \|$", FAMILIES, flags=re.MULTILINE)
    billions, full, adapter = (1e9 * float(cell) for cell in row.groups())
    assert billions == pytest.approx(parameters, abs=6e6) and full == pytest.approx(18 * parameters, rel=0.03)
    if recipes.train.use_peft:
        assert adapter == pytest.approx(training.static, rel=0.03)


@pytest.mark.parametrize("name", ["sd35_medium", "flux2_klein"])
def test_adapters_beside_full_training(name, published):
    """But for their activations, which take as long to count as all of the others."""
    model = str(published(name))
    recipes, (parameters, gradients, optimizer, _, _) = load(name, "craft_lora.yaml", model)
    meta = MetaPipeline(model)
    with torch.device("meta"):
        config = lora_config(meta.family.lora_target_modules, recipes.train.lora_r)
        made = add_adapter(meta.denoiser, config, meta.family.untrained(meta.denoiser.config))
    trained = sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)
    frozen = sum(tensor.numel() for tensor in [*made.parameters(), *made.buffers()]) - trained
    assert parameters == pytest.approx(4 * trained + 2 * frozen, rel=0.01)
    assert [gradients, optimizer] == pytest.approx([4 * trained, 8 * trained], rel=0.02, abs=1e7)
