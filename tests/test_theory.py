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

import functools
import math

import pytest
import torch
from diffusers import DDPMScheduler

from craft_trl.losses import advantage_weighted_loss, proximal_term
from craft_trl.noise import FlowNoise


ALPHA_BAR = (1 - torch.linspace(0.02, 0.5, 8, dtype=torch.float64)).cumprod(0)  # t = 1..T
MEAN, VARIANCE = 0.7, 0.6  # of the data, which are the samples of the old model
ONE = torch.ones(1, dtype=torch.float64)


class LinearDiffusion:
    """
    `eps_theta(x_t, t) = a_t x_t + b_t` with `theta = (a, b)` of shape `(2, T)`. Its reverse process is a chain of linear
    Gaussians, so `p_theta(x_t)` is a Gaussian with known mean and variance.
    """

    def __init__(self, alpha_bar=ALPHA_BAR):
        self.alpha_bar = alpha_bar
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

    def __init__(self, sampling="uniform", shift=1.0, levels=20):
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
        """`J_noise`: mean over `dw(s)` and `q(x_s | x_0)` of `p_theta(x_s) / p_old(x_s) - 1`, a Gaussian integral at each level."""
        shares, total = torch.cat([ONE, self.alpha_bar]), 0.0
        levels = zip(shares, self.steps, self.marginals(theta), self.marginals(self.theta_old), strict=False)
        for share, step, (new, v_new), (old, v_old) in levels:
            m, q = share.sqrt() * x, 1 - share
            # log of the ratio is -alpha x_s^2 / 2 + beta x_s - gamma
            alpha, beta = 1 / v_new - 1 / v_old, new / v_new - old / v_old
            gamma = (new**2 / v_new - old**2 / v_old + torch.log(v_new / v_old)) / 2
            scale = 1 + q * alpha
            exponent = (-alpha * m**2 / 2 + beta * m + q * beta**2 / 2) / scale - gamma - torch.log(scale) / 2
            total = total + step * torch.expm1(exponent)
        return (total * advantages).mean()

    def gap(self, theta, x, advantages):
        """How far the objective is above its bound, `J_noise(theta) - (L(theta_old) - L(theta))`."""
        bound = self.loss(self.theta_old, x, advantages) - self.loss(theta, x, advantages)
        return (self.objective(theta, x, advantages) - bound).item()


class Fixed:
    """A generator that gives this number."""

    def __init__(self, value):
        self.random = self.standard_normal = lambda: value


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0, math.exp(1.15)])
@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_the_trainer_draws_these_levels(sampling, shift):
    process = FlowNoise({}, shift, sampling)
    numbers = torch.linspace(0.01, 0.99, 15, dtype=torch.float64)
    drawn = numbers if sampling == "uniform" else torch.special.ndtri(numbers)
    levels = process.sigma(torch.stack([process.draw(Fixed(value.item())) for value in drawn])).double()
    torch.testing.assert_close(share_below(levels, sampling, shift), numbers, rtol=0, atol=1e-6)


LEVELS = torch.linspace(1e-5, 1 - 1e-5, 100_001, dtype=torch.float64)


@pytest.mark.parametrize(("shift", "rises"), [(1.0, True), (3.0, True), (6.0, True), (1 / 9, True), (0.1, False)])
def test_the_weight_of_uniform_timesteps_never_falls(shift, rises):
    weight = flow_weight(LEVELS, "uniform", shift)
    torch.testing.assert_close(
        weight, shift * LEVELS / (1 - LEVELS) / (shift - (shift - 1) * LEVELS) ** 2, rtol=1e-9, atol=0
    )
    assert (weight.diff() >= 0).all() == rises


