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

"""SPO: its loss against the formula and against the published code, and what training does."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig

from craft_trl import SPOConfig, SPOTrainer, build_transitions
from craft_trl.errors import UsageError
from craft_trl.trainer.spo_trainer import spo_loss

from ..candidates.test_trees import PROMPTS, draw, make_generator
from ..conftest import TINY
from ..helpers import config as craft_config
from ..helpers import stack, weights


SHAPE = (3, 4, 8, 8)


def numbers(seed, scale=1.0):
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def published(mean, reference, better, worse, std):
    """RockeyCoss/SPO, written out: means of log-densities, ratios clamped, logarithms again."""
    std = std.view(-1, 1, 1, 1)

    def log_density(latents, mean):
        value = -((latents - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
        return value.mean(dim=(1, 2, 3))

    ratios = [(log_density(x, mean) - log_density(x, reference)).exp().clamp(0.9, 1.1) for x in (better, worse)]
    return -F.logsigmoid(10 * (ratios[0].log() - ratios[1].log()))


class TestLoss:
    std = torch.tensor([0.02, 0.3, 0.5], dtype=torch.float64)

    def drawn(self, reference):
        return (reference + self.std.view(-1, 1, 1, 1) * numbers(seed) for seed in (1, 2))

    def test_published_code(self):
        reference = numbers(0)
        better, worse = self.drawn(reference)
        for step in (1e-4, 1e-2, 0.3):  # the last is beyond the clamp
            mean = (reference + step * numbers(3)).requires_grad_()
            ours = spo_loss(mean, reference, better, worse, self.std, 10.0, 0.1)
            expected = published(mean, reference, better, worse, self.std)
            torch.testing.assert_close(ours, expected)
            torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), mean)[0] for loss in (ours, expected)))

    def test_at_the_reference(self):
        """`log 2`, and a step towards the better of the two and away from the worse."""
        mean = numbers(0).requires_grad_()
        better, worse = self.drawn(mean.detach())
        loss = spo_loss(mean, mean.detach(), better, worse, self.std, 10.0, 0.1)
        torch.testing.assert_close(loss, torch.full((3,), math.log(2), dtype=torch.float64))
        (grad,) = torch.autograd.grad(loss.sum(), mean)
        expected = -(10 / 2) * (better - worse) / self.std.view(-1, 1, 1, 1).square() / mean[0].numel()
        torch.testing.assert_close(grad, expected)

    def test_linear_where_nothing_is_clamped(self):
        """From the same latents: `logit = beta mean[(x_w - x_l) (mu - mu_ref)] / std^2`, and the other way round its opposite."""
        reference = numbers(0)
        better, worse = self.drawn(reference)
        mean = reference + 1e-4 * numbers(3)
        logits = 10 * ((better - worse) * (mean - reference)).flatten(1).mean(1) / self.std.square()
        torch.testing.assert_close(
            spo_loss(mean, reference, better, worse, self.std, 10.0, 0.1), -F.logsigmoid(logits)
        )
        torch.testing.assert_close(
            spo_loss(mean, reference, worse, better, self.std, 10.0, 0.1), -F.logsigmoid(-logits)
        )

    def test_beyond_the_clamp(self):
        """On either side there is no gradient, and the loss is within its bounds."""
        reference = numbers(0)
        better, worse = self.drawn(reference)
        for sign, bound in ((1, -10 * (math.log(1.1) - math.log(0.9))), (-1, 10 * (math.log(1.1) - math.log(0.9)))):
            mean = (reference + sign * 0.5 * (better - worse)).requires_grad_()
            loss = spo_loss(mean, reference, better, worse, self.std, 10.0, 0.1)
            torch.testing.assert_close(loss, torch.full((3,), math.log1p(math.exp(bound)), dtype=torch.float64))
            assert not torch.autograd.grad(loss.sum(), mean)[0].any()

    def test_small_ratios_keep_their_digits(self):
        """Of 1e-6, in float32, where exponentials and logarithms would leave one digit."""
        reference = numbers(0)
        better, worse = self.drawn(reference)
        mean = reference + 1e-6 * numbers(3)
        exact = spo_loss(mean, reference, better, worse, self.std, 1e5, 0.1)
        ours = spo_loss(*(x.float() for x in (mean, reference, better, worse, self.std)), 1e5, 0.1)
        assert (exact - math.log(2)).abs().min() > 1e-4
        torch.testing.assert_close((ours - math.log(2)).double(), exact - math.log(2), atol=0, rtol=0.15)


@pytest.fixture(scope="module")
def transitions(tmp_path_factory):
    """Pairs from the trees of two prompts, drawn with guidance 2; the images of the second are first."""
    folder = tmp_path_factory.mktemp("trees")
    draw(folder, PROMPTS[:2], make_generator())
    return build_transitions(sorted(folder.iterdir()), {"brightness": 1.0}, 0.0, folder)


@pytest.fixture
def make_trainer(tmp_path, transitions):
    def make(peft_config=None, dataset=None, **settings):
        shared = craft_config(tmp_path).to_dict()
        names = ("output_dir", "max_steps", "lr_scheduler_type", "save_strategy", "use_cpu", "disable_tqdm")
        own = {"per_device_train_batch_size": 2, "learning_rate": 1e-4}
        args = SPOConfig(**{**{name: shared[name] for name in names}, **own, **settings})
        return SPOTrainer(str(TINY / "pipeline"), args, dataset or transitions, peft_config=peft_config)

    return make


class TestTraining:
    def test_against_the_pipeline(self, make_trainer):
        """Loss and gradient, by the pipeline's UNet and diffusers' scheduler; both calls of guidance have a gradient."""
        trainer = make_trainer(per_device_train_batch_size=3)
        with torch.no_grad():  # another model than the reference
            for parameter in trainer.model.parameters():
                parameter.add_(0.003 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        rows = trainer.train_dataset.transitions
        ours = trainer.compute_loss(trainer.model, stack(trainer, range(3)))

        pipeline = StableDiffusionXLPipeline.from_pretrained(TINY / "pipeline")
        options = {"clip_sample": False, "set_alpha_to_one": False}
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **options)
        scheduler.set_timesteps(5)
        reference = UNet2DConditionModel.from_pretrained(TINY / "pipeline", subfolder="unet")
        expected = 0
        for k in range(3):
            row = rows[trainer.train_dataset.place(k)]
            text, empty, pooled, empty_pooled = pipeline.encode_prompt(str(row["prompt"]), device="cpu")
            latents, better, worse = (torch.from_numpy(row[name])[None].float() for name in ("x_t", "x_w", "x_l"))
            t, sizes = int(row["t"]), torch.tensor([[64, 64, 0, 0, 64, 64]])
            means = []
            for unet in (trainer.model, reference):
                without, with_prompt = (
                    unet(latents, t, a, added_cond_kwargs={"text_embeds": b, "time_ids": sizes}).sample
                    for a, b in ((empty, empty_pooled), (text, pooled))
                )
                said = without + 2.0 * (with_prompt - without)
                ends = [
                    scheduler.step(
                        said, t, latents, eta=1.0, variance_noise=torch.full_like(latents, chance)
                    ).prev_sample
                    for chance in (0.0, 1.0)
                ]
                means.append(ends[0])
            std = (ends[1] - ends[0]).mean().view(1)
            expected = expected + published(means[0], means[1].detach(), better, worse, std) / 3
        assert abs(expected.item() - math.log(2)) > 1e-3
        torch.testing.assert_close(ours, expected.squeeze(), atol=1e-4, rtol=1e-4)
        names, parameters = zip(*trainer.model.named_parameters(), strict=True)
        ours, theirs = (torch.autograd.grad(loss, parameters) for loss in (ours, expected))
        scale = max(grad.abs().max() for grad in theirs)
        for name, a, b in zip(names, ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=2e-3 * float(scale), rtol=1e-2, msg=name)

    def test_full(self, make_trainer, tmp_path, transitions):
        trainer = make_trainer(max_steps=3)
        before, reference = weights(trainer), {k: v.clone() for k, v in trainer.reference.state_dict().items()}
        trainer.train()
        after = weights(trainer)
        assert not [name for name in before if torch.equal(before[name], after[name])]
        assert all(torch.equal(reference[name], value) for name, value in trainer.reference.state_dict().items())
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert logs[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and logs[0]["distance_to_base"] == 0
        # Two pairs a step, each with the prompt and without it.
        assert [entry["passes"] for entry in logs] == [4, 4, 4] == [entry["passes_without_gradient"] for entry in logs]
        trainer.save_model()
        card = (tmp_path / "out" / "README.md").read_text()
        assert "liang2024aesthetic" in card and f"{len(transitions)} pairs of transitions." in card
        saved = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out").unet.state_dict()
        assert all(torch.equal(saved[name], after[name]) for name in after)

    def test_a_step_makes_the_better_likelier(self, make_trainer):
        trainer = make_trainer(lr_scheduler_type="constant", learning_rate=1e-5, max_steps=1)
        batch = stack(trainer, range(2))
        trainer.train()
        with torch.no_grad():
            assert trainer.compute_loss(trainer.model, batch).item() < math.log(2)

    @pytest.mark.parametrize("lora", [False, True])
    def test_before_the_first_update_the_model_is_the_reference(self, make_trainer, lora):
        """To the bit, in bfloat16 too: or rounding would be all that is learnt."""
        peft_config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian") if lora else None
        trainer = make_trainer(peft_config, bf16=True, learning_rate=0.0, max_steps=1, weight_decay=0.0)
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
        assert trainer.state.log_history[0]["distance_to_base"] == 0

    def test_whatever_the_micro_batches(self, make_trainer):
        """A sample is a function of seed and number, and the loss the mean over the step."""
        trainer = make_trainer(global_batch_size=4, per_device_train_batch_size=4)
        whole = trainer.compute_loss(trainer.model, stack(trainer, range(4)))
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1.01)
            whole = trainer.compute_loss(trainer.model, stack(trainer, range(4)))
            parts = sum(trainer.compute_loss(trainer.model, stack(trainer, [k])) for k in range(4))
        torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)

    def test_without_guidance_there_is_one_call(self, make_trainer, transitions):
        column = np.ones(len(transitions), dtype=np.float32)
        unguided = transitions.remove_columns("guidance_scale").add_column("guidance_scale", column)
        trainer = make_trainer(dataset=unguided, max_steps=1)
        trainer.train()
        assert trainer.state.log_history[0]["passes"] == 2
        batch = stack(trainer, [0])
        with torch.no_grad():
            added = {"text_embeds": batch["pooled_prompt_embeds"], "time_ids": batch["time_ids"]}
            said = trainer.model(
                batch["noisy_latents"], batch["timesteps"], batch["prompt_embeds"], added_cond_kwargs=added
            ).sample
            steps = batch["timesteps"], batch["next_timesteps"]
            expected = trainer.noise_process.transition(batch["noisy_latents"], said, *steps)
            torch.testing.assert_close(trainer.predict(trainer.model, batch), expected)


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"beta": 0.0}, "beta must be above 0, got 0.0"),
            ({"ratio_clip": 1.0}, "ratio_clip must be between 0 and 1, got 1.0"),
            (
                {"snr_gamma": 5.0},
                "snr_gamma is not part of SPO, whose timesteps and texts are those of the transitions",
            ),
            ({"proportion_empty_prompts": 0.2}, "proportion_empty_prompts is not part of SPO"),
            ({"train_prompt": "expanded"}, "train_prompt expanded: transitions are drawn from the original prompt"),
        ],
    )
    def test_settings(self, make_trainer, settings, message):
        with pytest.raises(UsageError, match=message):
            make_trainer(**settings)

    def test_rows(self, transitions):
        with pytest.raises(UsageError, match="The dataset of transitions has no column 'x_w'; it has prompt, t,"):
            SPOTrainer.pictured(transitions.remove_columns("x_w"))
        with pytest.raises(UsageError, match="The dataset has no rows"):
            SPOTrainer.pictured(transitions.select([]))
        mixed = transitions.remove_columns("guidance_scale").add_column(
            "guidance_scale", np.arange(len(transitions), dtype=np.float32) % 2 + 1
        )
        with pytest.raises(UsageError, match="All transitions must be drawn at one guidance_scale, got 1 and 2"):
            SPOTrainer.pictured(mixed)
        with pytest.raises(UsageError, match="No row of the prompt 'a .*' has an image"):
            SPOTrainer.pictured(transitions.select([1]))

    def test_a_flow(self, tmp_path, transitions):
        args = SPOConfig(output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True)
        with pytest.raises(UsageError, match="A StableDiffusion3Pipeline is of flow matching"):
            SPOTrainer(str(TINY.parent / "tiny_flow" / "pipeline"), args, transitions)
