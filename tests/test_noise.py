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


"""Noise processes, against diffusers' schedulers and the formulas of the papers."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from craft_trl.errors import UsageError
from craft_trl.noise import DiffusionNoise, FlowNoise, noise_of, noise_process, separate


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    return latents, noise


def config_of(scheduler):
    return {"_class_name": type(scheduler).__name__, **scheduler.config}


class TestDiffusion:
    timesteps = torch.tensor([1, 500, 999])

    def test_epsilon(self, batch):
        process = noise_process(config_of(DDIMScheduler()))
        assert process.target(*batch, self.timesteps) is batch[1]

    def test_v_prediction(self, batch):
        # v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (https://huggingface.co/papers/2202.00512, appendix D)
        latents, noise = batch
        scheduler = DDPMScheduler(prediction_type="v_prediction")
        alpha_bar = scheduler.alphas_cumprod[self.timesteps].view(-1, 1, 1, 1)
        process = noise_process(config_of(scheduler))
        torch.testing.assert_close(
            process.target(latents, noise, self.timesteps), alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
        )
        torch.testing.assert_close(
            process.add(latents, noise, self.timesteps), alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
        )

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    def test_transition_is_a_step_of_ddim_with_eta_1(self, batch, prediction_type):
        """Of all twenty steps of diffusers' scheduler, the last of which ends at timestep 0, with the same noise."""
        noisy, prediction = batch
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
            steps_offset=1, timestep_spacing="leading", prediction_type=prediction_type,
        )  # fmt: skip
        scheduler.set_timesteps(20)
        process = noise_process(config_of(scheduler))
        chance = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))
        levels = scheduler.timesteps.tolist()
        assert levels == list(range(951, 0, -50))
        for level, lower in zip(levels, [*levels[1:], 0], strict=True):
            expected = scheduler.step(prediction, level, noisy, eta=1.0, variance_noise=chance).prev_sample
            steps = torch.full((3,), level), torch.full((3,), lower)
            mean, std = process.transition(noisy, prediction, *steps), process.transition_std(*steps)
            torch.testing.assert_close(mean + std.view(-1, 1, 1, 1) * chance, expected, atol=2e-5, rtol=2e-4)
        assert std[0].item() == pytest.approx(0.0206, abs=1e-4)  # at the end too there is chance

    def test_draws_every_step_alike(self):
        rng = np.random.default_rng(0)
        process = noise_process(config_of(DDPMScheduler(num_train_timesteps=10)))
        drawn = torch.stack([process.draw(rng) for _ in range(2000)])
        assert drawn.dtype == torch.int64 and drawn.unique().tolist() == list(range(10))
        assert torch.bincount(drawn).min() > 150

    @pytest.mark.parametrize("option", ["timestep_sampling", "timestep_shift"])
    def test_has_no_options_of_flows(self, option):
        with pytest.raises(UsageError, match=f"{option} .*flow matching, and this one is of diffusion"):
            noise_process(config_of(DDPMScheduler()), **{option: 3.0})

    def test_other_prediction_types(self):
        with pytest.raises(UsageError, match="'sample' is not supported"):
            noise_process(config_of(DDPMScheduler(prediction_type="sample")))


