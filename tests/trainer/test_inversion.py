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

"""InPO and SmPO: inversion against what can be computed by hand and against sampling, smoothing, and what training does."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from craft_trl import DiffusionDPOConfig, DiffusionDPOTrainer
from craft_trl.errors import UsageError
from craft_trl.noise import noise_process
from craft_trl.trainer.fsdp import check_shards
from craft_trl.trainer.inversion import Inversion

from ..helpers import config as craft_config
from ..helpers import stack, weights
from .test_dpo import make_pairs


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DEVIATION = 2.0


def toy(kind):
    """A noise process and the exact prediction of a model of pixels that are normal, of deviation 2, with the calls it had."""
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    process = noise_process(
        flow if kind == "flow" else {"_class_name": "DDIMScheduler", "prediction_type": kind, **BETAS}
    )
    calls = []

    def predict(noisy, timesteps, rows=None):
        calls.append(len(noisy))
        alpha, sigma = (rate.view(-1, 1, 1, 1) for rate in process.rates(timesteps))
        variance = (alpha * DEVIATION) ** 2 + sigma**2
        image, noise = alpha * DEVIATION**2 * noisy / variance, sigma * noisy / variance
        return {"epsilon": noise, "v_prediction": alpha * noise - sigma * image, "flow": noise - image}[kind]

    return process, predict, calls


def images(count=4):
    return DEVIATION * torch.randn((count, 4, 8, 8), generator=torch.Generator().manual_seed(0))


def sample(process, predict, noisy, levels):
    """DDIM, or Euler's method of a flow, from the highest of these levels down to the clean image."""
    levels = [process.clean, *levels.tolist()]
    for here, there in zip(levels[:0:-1], levels[-2::-1], strict=True):
        here, there = (torch.full((len(noisy),), value) for value in (here, there))
        image, noise = process.implied(noisy, predict(noisy, here), here)
        alpha, sigma = (rate.view(-1, 1, 1, 1) for rate in process.rates(there))
        noisy = alpha * image + sigma * noise
    return noisy


