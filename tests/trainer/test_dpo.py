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

"""Diffusion-DPO: its loss against the formula and against the published code, its pairs, and what training does."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image

from craft_trl import DiffusionDPOConfig, DiffusionDPOTrainer
from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.errors import NothingToDoError, UsageError
from craft_trl.families.latents import normalise
from craft_trl.filtering.dataset import build_pairs
from craft_trl.losses import per_sample_mse
from craft_trl.trainer.dpo_trainer import flatten_pairs, stack_lists
from craft_trl.trainer.preference_losses import diffusion_dpo_loss

from ..helpers import config as craft_config
from ..helpers import warnings_of, weights


def make_pairs(n=3):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(2 * n)]
    rows = {"prompt": ["a fox", "a red car", "a star"][:n], "chosen": images[:n], "rejected": images[n:]}
    features = {"prompt": Value("string"), "chosen": ImageFeature(), "rejected": ImageFeature()}
    return Dataset.from_dict(rows, features=Features(features))


def config(tmp_path, name="out", **settings):
    shared = craft_config(tmp_path, name).to_dict()
    names = ("output_dir", "max_steps", "lr_scheduler_type", "save_strategy", "use_cpu", "disable_tqdm")
    own = {"per_device_train_batch_size": 2, "learning_rate": 1e-4}
    return DiffusionDPOConfig(**{**{name: shared[name] for name in names}, **own, **settings})


@pytest.fixture
def make_trainer(tiny, tmp_path):
    def make(peft_config=None, pairs=None, **settings):
        pairs = pairs or make_pairs()
        return DiffusionDPOTrainer(
            str(tiny / "pipeline"), config(tmp_path, **settings), pairs, peft_config=peft_config
        )

    return make


def batch_of(trainer, n=3):
    samples = [trainer.train_dataset[k] for k in range(n)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


class TestLoss:
    def test_hand_worked(self):
        """The model is better than the reference by 0.02 on the chosen image and worse by 0.01 on the rejected one."""
        errors = [torch.tensor([value]) for value in (0.10, 0.31, 0.12, 0.30)]
        expected = -math.log(1 / (1 + math.exp(-0.5 * 100 * 0.03)))
        torch.testing.assert_close(diffusion_dpo_loss(*errors, beta=100.0), torch.tensor([expected]))
        # Turned round, and no different from the reference.
        turned = diffusion_dpo_loss(errors[1], errors[0], errors[3], errors[2], beta=100.0)
        torch.testing.assert_close(turned, torch.tensor([expected + 1.5]))
        assert diffusion_dpo_loss(*errors[:2], *errors[:2], beta=5000.0).item() == pytest.approx(math.log(2))

    def test_published_code(self, make_trainer, tiny):
        """
        The arithmetic of diffusers' train_diffusion_dpo_sdxl.py, written out: both images of a pair in one batch, noise
        and timesteps repeated, errors averaged over the elements, `-logsigmoid(-beta/2 (model_diff - ref_diff))`.
        """
        trainer = make_trainer(beta=200.0, per_device_train_batch_size=3)
        with torch.no_grad():  # another model than the reference
            for parameter in trainer.model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        batch = batch_of(trainer)
        ours = trainer.compute_loss(trainer.model, batch)

        reference = UNet2DConditionModel.from_pretrained(tiny / "pipeline", subfolder="unet")
        latents = torch.cat(batch["latents"].unbind(1))
        noise, timesteps = batch["noise"].repeat(2, 1, 1, 1), batch["timesteps"].repeat(2)
        noisy = trainer.noise_process.add(latents, noise, timesteps)
        added = {"text_embeds": batch["pooled_prompt_embeds"].repeat(2, 1), "time_ids": batch["time_ids"].repeat(2, 1)}
        errors = []
        for unet in (trainer.model, reference):
            prediction = unet(noisy, timesteps, batch["prompt_embeds"].repeat(2, 1, 1), added_cond_kwargs=added).sample
            errors.append(F.mse_loss(prediction, noise, reduction="none").mean(dim=[1, 2, 3]))
        (model_w, model_l), (reference_w, reference_l) = errors[0].chunk(2), errors[1].chunk(2)
        inside = -0.5 * 200.0 * ((model_w - model_l) - (reference_w - reference_l))
        expected = -1 * F.logsigmoid(inside).mean()
        assert abs(expected - math.log(2)) > 1e-3
        torch.testing.assert_close(ours, expected)

        # And its gradient.
        names, parameters = zip(*trainer.model.named_parameters(), strict=True)
        ours, theirs = (torch.autograd.grad(loss, parameters) for loss in (ours, expected))
        for name, a, b in zip(names, ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3, msg=name)


class TestTraining:
    def test_full(self, make_trainer, tiny, tmp_path):
        trainer = make_trainer(max_steps=3)
        before, reference = weights(trainer), {k: v.clone() for k, v in trainer.reference.state_dict().items()}
        trainer.train()
        after = weights(trainer)
        assert not [name for name in before if torch.equal(before[name], after[name])]
        assert all(torch.equal(reference[name], value) for name, value in trainer.reference.state_dict().items())
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert logs[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the model is the reference at first
        assert logs[-1]["loss"] < logs[0]["loss"] and {"denoising_loss", "implicit_accuracy"} <= set(logs[0])
        trainer.save_model()
        card = (tmp_path / "out" / "README.md").read_text()
        assert "Diffusion-DPO, [Diffusion Model Alignment" in card and "3 pairs." in card and "wallace2023" in card
        saved = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out").unet.state_dict()
        assert all(torch.equal(saved[name], after[name]) for name in after)

    @pytest.mark.parametrize("lora", [False, True])
    @pytest.mark.parametrize("mode", ["module", "autocast"])
    def test_before_the_first_update_the_model_is_the_reference(self, make_trainer, lora, mode):
        """To the bit, in whatever precision: every logit is 0 and the loss is log 2, at any beta."""
        peft_config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian") if lora else None
        settings = {"bf16": True, "bf16_mode": mode, "learning_rate": 0.0, "max_steps": 1, "weight_decay": 0.0}
        trainer = make_trainer(peft_config, **settings)
        logits = []
        monitored = trainer.predict_reference

        def predict_reference(images):
            logits.append(monitored(images).float() - trainer.predict(trainer.model, images).float())
            return monitored(images)

        trainer.predict_reference = predict_reference
        trainer.train()
        assert logits and not any(value.any() for value in logits)
        (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert loss == pytest.approx(math.log(2), abs=1e-6)

    @pytest.mark.parametrize("bf16", [False, True])
    def test_nothing_is_said_of_precision(self, make_trainer, bf16):
        with warnings_of("diffusers") as said:
            make_trainer(bf16=bf16).train()
        assert said == []

    def test_adapter(self, make_trainer):
        """Switched off, the adapter leaves the reference model: no second copy in memory."""
        trainer = make_trainer(LoraConfig(r=2, target_modules=["to_q", "to_v"]), max_steps=2, learning_rate=1e-2)
        assert trainer.reference is None
        batch = batch_of(trainer)
        images, _ = stack_lists(batch)
        before = trainer.predict_reference(images)
        torch.testing.assert_close(trainer.predict(trainer.model, images), before)
        trainer.train()
        torch.testing.assert_close(trainer.predict_reference(images), before)
        assert (trainer.predict(trainer.model, images) - before).abs().max() > 1e-4
        assert trainer.compute_loss(trainer.model, batch).requires_grad

    def test_micro_batches_do_not_matter(self, make_trainer):
        curves = []
        for batch in (4, 3):
            trainer = make_trainer(name=str(batch), global_batch_size=4, per_device_train_batch_size=batch)
            trainer.train()
            curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        np.testing.assert_allclose(curves[0], curves[1], rtol=2e-4)


class TestPairs:
    def test_a_pair_shares_all_but_its_images(self, make_trainer):
        samples = make_trainer(max_steps=20).train_dataset
        assert len({samples.row(k) for k in range(3)}) == 3
        for k in range(4):
            i = samples.row(k)
            sample = samples[k]
            for number, row in enumerate((i, 3 + i)):
                mean = samples.encoded["latent_mean"][row] * samples.statistics["scaling_factor"]
                std = samples.encoded["latent_std"][row] * samples.statistics["scaling_factor"]
                assert ((sample["latents"][number] - mean).abs() < 6 * std).all(), (k, number)
            assert all(torch.equal(sample[name], samples[k][name]) for name in sample)
            assert not torch.equal(*sample["latents"])
        assert not torch.equal(samples[0]["latents"][1], samples[3]["latents"][1])

    def test_what_they_always_were(self, make_trainer):
        """The numbers of a run do not change with the library: noise by `(seed, 0, k)` and `(seed, 2, k)`, the first image's row."""
        trainer = make_trainer(max_steps=20, seed=3)
        samples, encoded = trainer.train_dataset, trainer.train_dataset.encoded
        for k in (0, 4):
            i = int(np.random.default_rng((3, 1, k // 3)).permutation(3)[k % 3])
            rng, mean, std = np.random.default_rng((3, 0, k)), encoded["latent_mean"], encoded["latent_std"]
            first, noise = torch.from_numpy(rng.standard_normal((2, *mean.shape[1:]), dtype=np.float32))
            second = torch.from_numpy(np.random.default_rng((3, 2, k)).standard_normal(first.shape, dtype=np.float32))
            latents = torch.stack([mean[i] + std[i] * first, mean[3 + i] + std[3 + i] * second])
            assert torch.equal(samples[k]["latents"], normalise(latents, samples.statistics))
            assert torch.equal(samples[k]["noise"], noise) and samples[k]["timesteps"] == int(rng.integers(1000))
        batch = batch_of(trainer)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1.01)
            images = {n: torch.cat([v, v]) for n, v in batch.items() if n not in ("latents", "advantage", "mask")}
            images["latents"] = torch.cat(batch["latents"].unbind(1))
            target = trainer.noise_process.target(images["latents"], images["noise"], images["timesteps"])
            errors = per_sample_mse(trainer.predict(trainer.model, images), target).chunk(2)
            reference_errors = per_sample_mse(trainer.predict_reference(images), target).chunk(2)
            losses = diffusion_dpo_loss(*errors, *reference_errors, 5000.0)
            assert torch.equal(trainer.compute_loss(trainer.model, batch), trainer.batch_mean(losses))

    def test_flat(self):
        pairs = make_pairs()
        flat = flatten_pairs(pairs)
        assert flat["prompt"][:] == pairs["prompt"][:] * 2 and flat["advantage"][:] == [1.0] * 6
        for i in range(3):
            assert flat[i]["image"].tobytes() == pairs[i]["chosen"].tobytes()
            assert flat[3 + i]["image"].tobytes() == pairs[i]["rejected"].tobytes()


class TestBuildPairs:
    @pytest.fixture
    def pool(self, tmp_path):
        """a: a2 beats a0 and a1 on both, and a0 by more; b: no image beats another on both; c: two images, c0 better."""
        groups = make_groups(["a", "b", "c"], [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]])
        scores = {"x": [1, 2, 3, 1, 2, 3, 5, 4], "y": [1, 2, 3, 3, 2, 1, 5, 4]}
        pool = CandidatePool(tmp_path / "pool", list(scores))
        keys = [key for group in groups for key in group.keys][:-1]
        images = [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(8)]
        pool.append(keys, images, {name: np.array(values, dtype=np.float32) for name, values in scores.items()})
        return groups, pool

    def test_hand_worked(self, pool):
        pairs = build_pairs(*pool)
        assert pairs["prompt"][:] == ["a", "c"] and pairs["group_id"][:] == [0, 2]
        assert [image.getpixel((0, 0))[0] for image in pairs["chosen"]] == [40, 120]
        assert [image.getpixel((0, 0))[0] for image in pairs["rejected"]] == [0, 140]
        assert all(margin > 0 for margin in pairs["margin"])
        assert len(build_pairs(*pool, FilterConfig(filter_rewards=["x"]))) == 3

    def test_none(self, pool):
        groups, candidates = pool
        with pytest.raises(NothingToDoError, match="In no group of .* does one image beat another on x, y"):
            build_pairs([groups[1]], candidates)


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [({"beta": 0.0}, "beta must be above 0, got 0.0"), ({"snr_gamma": 5.0}, "snr_gamma is not part of")],
    )
    def test_settings(self, tmp_path, settings, message):
        with pytest.raises(UsageError, match=message):
            config(tmp_path, **settings)

    def test_pairs(self, make_trainer):
        with pytest.raises(UsageError, match="has no column 'rejected'; it has prompt, chosen"):
            make_trainer(pairs=make_pairs().remove_columns("rejected"))
        with pytest.raises(UsageError, match="The column 'chosen' must hold images"):
            make_trainer(pairs=make_pairs().remove_columns("chosen").add_column("chosen", ["a", "b", "c"]))