class TestFlow:
    timesteps = torch.tensor([1.0, 500.0, 1000.0])

    def test_is_the_scheduler_of_diffusers(self, batch):
        latents, noise = batch
        scheduler = FlowMatchEulerDiscreteScheduler()
        timesteps = scheduler.timesteps[[3, 500, 999]]
        process = noise_process(config_of(scheduler))
        assert isinstance(process, FlowNoise)
        torch.testing.assert_close(
            process.add(latents, noise, timesteps), scheduler.scale_noise(latents, timesteps, noise)
        )

    def test_the_target_leads_back_to_the_image(self, batch):
        latents, noise = batch
        process = noise_process(config_of(FlowMatchEulerDiscreteScheduler()))
        noisy = process.add(latents, noise, self.timesteps)
        sigma = process.sigma(self.timesteps).view(-1, 1, 1, 1)
        torch.testing.assert_close(noisy - sigma * process.target(latents, noise, self.timesteps), latents)

    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_uniform_is_the_sampler_s_own_distribution(self, shift):
        """Of many steps of the model's own sampler, as many lie below a noise level as of many draws."""
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(1000)
        process, rng = noise_process(config_of(scheduler)), np.random.default_rng(0)
        drawn = torch.stack([process.draw(rng) for _ in range(20000)])
        assert drawn.dtype == torch.float32 and drawn.min() >= 0 and drawn.max() <= 1000
        levels = torch.linspace(0.05, 0.95, 19)
        of_draws = torch.quantile(drawn, levels)
        of_steps = torch.quantile(scheduler.timesteps, levels)
        torch.testing.assert_close(of_draws, of_steps, rtol=0, atol=12)

    def test_logit_normal(self):
        """The logit of what is drawn is standard normal, moved by the logarithm of the shift."""
        config, rng = config_of(FlowMatchEulerDiscreteScheduler(shift=3.0)), np.random.default_rng(0)
        process = noise_process(config, timestep_sampling="logit_normal")
        sigma = process.sigma(torch.stack([process.draw(rng) for _ in range(20000)])).double()
        logits = (sigma / (1 - sigma)).log()
        assert logits.mean().item() == pytest.approx(np.log(3), abs=0.02)
        assert logits.std().item() == pytest.approx(1, abs=0.02)

    def test_shifts(self):
        static = config_of(FlowMatchEulerDiscreteScheduler(shift=3.0))
        dynamic = config_of(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
        linear = config_of(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"))
        solver = config_of(
            DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.5)
        )
        assert noise_process(static).shift == 3.0
        assert noise_process(static, timestep_shift=1.0).shift == 1.0
        assert noise_process(solver).shift == 2.5
        assert noise_process(dynamic, log_shift=1.15).shift == pytest.approx(np.exp(1.15))
        assert noise_process(linear, log_shift=1.15).shift == 1.15

    def test_a_dynamic_shift_is_the_scheduler_s(self):
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        process = noise_process(config_of(scheduler), log_shift=0.8)
        u = np.linspace(0.01, 0.99, 7)
        expected = scheduler.time_shift(0.8, 1.0, torch.from_numpy(u))

        class Fixed:
            def __init__(self):
                self.values = iter(u)

            def random(self):
                return next(self.values)

        rng = Fixed()
        got = torch.stack([process.draw(rng) for _ in u]) / 1000
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_kinds():
    assert isinstance(noise_process(config_of(DDIMScheduler())), DiffusionNoise)
    assert isinstance(
        noise_process({"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear"}), DiffusionNoise
    )


@pytest.mark.parametrize(
    ("config", "clean", "levels"),
    [
        (config_of(DDIMScheduler()), -1, [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]),
        (config_of(DDPMScheduler(prediction_type="v_prediction")), -1, [1, 251, 501, 751]),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, 0, [500, 750, 900, 1000]),
    ],
)
def test_image_and_noise(batch, config, clean, levels):
    """What noisy latents are made of comes back from the target, from either of the two, and of the clean image there is no noise."""
    process = noise_process(config)
    assert process.levels(len(levels)).tolist() == pytest.approx(levels)
    latents, noise = batch
    timesteps = process.levels(len(levels))[:3]
    noisy = process.add(latents, noise, timesteps)
    image, seen = process.implied(noisy, process.target(latents, noise, timesteps), timesteps)
    torch.testing.assert_close(image, latents, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(seen, noise, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(noise_of(process, noisy, latents, timesteps), noise, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(separate(process, noisy, noise, timesteps), latents, atol=1e-4, rtol=1e-3)
    alpha, sigma = process.rates(torch.full((3,), clean))
    assert alpha.tolist() == [1.0] * 3 and sigma.tolist() == [0.0] * 3
    assert torch.equal(separate(process, latents, noise, torch.full((3,), clean)), latents)