@pytest.mark.parametrize(
    ("shift", "peak", "above"),
    [(1.0, 0.844, 0.046), (3.0, 0.953, 0.028), (6.0, 0.977, 0.025), (math.exp(1.15), 0.955, 0.028)],
)
def test_where_the_weight_of_logit_normal_timesteps_falls(shift, peak, above):
    weight = flow_weight(LEVELS, "logit_normal", shift)
    at = weight.argmax()
    assert (weight[: at + 1].diff() > 0).all() and (weight[at:].diff() < 0).all()
    t = LEVELS[at]
    assert t.item() == pytest.approx(peak, abs=6e-4)
    torch.testing.assert_close(2 * t, torch.logit(t) - math.log(shift), rtol=0, atol=1e-3)  # where it turns
    assert 1 - share_below(t, "logit_normal", shift).item() == pytest.approx(above, abs=6e-4)


def test_the_weight_of_diffusion():
    """Of Stable Diffusion's schedule: with epsilon it falls from step 423 on, with v it never does."""
    schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    alpha_bar = schedule.alphas_cumprod.double()
    log_snr = torch.log(alpha_bar / (1 - alpha_bar))
    of_epsilon = 2 / torch.expm1(log_snr[:-1] - log_snr[1:])  # t = 2..1000, counted from 1
    assert of_epsilon.argmax().item() + 2 == 423
    assert (of_epsilon[420:] / of_epsilon.max())[-1].item() == pytest.approx(0.538, abs=5e-4)
    assert ((of_epsilon / alpha_bar[1:]).diff() > 0).all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_loss_in_use_bounds_the_objective_on_noised_images(samples, shift):
    """Uniform timesteps, which are the default."""
    x, advantages = samples
    model, advantages = LinearFlow("uniform", shift), advantages.clamp(min=0)
    assert (model.steps > 0).all()
    gaps = [model.gap(theta, x, advantages) for theta in perturbed(model, 100)]
    assert min(gaps) >= -1e-9 and max(gaps) > 0.1
    assert abs(model.objective(model.theta_old, x, advantages)) < 1e-12  # tight where training starts


def test_the_loss_in_use_is_a_sum_of_bounds(samples):
    """`L` from the velocity, and from errors of the noise with the weights of the variational bounds of noised images."""
    x, advantages = samples
    model = LinearFlow()
    for theta in perturbed(model, 5):
        errors = model.noise_errors(theta, x) * model.w
        parts = [step * errors[:, s:].sum(1) for s, step in enumerate(model.steps)]
        torch.testing.assert_close((sum(parts) * advantages).mean(), model.loss(theta, x, advantages))


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_of_any_timesteps_the_first_order_is_right(samples, sampling):
    x, advantages = samples
    model = LinearFlow(sampling, 3.0)
    theta = model.theta_old.clone().requires_grad_()
    (of_objective,) = torch.autograd.grad(model.objective(theta, x, advantages), theta)
    (of_loss,) = torch.autograd.grad(model.loss(theta, x, advantages), theta)
    assert of_objective.abs().max() > 1e-3
    torch.testing.assert_close(-of_loss, of_objective)


def test_of_logit_normal_timesteps_the_loss_is_no_bound():
    """
    Where the weight falls, noised images count against the objective. A model that was found by going down the gap, for an
    image far from the mean; the same model keeps the bound of uniform timesteps.
    """
    x = torch.tensor([12.0], dtype=torch.float64)
    change = torch.zeros(2, 20, dtype=torch.float64)
    change[0, 13:] = torch.tensor([0.01, 0.00, -0.03, -0.11, -0.26, 0.00, 0.87])
    change[1, 13:] = torch.tensor([-0.06, -0.08, -0.06, 0.04, 0.36, 0.81, 1.16])
    model, other = LinearFlow("logit_normal"), LinearFlow("uniform")
    assert (model.steps < 0).nonzero().flatten().tolist() == [17, 18, 19]
    assert model.gap(model.theta_old + change, x, ONE) < -0.02
    assert other.gap(other.theta_old + change, x, ONE) > 0


# Section "A bounded loss for advantages of either sign".


