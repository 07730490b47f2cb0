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

"""Steps that are extrapolated, and why by TaylorSeer: a cache must not make an image depend on those beside it."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from torch.utils.flop_counter import FlopCounterMode

from craft_trl import ImageGenerator, SamplingConfig
from craft_trl.errors import UsageError
from craft_trl.families import get_family
from craft_trl.families.checks import check_model
from craft_trl.families.family import computed_steps

from .random_pipelines import CASES


STEPS = 12
CACHING = ("flux_dev", "qwen_image", "flux2_klein")


def sampling(**settings):
    settings = {"num_inference_steps": STEPS, "max_sequence_length": 24, "batch_size": 2} | settings
    return SamplingConfig(height=32, width=32, guidance_scale=4.0, **settings)


@torch.no_grad()
def latents(generator, prompts=("a fox", "a red car"), seeds=(0, 1)):
    return generator._denoise(prompts, seeds, 2)


@pytest.mark.parametrize("name", CACHING)
def test_draws_as_the_pipeline_with_its_own_cache(name):
    pipeline = CASES[name]()
    transformer, calls = pipeline.transformer, []
    generator = ImageGenerator(pipeline, sampling())
    latents(generator)  # which encodes the texts
    with FlopCounterMode(display=False) as flops:
        plain = latents(generator)
    whole = flops.get_total_flops()

    generator = ImageGenerator(pipeline, sampling(cache_interval=3))
    block = transformer.transformer_blocks[0]
    original = block._diffusers_hook.get_hook("taylorseer_cache").fn_ref
    inside = original.original_forward
    original.original_forward = lambda *args, **kwargs: calls.append(1) or inside(*args, **kwargs)
    latents(generator)
    calls.clear()
    with FlopCounterMode(display=False) as flops:
        cached = latents(generator)
    of = get_family(type(pipeline).__name__).calls(4.0)
    # What the plan counts: so many calls, and close to so much work.
    assert len(calls) == of * len(computed_steps(STEPS, 3)) == of * 6
    assert flops.get_total_flops() / whole == pytest.approx(0.5, abs=0.03)
    assert 1e-3 < (cached - plain).abs().max() / plain.abs().max() < 0.2

    # The next batch begins anew; and an image is what it is beside any other.
    assert torch.equal(latents(generator), cached)
    other = latents(generator, ("a fox", "a tiny green house on the moon"), (0, 7))
    assert (other[0] - cached[0]).abs().max() < 1e-6 * cached.abs().max()
    transformer.disable_cache()

    config = TaylorSeerCacheConfig(cache_interval=3, taylor_factors_dtype=torch.float32, use_lite_mode=True)
    transformer.enable_cache(config)
    assert torch.equal(latents(ImageGenerator(pipeline, sampling())), cached)


def test_first_block_cache_makes_an_image_depend_on_its_batch():
    """
    Which is why it is not offered: it skips a step for all images of a batch or for none, by the mean of what changed in them (diffusers
    0.42). To be looked at again when this fails.
    """
    pipeline = CASES["flux_dev"]()
    generator = ImageGenerator(pipeline, sampling())
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.35))
    one, other = (
        latents(generator, ("a fox", text), (0, seed))
        for text, seed in (("a red car", 1), ("a tiny green house on the moon", 7))
    )
    assert (one[0] - other[0]).abs().max() > 1e-4 * one.abs().max()


@pytest.mark.parametrize("name", [name for name in CASES if name not in CACHING and name != "flux_schnell"])
def test_refused(name, tmp_path):
    pipeline = CASES[name]()
    pipeline.save_pretrained(tmp_path)
    length = sampling(cache_interval=3, max_sequence_length=128 if name == "lumina2" else 24)
    with pytest.raises(
        UsageError, match=f"cache_interval 3: diffusers' TaylorSeer does not work on a {type(pipeline).__name__}"
    ):
        check_model(str(tmp_path), drawing=length)


def test_not_compiled(tmp_path):
    CASES["flux_dev"]().save_pretrained(tmp_path)
    check_model(str(tmp_path), drawing=sampling(cache_interval=3))
    with pytest.raises(UsageError, match="cache_interval and torch_compile: compiled blocks cannot be skipped"):
        check_model(str(tmp_path), drawing=sampling(cache_interval=3, torch_compile=True))


def test_refused_of_a_unet(tiny):
    with pytest.raises(UsageError, match="does not work on a StableDiffusionXLPipeline"):
        check_model(str(tiny / "pipeline"), drawing=sampling(cache_interval=3, max_sequence_length=None))
    with pytest.raises(UsageError, match="cache_interval must be from 2 to 1000, got 1"):
        sampling(cache_interval=1)
