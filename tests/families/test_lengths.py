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


"""How many tokens of a text, and in how few steps: what a denoiser or a scheduler cannot do is refused before it is loaded."""

import contextlib

import pytest

from craft_trl import ImageGenerator, SamplingConfig
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.families import FAMILIES
from craft_trl.families.checks import check_model

from ..helpers import config
from ..models import edit, linked
from ..pipelines import make_pipeline
from .random_pipelines import CASES


LONG = "a fox " * 600  # far more tokens than are read


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny):
    """A function that saves a small pipeline, once."""
    folder = tmp_path_factory.mktemp("models")

    def model(name):
        if not (folder / name).exists():
            made = make_pipeline("sd", "epsilon", tiny) if name == "sd" else CASES[name]()
            made.save_pretrained(folder / name)
        return folder / name

    return model


@contextlib.contextmanager
def refused(message):
    with pytest.raises(UsageError, match=message) as error:
        yield
    assert "\n" not in str(error.value)


# Fewest and most of the small pipelines, whose denoisers have as many positions for texts as the published ones, but Z-Image's.
LENGTHS = {
    "stable_diffusion_3": (1, 512),
    "stable_diffusion_3_without_t5": (0, 512),
    "flux_dev": (1, 512),
    "chroma": (1, 512),
    "lumina2": (1, 299),
    "z_image": (1, 992),
    "qwen_image": (1, 1024),
    "flux2": (1, None),
    "sana": (1, None),
    "pixart_sigma": (1, None),
    "aura_flow": (1, None),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_of_texts(name, folders, tmp_path):
    model, (fewest, most) = str(folders(name)), LENGTHS[name]
    settings = {"train_guidance_scale": 3.5} if name in ("flux_dev", "flux2") else {}
    for length in {fewest, most or 1024}:
        check_model(model, drawing=SamplingConfig(max_sequence_length=length, height=32, width=32))
        check_model(model, train=config(tmp_path, max_sequence_length=length, **settings))
    for length in {fewest - 1, (most or 1024) + 1} & {*range(1025)}:
        said = f"max_sequence_length of a .*Pipeline must be {f'from {fewest} to {most}' if most else '1 or more'}, got {length}"
        with refused(said):
            check_model(model, drawing=SamplingConfig(max_sequence_length=length))
        with refused(said):
            check_model(model, train=config(tmp_path, max_sequence_length=length, **settings))


@pytest.mark.parametrize("name", ["lumina2", "z_image"])
def test_positions_are_there_for_the_longest_text_and_no_longer(name, folders):
    _, most = LENGTHS[name]

    def draw(length):
        sampling = SamplingConfig(
            num_inference_steps=1, height=32, width=32, guidance_scale=3.0, batch_size=1, max_sequence_length=length
        )
        return ImageGenerator(str(folders(name)), sampling)([LONG], [0])

    assert draw(most)[0].size == (32, 32)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        draw(most + 1)


def test_published_configurations():
    z_image, lumina2 = FAMILIES["ZImagePipeline"], FAMILIES["Lumina2Pipeline"]
    for axes_lens, most in (([1536, 512, 512], 1504), ([1024, 512, 512], 992)):
        assert z_image.text_lengths({"axes_lens": axes_lens}, {}) == (1, most)
    assert lumina2.text_lengths({"axes_lens": [300, 512, 512]}, {}) == (1, 299)
    assert lumina2.text_lengths({"axes_lens": [2048, 512, 256]}, {}) == (1, 512)  # the pipeline takes no more
    assert (
        z_image.most_tokens({"axes_lens": [1024, 512, 256]})
        == lumina2.most_tokens({"axes_lens": [300, 512, 256]})
        == 256
    )
    sd3 = FAMILIES["StableDiffusion3Pipeline"]
    for encoder, fewest in ((["transformers", "T5EncoderModel"], 1), ([None, None], 0), (None, 0)):
        assert sd3.text_lengths({}, {"text_encoder_3": encoder}) == (fewest, 512)


def test_a_default_that_is_too_long(folders, tmp_path):
    model = linked(folders("lumina2"), tmp_path / "model")
    edit(model, "transformer/config.json", axes_lens=[128, 32, 32])
    with refused("max_sequence_length of a Lumina2Pipeline must be from 1 to 127, got 256 by default"):
        check_model(str(model), drawing=SamplingConfig())
    check_model(str(model), drawing=SamplingConfig(max_sequence_length=127))


def test_sizes_without_positions(folders):
    for name, most in (("lumina2", 512), ("z_image", 512)):
        check_model(str(folders(name)), drawing=SamplingConfig(height=most))
        with refused(f"height of a .* must be {most} or less, for which it has positions, got {most + 64}"):
            check_model(str(folders(name)), drawing=SamplingConfig(height=most + 64))


STEPS = {
    "qwen_image": ({}, 2, "FlowMatchEulerDiscreteScheduler, whose noise levels end at 0.02 and begin at 1,"),
    "sd": ({"scheduler": "PNDMScheduler"}, 4, "PNDMScheduler, which begins with four steps of Runge-Kutta,"),
}


@pytest.mark.parametrize("name", STEPS)
def test_fewest_steps(name, folders):
    settings, fewest, why = STEPS[name]
    with refused(f"num_inference_steps must be {fewest} or more with {why} got {fewest - 1}"):
        check_model(str(folders(name)), drawing=SamplingConfig(num_inference_steps=fewest - 1, **settings))
    size = {"height": 32, "width": 32} if name == "qwen_image" else {"height": 64, "width": 64}
    sampling = SamplingConfig(num_inference_steps=fewest, batch_size=1, **size, **settings)
    check_model(str(folders(name)), drawing=sampling)
    assert ImageGenerator(str(folders(name)), sampling)(["a fox"], [0])[0].size == (size["width"], size["height"])


def test_schedulers_that_take_one_step(folders, tmp_path):
    for name in ("stable_diffusion_3", "sd"):
        check_model(str(folders(name)), drawing=SamplingConfig(num_inference_steps=1))
    model = linked(folders("sd"), tmp_path / "model")
    edit(model, "scheduler/scheduler_config.json", _class_name="PNDMScheduler", skip_prk_steps=True)
    check_model(str(model), drawing=SamplingConfig(num_inference_steps=1))


def test_fewest_steps_of_what_is_looked_at_while_training(folders, tmp_path, tiny, capsys):
    model = str(folders("qwen_image"))
    shown = {"validation_prompts": ["a fox"], "validation_num_inference_steps": 1}
    with refused("validation_num_inference_steps must be 2 or more"):
        check_model(model, train=config(tmp_path, **shown))
    (tmp_path / "dataset").mkdir()
    guard = [
        "--held_out_rewards",
        f"imagereward={tiny / 'evaluators/imagereward'}",
        "--guard_num_inference_steps",
        "1",
    ]
    guard += ["--guard_prompts", str(tiny / "prompts/tiny-parti.jsonl")]
    argv = ["--model_name_or_path", model, "--dataset_name", str(tmp_path / "dataset"), "--output_dir", "out", *guard]
    assert main(["train", *argv, "--max_steps", "1", "--use_cpu"]) == 2
    assert "guard_num_inference_steps must be 2 or more" in capsys.readouterr().err
