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

"""The losses of methods that learn from ranked and scored images, by hand, at the reference model, and where they lead."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from craft_trl.noise import noise_process
from craft_trl.trainer.preference_losses import (
    diffusion_dpo_loss,
    group_loss,
    plackett_luce_loss,
    regression_loss,
    safeguard,
)
from craft_trl.trainer.scored_losses import awm_loss, nft_loss, tgo_loss
from craft_trl.trainer.scored_trainer import as_flow


def all_of(*shape):
    return torch.ones(shape, dtype=torch.bool)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss, *values):
    values = [value.clone().requires_grad_() for value in values]
    return torch.autograd.grad(loss(*values).sum(), values)[0]


class TestPlackettLuce:
    @pytest.mark.parametrize(
        ("m", "value", "weights"),
        [(2, 0.693, (0.5, -0.5)), (3, 1.792, (2 / 3, 1 / 6, -5 / 6)), (4, 3.178, (0.75, 0.41667, -0.08333, -1.08333))],
    )
    def test_at_the_reference(self, m, value, weights):
        """`log m!`; minus its gradient is what is said of a list of m."""
        scores = torch.arange(m, 0, -1).double()[None]
        loss = lambda u: plackett_luce_loss(u, scores, all_of(1, m))  # noqa: E731
        assert loss(torch.zeros(1, m)).item() == pytest.approx(value, abs=1e-3)
        expected = -torch.tensor([weights], dtype=torch.float64)
        torch.testing.assert_close(gradient(loss, torch.zeros(1, m).double()), expected, atol=1e-4, rtol=0)

    def test_of_two_it_is_diffusion_dpo(self):
        errors, reference = random(5, 2).square(), random(5, 2, seed=1).square()
        loss = plackett_luce_loss(3 * (reference - errors), torch.tensor([[1.0, 0.0]]).expand(5, 2), all_of(5, 2))
        torch.testing.assert_close(loss, diffusion_dpo_loss(*errors.unbind(1), *reference.unbind(1), beta=6.0))

    def test_hand_worked(self):
        u = torch.tensor([[1.0, 0.0, 2.0]])
        expected = math.log(math.e + 1 + math.e**2) - 1 + math.log(1 + math.e**2) - 0
        loss = plackett_luce_loss(u, torch.tensor([[3.0, 2.0, 1.0]]), all_of(1, 3))
        assert loss.item() == pytest.approx(expected)
        # Neither the order of the images nor a constant matters; the order of their scores does.
        turned = plackett_luce_loss(u[:, [2, 0, 1]] + 7, torch.tensor([[1.0, 3.0, 2.0]]), all_of(1, 3))
        assert turned.item() == pytest.approx(expected, rel=1e-5)
        assert plackett_luce_loss(u, torch.tensor([[1.0, 2.0, 3.0]]), all_of(1, 3)).item() != pytest.approx(expected)

    def test_shorter_lists_and_equal_scores(self):
        u, scores = random(2, 3), torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
        mask = torch.tensor([[True, True, False], [True, True, True]])
        loss = plackett_luce_loss(u, scores, mask)
        torch.testing.assert_close(loss[:1], plackett_luce_loss(u[:1, :2], scores[:1, :2], all_of(1, 2)))
        slope = gradient(lambda u: plackett_luce_loss(u, scores, mask), u)
        assert slope[0, 2] == 0 and slope.isfinite().all() and slope[1].all()
        equal = gradient(lambda u: plackett_luce_loss(u, torch.zeros(1, 3), all_of(1, 3)), torch.zeros(1, 3).double())
        torch.testing.assert_close(equal, torch.zeros_like(equal))
        # Each of two that are equal has the other for a rival.
        for tied, value in (([0.0, 0.0, 0.0], 3 * math.log(3)), ([2.0, 1.0, 1.0], math.log(3) + 2 * math.log(2))):
            loss = plackett_luce_loss(torch.zeros(1, 3), torch.tensor([tied]), all_of(1, 3))
            assert loss.item() == pytest.approx(value)


class TestGroup:
    def test_of_two_it_is_diffusion_dpo(self):
        errors, reference = random(5, 2).square(), random(5, 2, seed=1).square()
        advantages = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(5, 2)
        loss = group_loss(3 * (reference - errors), advantages, all_of(5, 2))
        torch.testing.assert_close(loss, diffusion_dpo_loss(*errors.unbind(1), *reference.unbind(1), beta=6.0))

    def test_hand_worked(self):
        u, advantages = torch.tensor([[0.5, -0.5, 0.1]]), torch.tensor([[1.2, -0.7, -0.5]])
        inside = 2 / 3 * (1.2 * 0.5 + 0.7 * 0.5 - 0.5 * 0.1)
        assert group_loss(u, advantages, all_of(1, 3)).item() == pytest.approx(math.log(1 + math.exp(-inside)))
        mask = torch.tensor([[True, True, False]])
        inside = 0.6 + 0.35
        assert group_loss(u, advantages, mask).item() == pytest.approx(math.log(1 + math.exp(-inside)))


class TestRegression:
    @pytest.mark.parametrize("temperature", [0.5, 1.0])
    def test_it_ends_at_its_optimum(self, temperature):
        """`u_k = m w_k / (2 penalty)`, of shorter lists too, and 0 where all scores are equal."""
        scores = torch.tensor([[1.0, 0.2, -1.2], [0.7, -0.7, 9.0], [2.0, 2.0, 2.0]])
        mask = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
        weights = torch.stack(
            [
                (scores[0] / temperature).softmax(0) - 1 / 3,
                torch.cat([(scores[1, :2] / temperature).softmax(0) - 1 / 2, torch.zeros(1)]),
                torch.zeros(3),
            ]
        )
        loss = lambda u: regression_loss(u, scores, mask, temperature, penalty=2.0)  # noqa: E731
        assert loss(torch.zeros(3, 3)).tolist() == [0, 0, 0]
        torch.testing.assert_close(gradient(loss, torch.zeros(3, 3)), -weights)
        u = torch.zeros(3, 3)
        for _ in range(200):
            u = u - 0.2 * gradient(loss, u)
        torch.testing.assert_close(u, weights * torch.tensor([[3.0], [2.0], [3.0]]) / 4, atol=1e-4, rtol=1e-4)


class TestSafeguard:
    def test_hand_worked(self):
        chosen = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
        rejected = torch.tensor([[0.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [4.0, 3.0], [0.1, 0.0]])
        # At right angles; equal; opposed; a long one; one so short that it may pass as it is.
        expected = torch.tensor([1.0, 0.1, 1.0, 0.1 / 4, 1.0])
        torch.testing.assert_close(safeguard(chosen, rejected, mu=0.9), expected)
        assert safeguard(chosen, rejected, mu=1.0).tolist() == [1, 0, 1, 0, 0]

    def test_the_chosen_image_is_never_made_worse(self):
        """In what is predicted: a step along `-d_w + lambda d_l` shortens `d_w` by at least `mu` of what it could."""
        chosen, rejected = random(50, 4, 3), random(50, 4, 3, seed=1) + random(50, 4, 3)
        for mu in (0.0, 0.6, 1.0):
            passed = safeguard(chosen, rejected, mu)
            assert ((passed >= 0) & (passed <= 1)).all() and (passed < 1).any()
            step = (-chosen + passed[:, None, None] * rejected).flatten(1)
            assert ((step * chosen.flatten(1)).sum(1) <= -mu * chosen.flatten(1).square().sum(1) + 1e-6).all()


class TestNFT:
    def loss(self, change, advantages, beta=1.0, errors=None):
        errors = random(4, 3, 5) if errors is None else errors
        return nft_loss(errors + change, errors, torch.as_tensor(advantages, dtype=torch.float64).expand(4), beta)

    @pytest.mark.parametrize("beta", [0.1, 1.0])
    def test_at_the_reference(self, beta):
        """The value does not depend on the advantage, and the gradient is the advantage times that of the error, for any beta."""
        errors, zero = random(4, 3, 5), torch.zeros(4, 3, 5).double()
        size = errors.flatten(1).abs().mean(1)
        expected = 5 / beta * errors.flatten(1).square().mean(1) / size
        for advantage in (2.0, 0.0, -3.0):
            torch.testing.assert_close(self.loss(zero, advantage, beta), expected)
            slope = gradient(lambda change, a=advantage: self.loss(change, a, beta), zero)
            torch.testing.assert_close(slope, advantage * 2 * errors / 15 / size[:, None, None])

    def test_symmetry(self):
        change = 0.3 * random(4, 3, 5, seed=1)
        torch.testing.assert_close(self.loss(change, 1.7), self.loss(-change, -1.7))

    def test_of_the_best_it_is_fine_tuning(self):
        """With an advantage at the clip, or beyond, and beta 1: the model's own error, whatever the reference."""
        errors, change = random(4, 3, 5), random(4, 3, 5, seed=1)
        own = (errors + change).flatten(1)
        for advantage in (5.0, 8.0):
            torch.testing.assert_close(self.loss(change, advantage), 5 * own.square().mean(1) / own.abs().mean(1))

    def test_an_advantage_of_zero_ties_to_the_reference(self):
        change = random(4, 3, 5, seed=1)
        slope = gradient(lambda change: self.loss(change, 0.0), change)
        assert ((slope * change).flatten(1).sum(1) > 0).all()

    @pytest.mark.parametrize(("advantage", "end"), [(2.0, 0.5), (-2.0, 1.5)])
    def test_it_ends_somewhere(self, advantage, end):
        """With beta 2 where one of its branches is without error: also of a bad image, from which `keep` would push on and on."""
        errors, change = random(4, 3, 5), torch.zeros(4, 3, 5).double()
        for step in range(400):
            slope = gradient(lambda change: self.loss(change, advantage, 2.0), change)
            change = change - 2 / (1 + step / 5) * slope
        torch.testing.assert_close(errors + change, end * errors, atol=0.05, rtol=0)


