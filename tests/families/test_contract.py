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

"""Every family says of its pipeline what the pipeline itself does, and is drawn from, trained, saved and drawn from again."""

import diffusers
import pytest
import torch

from craft_trl import CraftTrainer, ImageGenerator, SamplingConfig
from craft_trl.candidates.loading import load_pipeline
from craft_trl.families import FAMILIES, get_family
from craft_trl.families.adapters import attach_adapter
from craft_trl.families.checks import check_model
from craft_trl.families.contract import check_contract, unused_parameters
from craft_trl.trainer.denoiser import lora_config

from ..helpers import config, make_dataset, weights
from ..pipelines import make_pipeline
from .random_pipelines import CASES


SIZE = 32
LENGTHS = {"Lumina2Pipeline": 128}  # tokens of a text, where that is more than 24: a system prompt counts among them
UNETS = ("sd", "sdxl")


@pytest.fixture(scope="module", params=[*UNETS, *CASES])
def case(request, tiny, tmp_path_factory):
    """A pipeline, and the folder that it is saved in."""
    made = make_pipeline(request.param, "epsilon", tiny) if request.param in UNETS else CASES[request.param]()
    folder = tmp_path_factory.mktemp(request.param) / "pipeline"
    made.save_pretrained(folder)
    return made, folder


def length_of(family):
    return {} if family.max_sequence_length is None else {"max_sequence_length": LENGTHS.get(family.pipelines[0], 24)}


def test_every_family_has_a_case():
    made = {type(make()).__name__ for make in CASES.values()}
    assert made | {"StableDiffusionPipeline", "StableDiffusionXLPipeline"} == set(FAMILIES)


def test_says_what_the_pipeline_does(case):
    pipeline, _ = case
    family = get_family(type(pipeline).__name__)
    size = 64 if family.denoiser == "unet" else SIZE
    errors = check_contract(pipeline, size, size, **length_of(family))
    exact = {name: errors.pop(name) for name in ("predict", "encode", "prompts", "shift")}
    assert not any(exact.values()), exact
    assert max(errors.values()) < 5e-6, errors


@pytest.mark.parametrize("name", CASES)
def test_rounds_what_the_pipeline_rounds(name):
    """In bfloat16, in which a noise level of 937.3 is 936, the denoiser is told the same level as in drawing."""
    pipeline = CASES[name]().to(torch.bfloat16)
    lengths = length_of(get_family(type(pipeline).__name__))
    assert check_contract(pipeline, SIZE, SIZE, **lengths, num_inference_steps=7)["predict"] == 0


def test_a_training_step_reaches_every_parameter(case):
    pipeline, _ = case
    family = get_family(type(pipeline).__name__)
    size = 64 if family.denoiser == "unet" else SIZE
    assert unused_parameters(pipeline, size, size) == []
    pipeline_parameters = getattr(pipeline, family.denoiser)
    pipeline_parameters.zero_grad()
    pipeline_parameters.eval()


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_draws_trains_saves_and_draws_again(case, adapter, tmp_path):
    pipeline, folder = case
    family = get_family(type(pipeline).__name__)
    size = 64 if family.denoiser == "unet" else SIZE
    guidance = 2.0 if family.takes_guidance(getattr(pipeline, family.denoiser).config, dict(pipeline.config)) else 1.0
    embedded = family.no_guidance is None and guidance > 1
    sampling = SamplingConfig(
        num_inference_steps=2, height=size, width=size, batch_size=2, guidance_scale=guidance, **length_of(family)
    )
    check_model(str(folder), drawing=sampling)
    before = ImageGenerator(str(folder), sampling)(["a fox", "a red car on a table"], [0, 1])
    assert [image.size for image in before] == [(size, size)] * 2

    settings = config(
        tmp_path, learning_rate=1e-3, text_encoder_dtype="float32", train_distilled=True, max_grad_norm=0,
        train_guidance_scale=guidance if embedded else None, **length_of(family),
    )  # fmt: skip
    peft_config = lora_config(family.lora_target_modules, rank=2) if adapter else None
    trainer = CraftTrainer(str(folder), settings, make_dataset([1.0, 0.5, 2.0, 1.5], size), peft_config=peft_config)
    old = weights(trainer)
    trainer.train()
    new = weights(trainer)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    if adapter:
        assert changed == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    else:
        kept = [name for name, _ in trainer.model.named_parameters() if name not in changed]
        assert all(name.startswith(family.untrained(trainer.model.config)) for name in kept), kept
    trainer.save_model()

    if adapter:
        drawn_from = load_pipeline(str(folder))
        attach_adapter(drawn_from, tmp_path / "out")
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        way = (
            "pipeline.load_lora_weights(" if hasattr(pipeline, "load_lora_weights") else "\nattach_adapter(pipeline, "
        )
        assert f'{way}"{tmp_path / "out"}")\nimage = pipeline(' in card
    else:
        drawn_from = str(tmp_path / "out")
        loaded = getattr(diffusers, type(pipeline).__name__).from_pretrained(
            drawn_from, **{name: None for name, part in pipeline.components.items() if part is None}
        )
        assert all(
            torch.equal(value, new[name]) for name, value in getattr(loaded, family.denoiser).state_dict().items()
        )
    after = ImageGenerator(drawn_from, sampling)(["a fox", "a red car on a table"], [0, 1])
    assert any(a.tobytes() != b.tobytes() for a, b in zip(after, before, strict=True))