def proximal(model, theta, x, advantages, tau):
    """The loss in use, with the library's term: of diffusion weighted like the bound, of a flow as levels are drawn."""
    is_flow = isinstance(model, LinearFlow)
    signal, noise = (1 - model.t, model.t) if is_flow else (model.alpha_bar.sqrt(), (1 - model.alpha_bar).sqrt())
    # x_t is a Gaussian of this mean and deviation, and the difference of two linear predictions is linear in it.
    a, b = theta - model.theta_old
    distances = (a * signal * x[:, None] + b) ** 2 + (a * noise) ** 2  # E_eps, shape (N, T)
    weights = model.p if is_flow else model.w
    return model.loss(theta, x, advantages) + proximal_term((weights * distances).sum(1), advantages, tau).mean()


@pytest.mark.parametrize("kind", [LinearDiffusion, LinearFlow])
class TestProximal:
    tau = 0.7

    def test_its_gradient_is_the_policy_gradient_at_the_old_model(self, kind, samples):
        model, (x, advantages) = kind(), samples
        theta = model.theta_old.clone().requires_grad_()
        (of_loss,) = torch.autograd.grad(proximal(model, theta, x, advantages, self.tau), theta)
        (of_objective,) = torch.autograd.grad(model.objective(theta, x, advantages), theta)
        assert of_objective.abs().max() > 1e-3
        torch.testing.assert_close(-of_loss, of_objective)

    def test_it_is_bounded_below(self, kind, samples):
        """By a number from the old model's errors alone, where the loss without it falls below any."""
        model, (x, advantages) = kind(), samples
        advantages = advantages - 0.5  # most of them negative
        # Of a batch, mean A (1 - A / tau) e^2: the old model's errors, by the library's own loss.
        weights = advantages * (1 - advantages / self.tau)
        bound = model.loss(model.theta_old, x, weights)
        scales = (1e-3, 0.1, 1, 10, 1e3)
        generator = torch.Generator().manual_seed(2)
        for scale in scales:
            for _ in range(40):
                step = scale * torch.randn(model.theta_old.shape, generator=generator, dtype=torch.float64)
                assert proximal(model, model.theta_old + step, x, advantages, self.tau) >= bound - 1e-9
        kept = [model.loss(model.theta_old * scale, x, advantages) for scale in (1, 10, 100)]
        tied = [proximal(model, model.theta_old * scale, x, advantages, self.tau) for scale in (1, 10, 100)]
        assert kept[0] > kept[1] > kept[2] and kept[2] < bound and tied[2] > tied[1] > tied[0]

    def test_it_has_a_minimum_to_which_a_descent_comes(self, kind, samples):
        """In the linear predictions of a level it is a quadratic function, of curvature tau for any advantages."""
        model, (x, advantages) = kind(), samples
        for signed in (advantages - 0.5, -advantages.abs()):
            loss = functools.partial(proximal, model, x=x, advantages=signed, tau=self.tau)
            hessian = torch.autograd.functional.hessian(loss, model.theta_old).reshape(2 * len(model.w), -1)
            ones = torch.autograd.functional.hessian(
                lambda theta: proximal(model, theta, x, torch.full_like(x, self.tau), self.tau), model.theta_old
            ).reshape(2 * len(model.w), -1)
            torch.testing.assert_close(hessian, ones)  # that of A = tau: the advantages have no part in it
            assert torch.linalg.eigvalsh(hessian).min() > 0
            (gradient,) = torch.autograd.grad(loss(theta := model.theta_old.clone().requires_grad_()), theta)
            lowest = model.theta_old - torch.linalg.solve(hessian, gradient.flatten()).reshape(2, -1)
            (rest,) = torch.autograd.grad(loss(lowest := lowest.requires_grad_()), lowest)
            assert rest.abs().max() < 1e-8 and loss(lowest) < loss(model.theta_old)