class TestInversion:
    @pytest.mark.parametrize("renoise", [False, True])
    @pytest.mark.parametrize("steps", [1, 7])
    def test_a_model_that_always_says_the_same_noise(self, steps, renoise):
        """Then that is the noise, and the denoising error is 0, at any grid."""
        process, _, _ = toy("epsilon")
        latents, said = images(), torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        inversion = Inversion(process, steps, renoise)
        timesteps = inversion.levels[[0, -1, steps // 2, 0]]
        noise = inversion.noise(lambda noisy, timesteps, rows: said.expand_as(noisy), latents, timesteps)
        torch.testing.assert_close(noise, said.expand_as(noise), atol=1e-4, rtol=1e-3)

    @pytest.mark.parametrize(
        ("kind", "steps", "plain", "renoised"),
        [
            ("epsilon", 10, 0.0834, 0.0493),
            ("epsilon", 50, 0.0203, 0.0106),
            ("v_prediction", 10, 0.2839, 0.1640),
            ("v_prediction", 50, 0.0664, 0.0343),
            ("flow", 10, 0.1663, 0.0913),
            ("flow", 50, 0.0338, 0.0173),
        ],
    )
    def test_sampling_gives_the_image_back(self, kind, steps, plain, renoised):
        """Up to an error, of the image's deviation, that falls with the steps and that ReNoise halves."""
        process, predict, _ = toy(kind)
        errors = []
        for renoise in (False, True):
            inversion, latents = Inversion(process, steps, renoise), images()
            timesteps = inversion.levels[[-1] * 4]
            noisy = process.add(latents, inversion.noise(predict, latents, timesteps), timesteps)
            back = sample(process, predict, noisy, inversion.levels)
            errors.append((back - latents).square().mean().sqrt().item() / DEVIATION)
        assert errors == pytest.approx([plain, renoised], abs=2e-3)

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
    def test_goes_where_the_equation_goes(self, kind):
        """Of normal pixels the exact path is known: `x_t` grows as `sqrt((alpha_t d)^2 + sigma_t^2) / d`."""
        process, predict, _ = toy(kind)
        inversion, latents = Inversion(process, 200, True), images()
        timesteps = inversion.levels[[40, 100, 150, 199]]
        alpha, sigma = (rate.view(-1, 1, 1, 1) for rate in process.rates(timesteps))
        noisy = process.add(latents, inversion.noise(predict, latents, timesteps), timesteps)
        exact = latents * ((alpha * DEVIATION) ** 2 + sigma**2).sqrt() / DEVIATION
        assert (noisy - exact).square().mean().sqrt() < 0.02

    @pytest.mark.parametrize("renoise", [False, True])
    def test_samples_do_not_depend_on_each_other(self, renoise):
        process, predict, calls = toy("epsilon")
        inversion, latents = Inversion(process, 6, renoise), images()
        timesteps = inversion.levels[[5, 0, 2, 2]]
        together = inversion.noise(predict, latents, timesteps)
        # A sample goes through the model once for each level up to its own, or twice.
        assert sum(calls) == (6 + 1 + 3 + 3) * (2 if renoise else 1)
        for i in range(4):
            assert torch.equal(inversion.noise(predict, latents[[i]], timesteps[[i]])[0], together[i])

    def test_timesteps_are_those_of_the_grid(self):
        inversion, rng = Inversion(toy("epsilon")[0], 10), np.random.default_rng(0)
        drawn = [int(inversion.draw(rng)) for _ in range(2000)]
        assert sorted(set(drawn)) == list(range(1, 1000, 100))
        assert 150 < min(map(drawn.count, set(drawn))) and max(map(drawn.count, set(drawn))) < 250


def make_scored(n=3):
    """Pairs of images with scores."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(2 * n)]
    prompts = ["a fox", "a red car", "a star"][:n]
    rows = {
        "prompt": [prompt for prompt in prompts for _ in range(2)],
        "image": pictures,
        "advantage": [0.1, 0.9, 0.7, 0.4, 0.0, 1.0][: 2 * n],
        "group_id": [group for group in range(n) for _ in range(2)],
    }
    features = {
        "prompt": Value("string"),
        "image": ImageFeature(),
        "advantage": Value("float32"),
        "group_id": Value("int64"),
    }
    return Dataset.from_dict(rows, features=Features(features))


@pytest.fixture
def make_trainer(tiny, tmp_path):
    def make(dataset=None, pipeline=tiny / "pipeline", **settings):
        shared = craft_config(tmp_path).to_dict()
        names = ("output_dir", "max_steps", "lr_scheduler_type", "save_strategy", "use_cpu", "disable_tqdm")
        own = {"per_device_train_batch_size": 3, "learning_rate": 1e-4, "beta": 100.0}
        args = DiffusionDPOConfig(**{**{name: shared[name] for name in names}, **own, **settings})
        return DiffusionDPOTrainer(str(pipeline), args, dataset or make_scored())

    return make


def moved(trainer):
    """The trainer, with another model than the reference."""
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return trainer


def gradients(trainer, batch):
    loss = trainer.compute_loss(trainer.model, batch)
    return loss.detach(), torch.autograd.grad(loss, list(trainer.model.parameters()))


class TestLoss:
    def test_smoothing(self, make_trainer):
        """`beta` of each pair is multiplied by `10 (2 p - 1)`, where `p` is the logistic function of the difference of scores."""
        plain, smooth = moved(make_trainer()), moved(make_trainer(smoothing=10.0))
        for gap in (0.8, 0.3):
            batch = stack(smooth, [0])
            batch["advantage"] = torch.tensor([[gap, 0.0]])
            p = 1 / (1 + math.exp(-gap))
            plain.args.beta = 100.0 * 10 * (2 * p - 1)
            ours, expected = (gradients(trainer, batch) for trainer in (smooth, plain))
            assert abs(expected[0] - math.log(2)) > 1e-3
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)

    def test_equal_scores_teach_nothing(self, make_trainer):
        trainer = moved(make_trainer(smoothing=10.0))
        batch = stack(trainer, [0, 1])
        batch["advantage"] = torch.full((2, 2), 0.5)
        loss, grads = gradients(trainer, batch)
        # `global_batch_size` is 3, and this is two samples of it.
        assert loss.item() == pytest.approx(math.log(2) * 2 / 3, abs=1e-6) and not any(grad.any() for grad in grads)

    @pytest.mark.parametrize("renoise", [False, True])
    def test_inversion_has_no_gradient(self, make_trainer, renoise):
        """The gradient is that of a loss whose noise is given; model and reference see the same, each image its own."""
        trainer = moved(make_trainer(inversion_steps=4, renoise=renoise))
        batch = stack(trainer, [0, 1, 2])
        assert {int(t) for t in batch["timesteps"]} <= {1, 251, 501, 751}
        inversion, taken = trainer.inversion, []

        def keep(*arguments):
            taken.append(inversion.noise(*arguments))
            return taken[-1]

        trainer.inversion = SimpleNamespace(noise=keep)
        loss, grads = gradients(trainer, batch)
        assert not taken[0].requires_grad and taken[0].shape == (6, 4, 16, 16)
        assert not torch.equal(taken[0][:3], taken[0][3:])
        trainer.inversion = SimpleNamespace(noise=lambda *arguments: taken[0])
        again, expected = gradients(trainer, batch)
        assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))

    def test_renoise_on_the_tiny_model(self, make_trainer):
        """Its own noise is about as strong as noise, and ReNoise brings sampling closer to the image."""
        trainer = make_trainer(inversion_steps=10)
        batch = stack(trainer, [0])
        latents, process = batch["latents"][:, 0], trainer.noise_process

        @torch.no_grad()
        def predict(noisy, timesteps, rows=None):
            rows = torch.arange(len(noisy)) if rows is None else rows
            return trainer.denoise(
                trainer.model, noisy, {n: v[rows] for n, v in batch.items()} | {"timesteps": timesteps}
            )

        errors = []
        for renoise in (False, True):
            inversion = Inversion(process, 10, renoise)
            timesteps = inversion.levels[[6]]
            noise = inversion.noise(predict, latents, timesteps)
            assert 0.5 < noise.square().mean() < 1.5
            back = sample(process, predict, process.add(latents, noise, timesteps), inversion.levels[:7])
            errors.append((back - latents).square().mean().sqrt().item())
        assert errors[1] < errors[0]


class TestTraining:
    @pytest.mark.parametrize(
        ("settings", "calls"),
        [({"inversion_steps": 3}, 1), ({"inversion_steps": 3, "renoise": True, "smoothing": 10.0}, 2)],
    )
    def test_two_steps(self, make_trainer, settings, calls):
        trainer = make_trainer(**settings)
        before, reference = weights(trainer), {k: v.clone() for k, v in trainer.reference.state_dict().items()}
        levels = [
            trainer.inversion.levels.tolist().index(int(trainer.train_dataset[k]["timesteps"])) for k in range(6)
        ]
        trainer.train()
        after = weights(trainer)
        assert not [name for name in before if torch.equal(before[name], after[name])]
        assert all(torch.equal(reference[name], value) for name, value in trainer.reference.state_dict().items())
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert logs[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the model is the reference at first
        # Of the two images of each of three pairs, in two steps: with the gradient, then the reference and the inversion.
        assert sum(entry["passes"] for entry in logs) == 12
        assert sum(entry["passes_without_gradient"] for entry in logs) == 12 + 2 * calls * sum(i + 1 for i in levels)

    def test_a_flow_too(self, make_trainer, tiny):
        """Its own levels, which its shift has drawn up, to pure noise."""
        trainer = make_trainer(pipeline=tiny.parent / "tiny_flow" / "pipeline", inversion_steps=2, renoise=True)
        shift = trainer.noise_process.shift
        assert trainer.inversion.levels.tolist() == pytest.approx([1000 * shift / (shift + 1), 1000.0])
        batch = stack(trainer, [0])
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2) / 3)

    def test_pairs_too(self, make_trainer):
        """Inversion needs no scores."""
        trainer = make_trainer(make_pairs(), inversion_steps=3)
        assert trainer.compute_loss(trainer.model, stack(trainer, [0, 1, 2])).item() == pytest.approx(math.log(2))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"smoothing": 0}, "smoothing must be above 0, got 0"),
            ({"smoothing": 10.0, "loss_type": "group"}, "smoothing is of loss_type sigmoid, and loss_type is group"),
            ({"inversion_steps": 0}, "inversion_steps must be from 1 to 1000, got 0"),
            ({"renoise": True}, "renoise has no effect without inversion_steps: leave it out, or set that too"),
            (
                {"inversion_steps": 5, "timestep_sampling": "uniform"},
                "timestep_sampling uniform has no effect with inversion_steps, which draws from its own levels",
            ),
        ],
    )
    def test_mistakes(self, make_trainer, settings, message):
        with pytest.raises(UsageError, match=message):
            make_trainer(**settings)

    def test_with_shards(self, monkeypatch):
        """Said before a model is loaded."""
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(
            UsageError, match="inversion_steps has processes call the model unequally often, and FSDP has"
        ):
            check_shards(SimpleNamespace(use_ema=False, compile_blocks=False, inversion_steps=5))

    def test_smoothing_without_scores(self, make_trainer):
        with pytest.raises(UsageError, match="smoothing needs scores, and pairs have none"):
            make_trainer(make_pairs(), smoothing=10.0)
