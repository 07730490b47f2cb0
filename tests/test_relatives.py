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

"""What docs/source/theory.md says of AWM and DiffusionNFT, worked out on velocities."""

import math

import pytest
import torch

from craft_trl.losses import advantage_weighted_loss, per_sample_mse, proximal_term


@pytest.fixture
def velocities():
    """Of a batch of 16 under the old model and the new one, and what is to be predicted."""
    old, new, target = torch.randn(3, 16, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return old, old + 0.1 * new, target


def squared(x):
    return x.square().flatten(1).sum(1)


class TestAWM:
    """Advantage Weighted Matching: `-A exp(l - l_old)` with `l = -||v_theta - v||^2`, clipped as PPO does."""

    def loss(self, new, old, target, advantages, clip=1.0):
        ratio = (per_sample_mse(old, target) - per_sample_mse(new, target)).exp()
        return -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip))

    def test_its_gradient_at_the_old_model_is_craft_s(self, velocities):
        old, _, target = velocities
        advantages = torch.randn(16, generator=torch.Generator().manual_seed(1))
        new = old.clone().requires_grad_()
        (theirs,) = torch.autograd.grad(self.loss(new, old, target, advantages).mean(), new)
        craft = advantage_weighted_loss(per_sample_mse(new, target), advantages, "keep").mean()
        (ours,) = torch.autograd.grad(craft, new)
        assert ours.abs().max() > 1e-5
        torch.testing.assert_close(theirs, ours)

    def test_craft_s_loss_bounds_its_objective(self, velocities):
        old, new, target = velocities
        advantages = torch.rand(16, generator=torch.Generator().manual_seed(1))
        before, after = (advantage_weighted_loss(per_sample_mse(v, target), advantages) for v in (old, new))
        assert (-self.loss(new, old, target, advantages, clip=math.inf) >= advantages + before - after).all()


class TestNFT:
    """DiffusionNFT: `r ||v+ - v||^2 + (1 - r) ||v- - v||^2`, `v+ = (1-b) v_old + b v_theta`, `v- = (1+b) v_old - b v_theta`."""

    b = 0.3

    def loss(self, new, old, target, r):
        positive, negative = (1 - self.b) * old + self.b * new, (1 + self.b) * old - self.b * new
        return r * squared(positive - target) + (1 - r) * squared(negative - target)

    def test_has_the_linear_term_of_craft(self, velocities):
        old, new, target = velocities
        r = torch.rand(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        a, error, change = 2 * r - 1, old - target, new - old
        linear = 2 * (error * change).flatten(1).sum(1)
        torch.testing.assert_close(
            self.loss(new, old, target, r), squared(error) + self.b * a * linear + self.b**2 * squared(change)
        )
        craft = a * squared(new - target)
        torch.testing.assert_close(craft, a * squared(error) + a * linear + a * squared(change))
        # With a curvature in the place of A the loss has a minimum for any sign.
        tau = 0.5
        proximal = craft + proximal_term(squared(change), a, tau)
        torch.testing.assert_close(proximal, a * squared(error) + a * linear + tau * squared(change))

    def test_minima(self, velocities):
        """Of one prediction for a batch of targets, in closed form, at which the gradients vanish."""
        old, _, target = velocities
        r = torch.rand(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        old, a = old[:1], (2 * r - 1).view(-1, 1, 1, 1)
        theirs = (old + (a * (target - old)).mean(0, keepdim=True) / self.b).requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(theirs, old, target, r).mean(), theirs)
        assert gradient.abs().max() < 1e-12
        weights = r.view(-1, 1, 1, 1)
        ours = ((weights * target).mean(0, keepdim=True) / weights.mean()).requires_grad_()
        (gradient,) = torch.autograd.grad((r * squared(ours - target)).mean(), ours)
        assert gradient.abs().max() < 1e-12

    def test_minimum_of_the_proximal_loss(self, velocities):
        """A step from the old prediction, by the mean of advantage times error over tau: half as long for twice the tau."""
        old, _, target = velocities
        advantages = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        old, a, steps = old[:1], advantages.view(-1, 1, 1, 1), []
        for tau in (0.5, 1.0):
            step = (a * (target - old)).mean(0, keepdim=True) / tau
            lowest = (old + step).requires_grad_()
            loss = advantage_weighted_loss(squared(lowest - target), advantages, "proximal")
            loss = loss + proximal_term(squared(lowest - old), advantages, tau)
            (gradient,) = torch.autograd.grad(loss.mean(), lowest)
            assert gradient.abs().max() < 1e-12
            bound = (advantages * (1 - advantages / tau) * squared(old - target)).mean()
            assert loss.mean() >= bound
            steps.append(step)
        torch.testing.assert_close(steps[0], 2 * steps[1])
