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


"""What is refused of models of rectified flow, and how they are to be drawn from and trained: in one line, before they are loaded."""

import importlib.util
import inspect
import shutil
from contextlib import nullcontext

import diffusers
import numpy as np
import pytest
import torch

from craft_trl import CraftTrainer, ImageGenerator, SamplingConfig
from craft_trl.candidates.sizes import native_size
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.families import get_family
from craft_trl.families.checks import check_model
from craft_trl.noise import model_shift

from ..helpers import config, make_dataset
from ..models import checkpoint, edit, linked
from .random_pipelines import CASES, flux


NAMES = ("flux_dev", "flux_schnell", "chroma", "qwen_image", "z_image")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """FLUX's two models, of a VAE as deep as the real one."""
    folder = tmp_path_factory.mktemp("flux")
    for name, guidance_embeds in (("dev", True), ("schnell", False)):
        flux(guidance_embeds, levels=4).save_pretrained(folder / f"FLUX-{name}")
    return folder


DRAWING = {
    "guidance": ("schnell", {"guidance_scale": 3.5}, r"guidance_scale 3.5: .*schnell was distilled to draw without gui.* set it to 1"),
    "negative": (
        "dev",
        {"guidance_scale": 3.5, "negative_prompt": "blurry"},
        "negative_prompt 'blurry': guidance_scale 3.5 of a FluxPipeline leads away from nothing, leave it out",
    ),
    "size": ("dev", {"height": 40}, "height of a FluxPipeline must be a multiple of 16, got 40"),
    "diffusion": (
        "dev",
        {"scheduler": "DDIMScheduler"},
        "DDIMScheduler does not draw what a FluxPipeline has learned. Those that do are FlowMatchEulerDiscreteScheduler",
    ),
    "no levels": ("dev", {"scheduler": "FlowMatchHeunDiscreteScheduler"}, "FlowMatchHeunDiscreteScheduler does not draw what"),
    "rescale": ("dev", {"guidance_rescale": 0.5}, "guidance_rescale 0.5: the FluxPipeline has none"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWING)
def test_drawing(name, folders):
    model, settings, said = DRAWING[name]
    with pytest.raises(UsageError, match=said) as error:
        check_model(str(folders / f"FLUX-{model}"), drawing=SamplingConfig(**settings))
    assert "\n" not in str(error.value)


TRAINING = {
    "distilled": (
        "schnell",
        {},
        "schnell seems to be distilled to draw in a few steps.* or set train_distilled: true",
    ),
    "no scale": ("dev", {}, "train_guidance_scale is missing: the guidance_scale of a FluxPipeline is an input"),
    "scale": (
        "schnell",
        {"train_distilled": True, "train_guidance_scale": 3.5},
        "train_guidance_scale 3.5: the denoiser of a FluxPipeline has no such input",
    ),
    "empty prompts": (
        "schnell",
        {"train_distilled": True, "proportion_empty_prompts": 0.1},
        "proportion_empty_prompts: this model has no guidance",
    ),
    "validation": (
        "schnell",
        {"train_distilled": True, "validation_prompts": ["a fox"]},
        "validation_guidance_scale 5.0: .*schnell was distilled to draw without guidance, set it to 1",
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training(name, folders, tmp_path):
    model, settings, said = TRAINING[name]
    settings = {"proportion_empty_prompts": 0.0, **settings}
    with pytest.raises(UsageError, match=said) as error:
        CraftTrainer(str(folders / f"FLUX-{model}"), config(tmp_path, **settings), make_dataset())
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "settings"), [("schnell", {"train_distilled": True}), ("dev", {"train_guidance_scale": 3.5})]
)
def test_what_may_be_trained(model, settings, folders, tmp_path):
    settings = config(tmp_path, proportion_empty_prompts=0.0, **settings)
    check_model(str(folders / f"FLUX-{model}"), drawing=SamplingConfig(guidance_scale=1.0, height=48), train=settings)


@pytest.mark.parametrize("name", ["Z-Image-Turbo", "Z-Image"])
def test_a_name_says_that_a_model_is_distilled(name, tmp_path):
    """Nothing in the configuration of Z-Image-Turbo does."""
    CASES["z_image"]().save_pretrained(tmp_path / name)
    if name == "Z-Image":
        check_model(str(tmp_path / name), train=config(tmp_path))
    else:
        with pytest.raises(UsageError, match="Z-Image-Turbo seems to be distilled"):
            check_model(str(tmp_path / name), train=config(tmp_path))
    check_model(str(tmp_path / name), train=config(tmp_path, train_distilled=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}, "DDIMScheduler with prediction_type epsilon, and mod"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "FlowMatchHeunDiscreteScheduler, and models of its class are made "),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}, "by FlowMatchEulerDiscreteScheduler."),
    ],
)  # fmt: skip
def test_schedulers_of_a_folder(changes, said, folders, tmp_path):
    model = linked(folders / "FLUX-dev", tmp_path / "model")
    edit(model, "scheduler/scheduler_config.json", **changes)
    with pytest.raises(UsageError, match=said) as error:
        check_model(str(model))
    assert "\n" not in str(error.value)


def test_a_pipeline_that_was_not_loaded_takes_another_scheduler():
    sampling = SamplingConfig(
        scheduler="FlowMatchHeunDiscreteScheduler", num_inference_steps=2, height=32, width=32, max_sequence_length=24
    )
    generator = ImageGenerator(CASES["stable_diffusion_3"](), sampling)
    assert generator.pipeline.scheduler.shift == 3.0
    assert generator(["a fox"], [0])[0].size == (32, 32)


