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

"""
docs/source/theory.md on models of diffusion and of rectified flow whose likelihood is exact: one dimension, linear denoiser,
Gaussian throughout.
"""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from craft_trl.losses import advantage_weighted_loss, per_sample_mse
from craft_trl.noise import FlowNoise


T = 8
MEAN, VARIANCE = 0.7, 0.6  # of the data, which are the samples of the old model
ONE = torch.ones(1, dtype=torch.float64)


class LinearDiffusion:
    """
    `eps_theta(x_t, t) = a_t x_t + b_t` with `theta = (a, b)` of shape `(2, T)`. Its reverse process is a chain of linear
    Gaussians, so `p_theta(x_t)` is a Gaussian with known mean and variance.
    """

    def __init__(self, alpha_bar=(1 - torch.linspace(0.02, 0.5, T, dtype=torch.float64)).cumprod(0)):
        self.alpha_bar = alpha_bar  # t = 1..T
        self.alphas = alpha_bar / torch.cat([ONE, alpha_bar[:-1]])
        self.betas = 1 - self.alphas
        # Exact reversal of the noising of N(MEAN, VARIANCE): q(x_{t-1} | x_t) has these variances and the linear means
        # that E[eps | x_t] = sqrt(1 - abar) (x_t - sqrt(abar) MEAN) / Var(x_t) gives.
        marginal = alpha_bar * VARIANCE + 1 - alpha_bar  # Var(x_t)
        before = torch.cat([VARIANCE * ONE, marginal[:-1]])  # Var(x_{t-1})
        self.sigma2 = before * self.betas / marginal
        a = (1 - alpha_bar).sqrt() / marginal
        self.theta_old = torch.stack([a, -a * alpha_bar.sqrt() * MEAN])
        self.prior = (alpha_bar[-1].sqrt() * MEAN, marginal[-1])
        self.w = self.betas**2 / (2 * self.sigma2 * self.alphas * (1 - alpha_bar))

    def marginals(self, theta: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Mean and variance of `p_theta(x_t)`, t = 0..T: pushed through the reverse chain."""
        chain = [self.prior]
        for t in reversed(range(len(self.betas))):
            a, b = theta[:, t]
            scale, root = self.betas[t] / (1 - self.alpha_bar[t]).sqrt(), self.alphas[t].sqrt()
            slope, offset = (1 - scale * a) / root, -scale * b / root
            mean, variance = chain[-1]
            chain.append((slope * mean + offset, slope**2 * variance + self.sigma2[t]))
        return chain[::-1]

    def log_likelihood(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Exact `log p_theta(x_0)`, shape `(N,)`."""
        mean, variance = self.marginals(theta)[0]
        return -0.5 * ((x - mean) ** 2 / variance + torch.log(2 * math.pi * variance))

    def noise_errors(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`E_eps (eps - eps_theta(x_t, t))^2`, exact, shape `(N, T)`."""
        a, b = theta
        return (1 - a * (1 - self.alpha_bar).sqrt()) ** 2 + (a * self.alpha_bar.sqrt() * x[:, None] + b) ** 2

    def elbo(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Variational bound with its constant, shape `(N,)`, term by term from its definition."""
        mean, variance = self.prior
        x_T_mean, x_T_variance = self.alpha_bar[-1].sqrt() * x, 1 - self.alpha_bar[-1]
        prior = -0.5 * (((x_T_mean - mean) ** 2 + x_T_variance) / variance + torch.log(2 * math.pi * variance))
        alpha_bar_before = torch.cat([ONE, self.alpha_bar[:-1]])
        posterior_variance = self.betas * (1 - alpha_bar_before) / (1 - self.alpha_bar)  # 0 for t = 1: x_0 is given
        constant = (-0.5 * (torch.log(2 * math.pi * self.sigma2) + posterior_variance / self.sigma2)).sum()
        entropy = 0.5 * torch.log(2 * math.pi * math.e * self.betas).sum()
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
        yield model.theta_old + scale * torch.randn(model.theta_old.shape, generator=generator, dtype=torch.float64)


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


# Rectified flow: section "On rectified flow" of the page.


def share_below(t: torch.Tensor, sampling: str, shift: float) -> torch.Tensor:
    """Share of the drawn noise levels that lie below `t`."""
    u = t / (shift - (shift - 1) * t)
    return u if sampling == "uniform" else torch.special.ndtr(torch.logit(u))


def flow_weight(t: torch.Tensor, sampling: str, shift: float) -> torch.Tensor:
    """`w(t) = p(t) t / (1 - t)`, from the derivative of the share below."""
    t = t.clone().requires_grad_()
    (density,) = torch.autograd.grad(share_below(t, sampling, shift).sum(), t)
    return (density * t / (1 - t)).detach()


class LinearFlow(LinearDiffusion):
    """
    `v_theta(x_t, t) = a_t x_t + b_t` on `x_t = (1 - t) x_0 + t eps` with T even levels of noise. Over `c = sqrt((1-t)^2 + t^2)`
    this is diffusion with `abar = (1-t)^2 / c^2`, whose likelihoods differ by a constant.
    """

    def __init__(self, sampling="uniform", shift=1.0, levels=40):
        edges = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
        self.t = (edges[1:] + edges[:-1]) / 2
        self.c = ((1 - self.t) ** 2 + self.t**2).sqrt()
        super().__init__(((1 - self.t) / self.c) ** 2)
        a, b = self.theta_old
        self.theta_old = torch.stack([(a / self.c - 1) / (1 - self.t), b / (1 - self.t)])
        # How often a level is drawn in training, and its weight over that in the variational bound.
        self.p = share_below(edges, sampling, shift).nan_to_num(1).diff()
        self.relative = self.p / (1 - self.t) ** 2 / self.w
        self.steps = torch.cat([0 * ONE, self.relative]).diff()  # dw

    def noise_theta(self, theta: torch.Tensor) -> torch.Tensor:
        """`eps = x_t + (1 - t) v` as a function of `x_t / c`."""
        a, b = theta
        return torch.stack([self.c * (1 + (1 - self.t) * a), (1 - self.t) * b])

    def marginals(self, theta):
        return super().marginals(self.noise_theta(theta))

    def noise_errors(self, theta, x):
        return super().noise_errors(self.noise_theta(theta), x)

    def loss(self, theta, x, advantages, negative_advantages="keep"):
        """The loss in use, as it is: levels as they are drawn, an error of weight 1."""
        a, b = theta
        slope, noise = a * (1 - self.t) + 1, 1 - a * self.t  # v = eps - x_0
        errors = noise**2 + (slope * x[:, None] + b) ** 2
        return advantage_weighted_loss((self.p * errors).sum(1), advantages, negative_advantages).mean()

    def objective(self, theta, x, advantages):
        """`J_noise`: `E over dw(s) and q(x_s | x_0)` of `p_theta(x_s) / p_old(x_s) - 1`, a Gaussian integral for each level."""
        alpha_bar = torch.cat([ONE, self.alpha_bar])
        total = 0.0
        levels = zip(alpha_bar, self.steps, self.marginals(theta), self.marginals(self.theta_old), strict=False)
        for share, step, (mean, variance), (mean_old, variance_old) in levels:
            m, q = share.sqrt() * x, 1 - share
            # exp of a quadratic, under N(m, q). q is 0 for images without noise.
            precision = 1 + q / variance - q / variance_old
            h = m + q * (mean / variance - mean_old / variance_old)
            new, old = (x_s_term(m, h, precision, *at) for at in ((mean, variance), (mean_old, variance_old)))
            ratio = (variance_old / variance / precision).sqrt() * (new - old).exp()
            total = total + step * (ratio - 1)
        return (total * advantages).mean()
