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


"""Texts of one family are of one length or of several. Beside which others a prompt is drawn or trained makes no difference."""

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from craft_trl import ImageGenerator, SamplingConfig
from craft_trl.families import get_family
from craft_trl.families.latents import stack

from .random_pipelines import CASES


PROMPTS = ["a fox", "a red car on a table, seen from above", "star"]
VARYING = ("qwen_image", "z_image")


@pytest.mark.parametrize("name", CASES)
def test_predictions(name):
    """Texts that were encoded one by one are joined as those of a dataset are, also with longer ones that are not there."""
    pipeline = CASES[name]()
    family = get_family(type(pipeline).__name__)
    denoiser, vae = getattr(pipeline, family.denoiser), pipeline.vae.config
    length = None if family.max_sequence_length is None else 24
    with torch.no_grad():
        encoded = [family.encode_prompts(pipeline, [prompt], length) for prompt in PROMPTS]
        rows = {key: [one[key][0] for one in encoded] for key in encoded[0]}
        varying = len({text.shape for text in rows["prompt_embeds"]}) > 1
        assert varying or name not in VARYING
        batch = {key: stack(values) for key, values in rows.items()}
        side = 32 // family.pixels_per_latent(vae)
        latents = torch.randn(3, family.latent_channels(vae), side, side, generator=torch.Generator().manual_seed(0))
        timesteps = torch.tensor([800, 500, 300]) if family.noise == "diffusion" else torch.tensor([800.5, 500.0, 3.0])
        images = family.image_conditioning(denoiser.config, 32, 32, 3.5)
        images = {key: value.expand(3, *value.shape) for key, value in images.items()}
        together = family.predict(denoiser, latents, timesteps, batch | images)
        if varying:
            filled = {key: pad(value, (0, 0) * (value.ndim - 2) + (0, 7)) for key, value in batch.items()}
            torch.testing.assert_close(family.predict(denoiser, latents, timesteps, filled | images), together)
        for i, one in enumerate(encoded):
            part = slice(i, i + 1)
            conditioning = one | {key: value[part] for key, value in images.items()}
            alone = family.predict(denoiser, latents[part], timesteps[part], conditioning)
            torch.testing.assert_close(alone, together[part])


@pytest.mark.parametrize("name", VARYING)
def test_images(name):
    generator = ImageGenerator(
        CASES[name](),
        SamplingConfig(num_inference_steps=2, height=32, width=32, batch_size=2, max_sequence_length=24),
    )
    images = generator(PROMPTS, [0, 1, 2])  # the third beside a copy of itself
    again = generator([PROMPTS[2], PROMPTS[1], PROMPTS[0]], [2, 1, 0])[::-1]  # as they were remembered, beside others
    for image, other in zip(images, again, strict=True):
        difference = np.abs(np.asarray(image, int) - np.asarray(other, int))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
