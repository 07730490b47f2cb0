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


"""The usage that a card shows is what draws, as the pictures on it were drawn."""

import json
import re

import numpy as np
import pytest
import torch

from craft_trl import CraftTrainer, ImageGenerator, SamplingConfig
from craft_trl.families import get_family
from craft_trl.hub.cards import model_card, pipeline_call
from craft_trl.sources import model_hash
from craft_trl.trainer.denoiser import lora_config

from ..families.random_pipelines import CASES
from ..helpers import config, make_dataset
from ..pipelines import make_pipeline


SIZE = 32


@pytest.mark.parametrize("name", ["stable_diffusion_3", "stable_diffusion_3_without_t5"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_the_code_draws(name, adapter, tmp_path):
    made = CASES[name]()
    made.save_pretrained(tmp_path / "base")
    peft_config = lora_config(get_family(type(made).__name__).lora_target_modules, rank=2) if adapter else None
    settings = config(tmp_path, max_steps=1, max_sequence_length=20, text_encoder_dtype="float32")
    trainer = CraftTrainer(str(tmp_path / "base"), settings, make_dataset([1.0, 0.5], SIZE), peft_config=peft_config)
    trainer.train()
    trainer.save_model()
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    without = ["text_encoder_3", "tokenizer_3"] if name.endswith("without_t5") else []
    assert facts["absent"] == without
    assert facts["base_revision"] is None and facts["base_hash"] == model_hash(str(tmp_path / "base"))

    sampling = SamplingConfig(
        num_inference_steps=2, guidance_scale=3.0, height=SIZE, width=SIZE, max_sequence_length=20
    )
    card = model_card(facts, str(tmp_path / "out"), str(tmp_path / "base"), sampling=sampling.sampling()).content
    assert "settings of craft_trl" not in card
    cheaper = sampling.sampling() | {"guidance_cutoff": 0.5, "cache_interval": 3}
    other = model_card(facts, str(tmp_path / "out"), str(tmp_path / "base"), sampling=cheaper).content
    assert "They were drawn with `guidance_cutoff: 0.5`, `cache_interval: 3` besides, which are settings of" in other
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert code.count("=None") == len(without)
    seeded = code.replace(
        'pipeline(prompt="a fox"', 'pipeline(prompt="a fox", generator=torch.Generator().manual_seed(0)'
    )
    drawn = {"torch": torch}
    exec(seeded.replace("fox.png", str(tmp_path / "fox.png")), drawn)
    (image,) = ImageGenerator(drawn["pipeline"], sampling)(["a fox"], [0])
    difference = torch.tensor(list(image.tobytes())) - torch.tensor(list(drawn["image"].tobytes()))
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"drawn": True},
            "trained on images that the base model drew itself, filtered by reward models. No preference pairs",
        ),
        ({}, "trained on images that the base model drew itself"),  # of a training before this was noted
        ({"drawn": False}, "trained on 7 images."),
        ({"drawn": True, "trainer": "Diffusion-DPO", "unit": "pairs"}, "trained on 7 pairs."),
    ],
)
def test_what_a_model_was_trained_on(facts, said):
    """A card claims nothing of images that were imported, and preference pairs are said to be such."""
    names = ("tags", "settings", "versions")
    common = {
        "trainer": "CRAFT",
        "paper": None,
        "base_model": None,
        "base_name": "base",
        "lora": None,
        "dataset": None,
    }
    common |= {"pipeline": "StableDiffusionXLPipeline", "rows": 7, **dict.fromkeys(names, {})}
    card = model_card(common | facts, "out").content
    assert said in " ".join(card.split())
    assert ("No preference pairs" in card) == ("drew itself" in said)


def check_call(pipeline, **settings):
    """What the card's call draws is what was drawn for its pictures, from the same noise. Returns the call."""
    sampling = SamplingConfig(num_inference_steps=3, **settings)
    (image,) = ImageGenerator(pipeline, sampling)(["a Red fox"], [7])
    call = pipeline_call(type(pipeline).__name__, sampling.sampling())
    drawn = eval(f"pipeline(prompt='a Red fox'{call}, generator=torch.Generator().manual_seed(7))").images[0]
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(drawn))
    assert difference.max() <= 1 and np.ptp(np.asarray(image)) > 20, call
    return call


@pytest.mark.parametrize("name", ["sd", "sdxl", *CASES])
def test_the_call_draws(name, tiny):
    pipeline = make_pipeline(name, "epsilon", tiny) if name in ("sd", "sdxl") else CASES[name]()
    family = get_family(type(pipeline).__name__)
    guided = family.takes_guidance(getattr(pipeline, family.denoiser).config, pipeline.config)
    settings = {"guidance_scale": 3.0 if guided else 1.0, "height": SIZE, "width": SIZE, "max_sequence_length": 128}
    if family.denoiser == "unet":
        settings |= {"height": 64, "width": 64, "max_sequence_length": None, "guidance_rescale": 0.7}
    check_call(pipeline, **settings)
    if family.calls(settings["guidance_scale"]) > 1:
        assert "dull, it's" in check_call(pipeline, **settings, negative_prompt="dull, it's")
        check_call(pipeline, **settings | {"guidance_scale": 1.0})


def test_a_call_without_t5():
    """Nor with what stands for its tokens."""
    settings = {"guidance_scale": 3.0, "height": SIZE, "width": SIZE, "max_sequence_length": 0}
    assert check_call(CASES["stable_diffusion_3_without_t5"](), **settings).endswith(", max_sequence_length=0")


def test_arguments_of_a_call():
    sampling = {"num_inference_steps": 28, "guidance_scale": 4.5, "max_sequence_length": 77, "negative_prompt": None}
    call = pipeline_call("StableDiffusion3Pipeline", sampling)
    assert call == ", num_inference_steps=28, guidance_scale=4.5, max_sequence_length=77"
    assert pipeline_call("StableDiffusion3Pipeline", None) == ""