class TestAWM:
    LEVELS = torch.tensor([0.2, 0.9], dtype=torch.float64)

    def loss(self, errors, advantages, reference=(0.3, 0.4), distances=(0.0, 0.0), **options):
        errors, reference, distances, advantages = (
            torch.as_tensor(values, dtype=torch.float64) for values in (errors, reference, distances, advantages)
        )
        return awm_loss(errors, reference, distances, self.LEVELS, advantages, **options)

    def test_at_the_reference(self):
        """`-A`; a gradient of `A t error^(-3/4)`."""
        reference = torch.tensor([0.3, 0.4], dtype=torch.float64)
        assert self.loss(reference, [2.0, -9.0]).tolist() == [-0.4, 1.0]
        slope = gradient(lambda errors: self.loss(errors, [2.0, -9.0]), reference)
        expected = torch.tensor([0.4, -1.0]).double() * self.LEVELS * reference**-0.75
        torch.testing.assert_close(slope, expected, rtol=1e-5, atol=0)

    def test_clipped(self):
        """Nothing more is to be had of a good image beyond the range, nor of a bad one; the other ways lead back."""
        slope = lambda errors, advantages: gradient(  # noqa: E731
            lambda e: self.loss(e, advantages, clip_range=0.01), torch.tensor(errors, dtype=torch.float64)
        )
        assert slope([0.2, 0.3], [1.0, 1.0]).tolist() == [0, 0] == slope([0.4, 0.5], [-1.0, -1.0]).tolist()
        assert (slope([0.4, 0.5], [1.0, 1.0]) > 0).all() and (slope([0.2, 0.3], [-1.0, -1.0]) < 0).all()

    def test_tie(self):
        reference = (0.3, 0.4)
        tied = self.loss(reference, [0.0, 0.0], distances=(1.0, 2.0), kl_beta=0.5)
        assert tied.tolist() == [0.5, 1.0]


