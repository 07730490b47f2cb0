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

"""docs/source/theory.md on a diffusion model whose likelihood is exact: one dimension, linear denoiser, Gaussian throughout."""

import math

import pytest
import torch

from craft_trl.losses import advantage_weighted_loss


T = 8
BETAS = torch.linspace(0.02, 0.5, T, dtype=torch.float64)
ALPHAS = 1 - BETAS
ALPHA_BAR = ALPHAS.cumprod(0)
MEAN, VARIANCE = 0.7, 0.6  # of the data, which are the samples of the old model


class LinearDiffusion:
    """
    `eps_theta(x_t, t) = a_t x_t + b_t` with `theta = (a, b)` of shape `(2, T)`. Its reverse process is a chain of linear
    Gaussians, so `p_theta(x_0)` is a Gaussian with known mean and variance.
    """

    def __init__(self):
        # Exact reversal of the noising of N(MEAN, VARIANCE): q(x_{t-1} | x_t) has these variances and the linear means
        # that E[eps | x_t] = sqrt(1 - abar) (x_t - sqrt(abar) MEAN) / Var(x_t) gives.
        marginal = ALPHA_BAR * VARIANCE + 1 - ALPHA_BAR  # Var(x_t), t = 1..T
        before = torch.cat([torch.tensor([VARIANCE], dtype=torch.float64), marginal[:-1]])  # Var(x_{t-1})
        self.sigma2 = before * BETAS / marginal
        a = (1 - ALPHA_BAR).sqrt() / marginal
        self.theta_old = torch.stack([a, -a * ALPHA_BAR.sqrt() * MEAN])
        self.prior = (ALPHA_BAR[-1].sqrt() * MEAN, marginal[-1])
        self.w = BETAS**2 / (2 * self.sigma2 * ALPHAS * (1 - ALPHA_BAR))

    def log_likelihood(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Exact `log p_theta(x_0)`, shape `(N,)`: push mean and variance through the reverse chain."""
        mean, variance = self.prior
        for t in reversed(range(T)):
            a, b = theta[:, t]
            scale = BETAS[t] / (1 - ALPHA_BAR[t]).sqrt()
            slope, offset = (1 - scale * a) / ALPHAS[t].sqrt(), -scale * b / ALPHAS[t].sqrt()
            mean, variance = slope * mean + offset, slope**2 * variance + self.sigma2[t]
        return -0.5 * ((x - mean) ** 2 / variance + torch.log(2 * math.pi * variance))

    def noise_errors(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`E_eps (eps - eps_theta(x_t, t))^2`, exact, shape `(N, T)`."""
        a, b = theta
        return (1 - a * (1 - ALPHA_BAR).sqrt()) ** 2 + (a * ALPHA_BAR.sqrt() * x[:, None] + b) ** 2

    def elbo(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Variational bound with its constant, shape `(N,)`, term by term from its definition."""
        mean, variance = self.prior
        x_T_mean, x_T_variance = ALPHA_BAR[-1].sqrt() * x, 1 - ALPHA_BAR[-1]
        prior = -0.5 * (((x_T_mean - mean) ** 2 + x_T_variance) / variance + torch.log(2 * math.pi * variance))
        alpha_bar_before = torch.cat([torch.ones(1, dtype=torch.float64), ALPHA_BAR[:-1]])
        posterior_variance = BETAS * (1 - alpha_bar_before) / (1 - ALPHA_BAR)  # 0 for t = 1: x_0 is given
        constant = (-0.5 * (torch.log(2 * math.pi * self.sigma2) + posterior_variance / self.sigma2)).sum()
        entropy = 0.5 * torch.log(2 * math.pi * math.e * BETAS).sum()
        return prior + constant + entropy - (self.w * self.noise_errors(theta, x)).sum(1)

    def objective(self, theta, x, advantages) -> torch.Tensor:
        """`J(theta)`, the importance-weighted objective."""
        ratio = (self.log_likelihood(theta, x) - self.log_likelihood(self.theta_old, x)).exp()
        return (ratio * advantages).mean()

    def loss(self, theta, x, advantages, negative_advantages="keep") -> torch.Tensor:
        """`L(theta)`, through the library's own weighting."""
        losses = (self.w * self.noise_errors(theta, x)).sum(1)
        return advantage_weighted_loss(losses, advantages, negative_advantages).mean()

    def constant(self, x, advantages) -> torch.Tensor:
        """`K` of the bound: it does not depend on theta."""
        free = self.elbo(self.theta_old, x) + (self.w * self.noise_errors(self.theta_old, x)).sum(1)
        return (advantages * (1 + free - self.log_likelihood(self.theta_old, x))).mean()


@pytest.fixture
def model():
    return LinearDiffusion()


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    x = MEAN + math.sqrt(VARIANCE) * torch.randn(64, generator=generator, dtype=torch.float64)
    return x, torch.randn(64, generator=generator, dtype=torch.float64)


def perturbed(model, count=300):
    generator = torch.Generator().manual_seed(1)
    for k in range(count):
        scale = 10.0 ** (-3 + 3 * k / count)  # from tiny steps to ruin
        yield model.theta_old + scale * torch.randn(2, T, generator=generator, dtype=torch.float64)


def test_the_old_model_is_the_data_distribution(model, samples):
    x, _ = samples
    expected = -0.5 * ((x - MEAN) ** 2 / VARIANCE + math.log(2 * math.pi * VARIANCE))
    torch.testing.assert_close(model.log_likelihood(model.theta_old, x), expected)


def test_the_elbo_is_a_bound_and_tight_at_the_old_model(model, samples):
    x, _ = samples
    torch.testing.assert_close(model.elbo(model.theta_old, x), model.log_likelihood(model.theta_old, x))
    for theta in perturbed(model):
        assert (model.elbo(theta, x) <= model.log_likelihood(theta, x) + 1e-9).all()


def test_the_loss_bounds_the_objective_for_advantages_that_are_not_negative(model, samples):
    x, advantages = samples
    advantages = advantages.clamp(min=0)
    constant = model.constant(x, advantages)
    gaps = [
        (model.objective(theta, x, advantages) - (constant - model.loss(theta, x, advantages))).item()
        for theta in perturbed(model)
    ]
    assert min(gaps) >= -1e-9
    old = model.objective(model.theta_old, x, advantages) - constant + model.loss(model.theta_old, x, advantages)
    assert abs(old) < 1e-9 < max(gaps)  # tight where training starts, and a real bound elsewhere


def test_clipping_makes_it_a_bound_of_the_clipped_objective(model, samples):
    x, advantages = samples
    clipped = advantages.clamp(min=0)
    for theta in perturbed(model, 20):
        assert model.loss(theta, x, advantages, "zero") == model.loss(theta, x, clipped)


@pytest.mark.parametrize("sign", ["any", "not negative"])
def test_the_gradient_is_the_policy_gradient_at_the_old_model(model, samples, sign):
    x, advantages = samples
    advantages = advantages if sign == "any" else advantages.clamp(min=0)
    theta = model.theta_old.clone().requires_grad_()
    (policy_gradient,) = torch.autograd.grad((advantages * model.log_likelihood(theta, x)).mean(), theta)
    (of_objective,) = torch.autograd.grad(model.objective(theta, x, advantages), theta)
    (of_loss,) = torch.autograd.grad(model.loss(theta, x, advantages), theta)
    assert policy_gradient.abs().max() > 1e-3
    torch.testing.assert_close(of_objective, policy_gradient)
    torch.testing.assert_close(-of_loss, policy_gradient)


def test_away_from_the_old_model_the_gradients_part(model, samples):
    """Why the learning rate has to be small: the equality is one of first order."""
    x, advantages = samples
    theta = (model.theta_old * 1.2).requires_grad_()
    (of_objective,) = torch.autograd.grad(model.objective(theta, x, advantages), theta)
    (of_loss,) = torch.autograd.grad(model.loss(theta, x, advantages), theta)
    assert (of_objective + of_loss).norm() > 0.1 * of_objective.norm()


@pytest.mark.parametrize(("sign", "by"), [("any", 1e-4), ("negative", 1.0)])
def test_the_bound_fails_for_negative_advantages(model, samples, sign, by):
    x, advantages = samples
    advantages = advantages if sign == "any" else -advantages.abs()
    constant = model.constant(x, advantages)
    gaps = [
        (model.objective(theta, x, advantages) - (constant - model.loss(theta, x, advantages))).item()
        for theta in perturbed(model)
    ]
    assert min(gaps) < -by


def test_the_loss_has_no_minimum_for_negative_advantages(model, samples):
    x, _ = samples
    losses = [model.loss(model.theta_old * scale, x, -torch.ones(64, dtype=torch.float64)) for scale in (1, 10, 100)]
    assert losses[0] > losses[1] > losses[2] and losses[2] < -1000
