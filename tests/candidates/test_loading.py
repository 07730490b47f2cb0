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

"""What is loaded of the files that there are: variants, single files that say what they predict, lengths of texts."""

import diffusers
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from craft_trl import ImageGenerator, SamplingConfig
from craft_trl.candidates.loading import load_network, load_pipeline
from craft_trl.errors import UsageError
from craft_trl.families.checks import check_model
from craft_trl.scripts.export import ExportArguments
from craft_trl.scripts.export import main as export

from ..models import edit, linked, renamed
from ..pipelines import make_pipeline


def config(**settings):
    return SamplingConfig(**{"num_inference_steps": 2, "batch_size": 1, "height": 64, "width": 64, **settings})


def draw(model, **settings):
    return np.asarray(ImageGenerator(model, config(**settings))(["a fox"], [1])[0])


def in_cache(repo_id, folder, cache, monkeypatch):
    """A repository of the files of a folder, in the Hub's cache of a machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    root = cache / f"models--{repo_id.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    (root / "snapshots").mkdir()
    (root / "snapshots" / ("a" * 40)).symlink_to(folder)


class TestVariant:
    @pytest.fixture
    def half(self, tiny, tmp_path):
        """The UNet as a variant in float16 only, and the other networks as variants in float32."""
        folder = linked(tiny / "pipeline", tmp_path / "model")
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({name: value.half() for name, value in load_file(file).items()}, file.with_suffix(".new"))
        file.with_suffix(".new").rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
        file.unlink()
        renamed(folder, "model.safetensors", "model.fp16.safetensors")
        return folder

    def test_is_cast_as_asked(self, half, tiny):
        check_model(str(half))
        rounded = {
            name: value.half().float()
            for name, value in load_file(tiny / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").items()
        }
        pipeline = load_pipeline(str(half))
        assert (
            pipeline.unet.dtype == torch.float32
            and load_pipeline(str(half), torch.bfloat16).vae.dtype == torch.bfloat16
        )
        for unet in (pipeline.unet, load_network(UNet2DConditionModel, str(half), component="unet")):
            state_dict = unet.state_dict()
            assert all(torch.equal(value, state_dict[name]) for name, value in rounded.items())
        assert np.abs(draw(pipeline).astype(int) - draw(str(tiny / "pipeline"))).max() <= 8

    def test_of_another_vae(self, half, tmp_path):
        vae = load_network(AutoencoderKL, str(half / "vae"))
        vae.save_pretrained(tmp_path / "vae", variant="bf16")
        assert (draw(str(half), vae_name_or_path=str(tmp_path / "vae")) == draw(str(half))).all()

    def test_of_a_network_alone(self, half, tmp_path):
        with pytest.raises(UsageError, match="diffusion_pytorch_model.safetensors is missing"):
            load_network(AutoencoderKL, str(tmp_path))


def test_from_the_cache(tiny, tmp_path, monkeypatch):
    folder = linked(tiny / "pipeline", tmp_path / "model")
    in_cache("org/tiny", folder, tmp_path / "hub", monkeypatch)
    check_model("org/tiny")
    check_model("org/tiny", "a" * 40)
    assert (draw("org/tiny") == draw(str(folder))).all()
    with pytest.raises(UsageError, match="Model org/tiny: there is no such folder, and the Hub says: "):
        check_model("org/tiny", "another")
    # What is not in the cache may be on the Hub, which cannot be asked.
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    check_model("org/tiny")
    with pytest.raises(UsageError, match="Model org/tiny cannot be loaded: ") as error:
        load_pipeline("org/tiny")
    assert "\n" not in str(error.value)


class TestSingleFile:
    """Without a configuration beside it: the file says itself that it predicts v, or it predicts epsilon."""

    @pytest.fixture
    def file(self, tiny, tmp_path, monkeypatch):
        pipeline = make_pipeline("sd", "epsilon", tiny)
        pipeline.save_pretrained(tmp_path / "folder")
        edit(tmp_path / "folder", "scheduler/scheduler_config.json", _class_name="PNDMScheduler", steps_offset=1)
        edit(tmp_path / "folder", "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
        in_cache("stable-diffusion-v1-5/stable-diffusion-v1-5", tmp_path / "folder", tmp_path / "hub", monkeypatch)
        (tmp_path / "single").mkdir()
        export(ExportArguments(model="folder", format="single-file", output="single/model.safetensors"))
        return tmp_path / "single" / "model.safetensors"

    @pytest.mark.parametrize(
        ("markers", "name", "settings"),
        [
            ((), "PNDMScheduler", {"prediction_type": "epsilon"}),
            (("v_pred",), "PNDMScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "leading"}),
            (
                ("v_pred", "ztsnr"),
                "DDIMScheduler",  # which knows of zero terminal SNR
                {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            ),
        ],
    )
    def test_markers(self, file, markers, name, settings):
        save_file({**load_file(file), **{marker: torch.empty(0) for marker in markers}}, file)
        check_model(str(file))
        scheduler = load_pipeline(str(file)).scheduler
        assert type(scheduler).__name__ == name
        assert settings.items() <= dict(scheduler.config).items()
        assert scheduler.config.beta_start == 0.00085 and scheduler.config.beta_schedule == "scaled_linear"


def test_a_distilled_model_is_drawn_with_the_guidance_scale_as_its_input(tiny, tmp_path):
    """As its own pipeline does: without a second call for the negative prompt, which changes nothing."""
    folder = linked(tiny / "pipeline", tmp_path / "model")
    edit(folder, "unet/config.json", time_cond_proj_dim=32)
    with pytest.raises(
        UsageError, match="its UNet2DConditionModel lacks the weights of time_embedding.cond_proj.weight"
    ):
        load_pipeline(str(folder))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file) | {"time_embedding.cond_proj.weight": torch.randn(48, 32)}
    file.unlink()
    save_file(weights, file)
    pipeline = load_pipeline(str(folder))
    by_hand = pipeline(
        "a fox",
        num_inference_steps=2,
        guidance_scale=5.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(1),
    )
    assert np.abs(draw(pipeline).astype(int) - np.asarray(by_hand.images[0])).max() <= 1
    assert (draw(pipeline) == draw(pipeline, negative_prompt="a car")).all()
    assert (draw(pipeline) != draw(pipeline, guidance_scale=2.0)).any()


def test_a_text_encoder_that_lacks_weights(tiny, tmp_path):
    folder = linked(tiny / "pipeline", tmp_path / "model")
    file = folder / "text_encoder_2" / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    save_file(dict(list(weights.items())[:-1]), file)
    with pytest.raises(
        UsageError, match=f"its text_encoder_2 lacks weights, there are only {len(weights) - 1} tensors"
    ):
        load_pipeline(str(folder))


def test_what_is_refused_is_not_loaded(tiny, tmp_path, monkeypatch):
    folder = linked(tiny / "pipeline", tmp_path / "model")
    edit(folder, "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", None)
    with pytest.raises(UsageError, match="its scheduler is FlowMatchEulerDiscreteScheduler"):
        ImageGenerator(str(folder), config())


@pytest.mark.parametrize("stated", [..., 512])
def test_a_text_is_as_long_as_the_encoder_has_positions(tiny, tmp_path, stated):
    folder = linked(tiny / "pipeline", tmp_path / "model")
    for name in ("tokenizer", "tokenizer_2"):
        edit(folder, f"{name}/tokenizer_config.json", model_max_length=stated)
    pipeline = load_pipeline(str(folder))
    assert pipeline.tokenizer.model_max_length == pipeline.tokenizer_2.model_max_length == 32
    assert (draw(pipeline) == draw(str(tiny / "pipeline"))).all()