class TestTGO:
    def test_hand_worked(self):
        u, scores = torch.tensor([0.3, 0.3, -2.0]), torch.tensor([0.5, -0.5, 0.0])
        expected = [3.5 * math.log(1 + math.exp(-0.3)), 3.5 * math.log(1 + math.exp(0.3)), math.log(1 + math.exp(2))]
        assert tgo_loss(u, scores).tolist() == pytest.approx(expected)
        torch.testing.assert_close(gradient(lambda u: tgo_loss(u, scores), 0 * u), torch.tensor([-1.75, 1.75, -0.5]))

    def test_a_push_has_an_end(self):
        far = torch.tensor([60.0, -60.0])
        scores = torch.tensor([1.0, -1.0])
        assert tgo_loss(far, scores).max() < 1e-6 and gradient(lambda u: tgo_loss(u, scores), far).abs().max() < 1e-6


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow_prediction"])
def test_errors_of_a_flow(prediction_type):
    """Of one and the same wrong image, whatever the model predicts."""
    wrong, latents, noise = random(3, 4, 8, 8), random(3, 4, 8, 8, seed=1), random(3, 4, 8, 8, seed=2)
    timesteps = torch.tensor([1, 500, 950])
    if prediction_type == "flow_prediction":
        process = noise_process({"_class_name": "FlowMatchEulerDiscreteScheduler"})
        timesteps = timesteps.double()
        sigma = (timesteps / 1000).view(-1, 1, 1, 1)
        a, s = 1 - sigma, sigma
    else:
        scheduler = DDPMScheduler(prediction_type=prediction_type)
        process = noise_process(dict(scheduler.config) | {"_class_name": "DDPMScheduler"})
        share = scheduler.alphas_cumprod[timesteps].double().view(-1, 1, 1, 1)
        a, s = share.sqrt(), (1 - share).sqrt()
    noisy = a * latents + s * noise
    implied = {  # what is predicted by one who takes the image for `wrong`
        "epsilon": (noisy - a * wrong) / s,
        "v_prediction": a * (noisy - a * wrong) / s - s * wrong,
        "flow_prediction": (noisy - wrong) / s,
    }[prediction_type]
    error = implied - process.target(latents, noise, timesteps).double()
    torch.testing.assert_close(
        (process.error_scale(timesteps).double().rsqrt().view(-1, 1, 1, 1) * error).abs(),
        (wrong - latents).abs(),
        rtol=1e-4,
        atol=1e-4,
    )
    levels, weights = as_flow(process, timesteps)
    expected = (s / (a + s)).flatten()
    torch.testing.assert_close(levels.double(), expected, rtol=1e-4, atol=1e-6)
    velocity_error = (wrong - latents) / expected.view(-1, 1, 1, 1)
    torch.testing.assert_close(
        weights.double() * error.square().flatten(1).mean(1),
        velocity_error.square().flatten(1).mean(1),
        rtol=1e-3,
        atol=0,
    )