class Stop(Exception):
    """Raised when all has been seen that was to be."""


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_lengths_are_the_pipelines(name, tmp_path, monkeypatch):
    pipeline = CASES[name]()
    family = get_family(type(pipeline).__name__)
    called = inspect.signature(pipeline.__call__).parameters
    assert family.max_sequence_length == called["max_sequence_length"].default
    vae = pipeline.vae.config
    assert family.size_multiple(vae) == pipeline.image_processor.config.vae_scale_factor
    assert family.pixels_per_latent(vae) == pipeline.vae_scale_factor

    def prepare_latents(batch_size, channels, height, width, *others):
        assert (channels, height, width) == (
            family.latent_channels(vae),
            *family.size(pipeline.transformer.config, vae),
        )
        raise Stop

    monkeypatch.setattr(pipeline, "prepare_latents", prepare_latents)
    with pytest.raises(Stop):
        pipeline("a fox", max_sequence_length=24)
    pipeline.save_pretrained(tmp_path)
    assert native_size(str(tmp_path)) == family.size(pipeline.transformer.config, vae)


class Spy(diffusers.FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        self.mu = mu
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)


@pytest.mark.parametrize("time_shift_type", ["exponential", "linear"])
@pytest.mark.parametrize("name", NAMES)
def test_noise_levels_are_shifted_as_in_drawing(name, time_shift_type):
    """`mu` is what the pipeline hands to its scheduler, and evenly spaced levels, shifted, are those that it draws at."""
    pipeline = CASES[name]()
    pipeline.set_progress_bar_config(disable=True)
    family, steps = get_family(type(pipeline).__name__), 4
    for height, width, base_shift, max_shift in ((32, 32, 0.5, 1.15), (32, 64, 0.3, 2.0)):
        pipeline.scheduler = Spy(
            use_dynamic_shifting=True, base_shift=base_shift, max_shift=max_shift, base_image_seq_len=16,
            max_image_seq_len=1000, time_shift_type=time_shift_type,
        )  # fmt: skip
        pipeline(
            "a fox",
            num_inference_steps=steps,
            height=height,
            width=width,
            max_sequence_length=24,
            output_type="latent",
        )
        factor = family.pixels_per_latent(pipeline.vae.config)
        mu = family.log_shift(pipeline.scheduler.config, (height // factor) * (width // factor) // family.patch**2)
        assert mu == pytest.approx(pipeline.scheduler.mu, rel=1e-12)
        shift, u = model_shift(pipeline.scheduler.config, mu), np.linspace(1, 1 / steps, steps)
        expected = torch.tensor([*(shift * u / (1 + (shift - 1) * u)), 0.0], dtype=torch.float32)
        torch.testing.assert_close(pipeline.scheduler.sigmas, expected)


def test_the_guard_asks_for_no_guidance_that_there_is_not(folders, tiny, tmp_path, capsys):
    (tmp_path / "dataset").mkdir()
    argv = [
        "train", "--model_name_or_path", str(folders / "FLUX-schnell"), "--dataset_name", str(tmp_path / "dataset"),
        "--output_dir", str(tmp_path / "out"), "--train_distilled", "true", "--max_steps", "1", "--use_cpu", "true",
        "--held_out_rewards", f"imagereward={tiny / 'evaluators/imagereward'}",
        "--guard_prompts", str(tiny / "prompts/tiny-parti.jsonl"),
    ]  # fmt: skip
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "guard_guidance_scale 5.0" in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("torchsde") is not None, reason="torchsde is installed")
def test_a_scheduler_whose_package_is_missing(tiny, tmp_path):
    source, name = tiny / "pipeline", "DPMSolverSDEScheduler"
    with pytest.raises(UsageError, match=f"scheduler {name} needs the package torchsde, which is not installed"):
        check_model(str(source), drawing=SamplingConfig(scheduler=name))
    shutil.copytree(source, tmp_path / "model")
    edit(tmp_path / "model", "scheduler/scheduler_config.json", _class_name=name)
    with pytest.raises(UsageError, match=f"its scheduler {name} needs the package torchsde"):
        check_model(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sdxl_lightning_4step.safetensors", {}, "seems to be distilled to draw in a few steps"),
        ("sdxl_lightning_4step.safetensors", {"train_distilled": True}, None),
        ("hyperrealism.safetensors", {}, None),
        ("mine.safetensors", {"timestep_shift": 3.0}, "timestep_shift 3.0: it is for models of flow matching"),
        (
            "mine.safetensors",
            {"train_guidance_scale": 3.0},
            "the denoiser of a StableDiffusionXLPipeline has no such input",
        ),
    ],
)
def test_a_single_file_without_configuration(tmp_path, name, settings, message):
    file = checkpoint(tmp_path / name)
    with pytest.raises(UsageError, match=message) if message else nullcontext():
        check_model(str(file), train=config(tmp_path, **settings))
    with pytest.raises(
        UsageError, match="negative_prompt 'blurry': guidance_scale 1 of a StableDiffusionXLPipeline leads"
    ):
        check_model(str(file), drawing=SamplingConfig(guidance_scale=1.0, negative_prompt="blurry"))
