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


import pytest
import torch
from diffusers import DDPMScheduler

from craft_trl.losses import advantage_weighted_loss, advantage_weights, min_snr_weights, per_sample_mse, proximal_term
from craft_trl.noise import noise_process


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([1, 500, 999])


class TestPerSampleMse:
    def test_hand_worked(self):
        pred = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
        target = torch.tensor([[[0.0, 0.0]], [[0.0, 4.0]]])
        assert per_sample_mse(pred, target).tolist() == [2.5, 8.0]

    def test_is_float32(self):
        # In bfloat16 the square of 1 + 2^-7 would round to 1.015625.
        pred, target = torch.full((1, 4), 1.0078125, dtype=torch.bfloat16), torch.zeros(1, 4, dtype=torch.bfloat16)
        loss = per_sample_mse(pred, target)
        assert loss.dtype == torch.float32 and loss.item() == 1.0078125**2


class TestAdvantageWeightedLoss:
    def test_hand_worked(self):
        losses, advantages = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, -1.0, 1.0])
        assert advantage_weighted_loss(losses, advantages).tolist() == [0.5, 0.0, 4.0]
        assert advantage_weighted_loss(losses, advantages, "keep").tolist() == [0.5, -2.0, 4.0]

    def test_advantage_one_is_supervised_fine_tuning(self):
        losses = torch.rand(5, generator=torch.Generator().manual_seed(0))
        assert torch.equal(advantage_weighted_loss(losses, torch.ones(5)), losses)

    def test_unknown_option(self):
        with pytest.raises(ValueError, match="'zero', 'keep' or 'proximal', got 'clip'"):
            advantage_weights(torch.ones(1), "clip")

    @pytest.mark.parametrize("negative_advantages", ["zero", "keep"])
    def test_gradient_is_that_of_the_written_formula(self, batch, negative_advantages):
        """d/dtheta mean_k A_k || f_theta(x_k) - eps_k ||^2 / D for a linear f, written out."""
        latents, noise, timesteps = batch
        advantages = torch.tensor([1.5, -0.5, 0.0])
        theta = torch.full((4,), 0.3, requires_grad=True)
        noisy_latents = DDPMScheduler().add_noise(latents, noise, timesteps)
        model_pred = theta.view(1, 4, 1, 1) * noisy_latents
        losses = per_sample_mse(model_pred, noise)
        advantage_weighted_loss(losses, advantages, negative_advantages).mean().backward()

        weights = advantages.clamp(min=0) if negative_advantages == "zero" else advantages
        residual = (model_pred - noise).detach()
        per_sample = 2 * (residual * noisy_latents).sum((2, 3)) / noise[0].numel()  # (3, 4)
        torch.testing.assert_close(theta.grad, (weights[:, None] * per_sample).mean(0))

    def test_proximal_hand_worked(self):
        """`A e^2 + 2 A e d + tau d^2` with an error of 2 before, and a step of 1: of 4 - A * 4 by itself."""
        old, new, target = torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([[0.0]])
        for advantage, tau in ((1.5, 0.5), (-1.0, 0.5), (-1.0, 4.0)):
            a = torch.tensor([advantage])
            loss = advantage_weighted_loss(per_sample_mse(new, target), a, "proximal")
            loss = loss + proximal_term(per_sample_mse(new, old), a, tau)
            assert loss.item() == pytest.approx(4 * advantage + 2 * advantage * 2 * 1 + tau)

    def test_weight_zero_has_no_gradient(self):
        losses = torch.tensor([1.0, 2.0], requires_grad=True)
        advantage_weighted_loss(losses, torch.tensor([-3.0, 1.0])).mean().backward()
        assert losses.grad.tolist() == [0.0, 0.5]


class TestMinSnrWeights:
    """`min(SNR, gamma)` times the squared error of the image, whatever the model predicts."""

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow_prediction"])
    def test_is_a_weight_on_the_error_of_the_image(self, prediction_type, batch):
        latents, noise, timesteps = (value.double() for value in batch)
        other = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)).double()
        if prediction_type == "flow_prediction":
            process = noise_process({"_class_name": "FlowMatchEulerDiscreteScheduler"})
            sigma = (timesteps / 1000).view(-1, 1, 1, 1)
            signal, amount = 1 - sigma, sigma
            implied = lambda x, v: x - sigma * v  # noqa: E731
        else:
            scheduler = DDPMScheduler(prediction_type=prediction_type)
            process, timesteps = (
                noise_process(dict(scheduler.config) | {"_class_name": "DDPMScheduler"}),
                timesteps.long(),
            )
            share = scheduler.alphas_cumprod[timesteps].double().view(-1, 1, 1, 1)
            signal, amount = share.sqrt(), (1 - share).sqrt()
            if prediction_type == "epsilon":
                implied = lambda x, eps: (x - amount * eps) / signal  # noqa: E731
            else:
                implied = lambda x, v: signal * x - amount * v  # noqa: E731
        noisy = signal * latents + amount * noise
        target = process.target(latents, noise, timesteps).double()
        torch.testing.assert_close(implied(noisy, target), latents, rtol=1e-5, atol=1e-5)

        errors = (other - target).square().flatten(1).mean(1)
        image_errors = (implied(noisy, other) - latents).square().flatten(1).mean(1)
        snr = (signal / amount).square().flatten()
        expected = snr.clamp(max=5) * image_errors
        torch.testing.assert_close(min_snr_weights(process, timesteps, 5.0) * errors, expected, rtol=1e-4, atol=1e-6)

    def test_is_compute_snr_of_diffusers(self):
        from diffusers.training_utils import compute_snr

        scheduler, timesteps = DDPMScheduler(), torch.arange(0, 1000, 37)
        snr = compute_snr(scheduler, timesteps)
        process = noise_process(dict(scheduler.config) | {"_class_name": "DDPMScheduler"})
        torch.testing.assert_close(min_snr_weights(process, timesteps, 5.0), snr.clamp(max=5) / snr)
