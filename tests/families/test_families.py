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

"""Stable Diffusion 1.x beside SDXL, and v-prediction beside epsilon: small random models of the real classes."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from craft_trl import CraftTrainer, ImageGenerator, SamplingConfig
from craft_trl.errors import UsageError
from craft_trl.families import get_family
from craft_trl.losses import per_sample_mse

from ..helpers import config, make_dataset, weights
from ..pipelines import make_pipeline


@pytest.fixture(params=[("sd", "epsilon"), ("sd", "v_prediction"), ("sdxl", "v_prediction")], ids="-".join)
def source(request, tiny, tmp_path):
    folder = tmp_path / "source"
    make_pipeline(*request.param, tiny).save_pretrained(folder)
    return folder, *request.param


def test_generate_train_save_and_load(source, tmp_path):
    folder, family, prediction_type = source
    sampling = SamplingConfig(num_inference_steps=2, height=64, width=64, batch_size=2)
    assert [image.size for image in ImageGenerator(str(folder), sampling)(["a fox", "a car"], [0, 1])] == [
        (64, 64)
    ] * 2

    trainer = CraftTrainer(str(folder), config(tmp_path, learning_rate=1e-3), make_dataset([1.0] * 4))
    assert trainer.noise_process.prediction_type == prediction_type
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert not [name for name in before if torch.equal(before[name], after[name])]
    trainer.save_model()
    pipeline_class = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[family]
    pipeline = pipeline_class.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, after[name]) for name, value in pipeline.unet.state_dict().items())
    assert pipeline("a fox", height=64, width=64, num_inference_steps=1).images[0].size == (64, 64)


def test_the_loss_is_the_error_of_what_the_model_predicts(source, tmp_path):
    """Worked out here with the UNet alone, from the definition of epsilon and of v."""
    folder, family, prediction_type = source
    trainer = CraftTrainer(str(folder), config(tmp_path), make_dataset([1.0] * 4))
    samples = [trainer.train_dataset[k] for k in range(4)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    alpha_bar = trainer.noise_process.scheduler.alphas_cumprod[batch["timesteps"]].view(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * batch["latents"] + (1 - alpha_bar).sqrt() * batch["noise"]
    target = batch["noise"]
    if prediction_type == "v_prediction":
        target = alpha_bar.sqrt() * batch["noise"] - (1 - alpha_bar).sqrt() * batch["latents"]
    added = {}
    if family == "sdxl":
        assert batch["time_ids"][0].tolist() == [64, 64, 0, 0, 64, 64]
        added = {"added_cond_kwargs": {"text_embeds": batch["pooled_prompt_embeds"], "time_ids": batch["time_ids"]}}
    else:
        assert "time_ids" not in batch and "pooled_prompt_embeds" not in batch
    pred = trainer.model(noisy, batch["timesteps"], batch["prompt_embeds"], **added).sample
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), per_sample_mse(pred, target).mean())


@pytest.mark.parametrize("force_zeros", [True, False])
def test_empty_prompt_of_sdxl(tiny, force_zeros):
    pipeline = make_pipeline("sdxl", "epsilon", tiny)
    pipeline.register_to_config(force_zeros_for_empty_prompt=force_zeros)
    empty = get_family("StableDiffusionXLPipeline").encode_empty_prompt(pipeline)
    assert empty["prompt_embeds"].any().item() is not force_zeros
    # As the pipeline itself has it for a missing negative prompt.
    _, negative, _, negative_pooled = pipeline.encode_prompt("a fox")
    torch.testing.assert_close(empty["prompt_embeds"], negative)
    torch.testing.assert_close(empty["pooled_prompt_embeds"], negative_pooled)


def test_empty_prompt_of_stable_diffusion(tiny):
    pipeline = make_pipeline("sd", "epsilon", tiny)
    _, negative = pipeline.encode_prompt("a fox", "cpu", 1, True)
    torch.testing.assert_close(
        get_family("StableDiffusionPipeline").encode_empty_prompt(pipeline)["prompt_embeds"], negative
    )


def test_unknown_family():
    with pytest.raises(
        UsageError,
        match=r"A WanPipeline is not supported\. Supported are .*StableDiffusionPipeline, .*craft_trl/families/pipelines",
    ):
        get_family("WanPipeline")
