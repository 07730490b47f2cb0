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

"""Trainers of methods that learn from ranked and scored images: what one step of each is on the tiny model, data, mistakes."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig

from craft_trl import DiffusionDPOConfig, DiffusionDPOTrainer, ScoredConfig, ScoredTrainer
from craft_trl.errors import UsageError
from craft_trl.losses import per_sample_mse
from craft_trl.trainer.dpo_trainer import stack_lists

from ..families.random_pipelines import CASES
from ..helpers import config as craft_config
from ..helpers import make_dataset, stack, weights


BETA = 300.0
# Of each arm its trainer and options; the value at the reference model, where it is the same for all data; and what is said of
# its model card.
ARMS = {
    "diffusion_lpo": (
        "dpo",
        {"loss_type": "plackett_luce"},
        (math.log(6) + math.log(2)) / 2,
        "Diffusion-LPO, [Towards",
    ),
    "dgpo_offline": ("dpo", {"loss_type": "group"}, math.log(2), "DGPO, [Reinforcing"),
    "lair": ("dpo", {"loss_type": "regression", "regression_temperature": 0.5}, 0.0, "LAIR, [Beyond"),
    "sdpo": ("dpo", {"safeguard_mu": 0.95}, math.log(2), "Diffusion-SDPO, [Diffusion-SDPO"),
    "nft_offline": ("scored", {"loss_type": "nft"}, None, "DiffusionNFT, [DiffusionNFT"),
    "awm_offline": ("scored", {"loss_type": "awm"}, -0.05, "AWM, [Advantage"),
    "tgo": ("scored", {"loss_type": "tgo", "beta": BETA}, None, "TGO, [Threshold"),
}


def make_lists(sizes=(3, 2), advantages=(0.2, 1.1, -1.3, -1.0, 1.0)):
    """Lists of these sizes, one after the other."""
    dataset = make_dataset(advantages)
    numbers = [number for number, size in enumerate(sizes) for _ in range(size)]
    dataset = dataset.remove_columns("prompt").add_column(
        "prompt", [("a fox", "a star")[number] for number in numbers]
    )
    return dataset.add_column("group_id", [7 * number for number in numbers])


def make_pairs():
    return make_lists((2, 2), (1.0, -1.0, -1.0, 1.0))


@pytest.fixture
def make_trainer(tiny, tmp_path):
    def make(arm=None, name="out", dataset=None, peft_config=None, model=None, kind="dpo", **settings):
        options = {"global_batch_size": 2 if kind == "dpo" else 4}
        if arm is not None:
            kind, own, *_ = ARMS[arm]
            options = {"global_batch_size": 2 if kind == "dpo" else 4, **own}
            dataset = dataset or (make_pairs() if arm == "sdpo" else None)
        config, trainer = {"dpo": (DiffusionDPOConfig, DiffusionDPOTrainer), "scored": (ScoredConfig, ScoredTrainer)}[
            kind
        ]
        shared = craft_config(tmp_path, name).to_dict()
        names = ("output_dir", "max_steps", "lr_scheduler_type", "save_strategy", "use_cpu", "disable_tqdm")
        names += ("per_device_train_batch_size", "learning_rate")
        if kind == "dpo" and "beta" not in settings:
            options["beta"] = BETA
        args = config(**{**{name: shared[name] for name in names}, **options, **settings})
        dataset = dataset or (make_lists() if kind == "dpo" else make_dataset([0.5, -1.0, 2.0, -0.5]))
        return trainer(str(model or tiny / "pipeline"), args, dataset, peft_config=peft_config)

    return make


def said_of(trainer, arm, batch, errors, residuals, images):
    """`a_k W_k` of each image at the reference model, shape `(N,)` in the order of `images`, from the papers' formulas."""
    if arm == "sdpo":
        winner, loser = (half.flatten(1) for half in residuals.chunk(2))
        passed = (0.05 * winner.square().sum(1) / (winner * loser).sum(1)).clamp(0, 1)
        assert (passed < 1).all()
        return BETA / 4 * torch.cat([torch.ones(2), -passed])
    advantages = batch["advantage"]
    if arm in ("diffusion_lpo", "dgpo_offline", "lair"):
        by_list = []
        for scores, mask in zip(advantages, batch["mask"], strict=True):
            m = int(mask.sum())
            assert scores[:m].tolist() == sorted(scores[:m].tolist(), reverse=True)
            harmonic = torch.tensor([1 - sum(1 / (m - j) for j in range(k + 1)) for k in range(m)])
            of_arm = {
                "diffusion_lpo": BETA / 2 * harmonic,
                "dgpo_offline": BETA / (2 * m) * scores[:m],
                "lair": BETA / 2 * ((scores[:m] / 0.5).softmax(0) - 1 / m),
            }[arm]
            assert arm == "lair" or m == 3 or of_arm.tolist() == pytest.approx([BETA / 4, -BETA / 4])  # Diffusion-DPO
            by_list.append(torch.cat([of_arm, torch.zeros(3 - m)]))
        return torch.stack(by_list).T.flatten()[batch["mask"].T.flatten()]
    if arm == "tgo":
        return torch.where(advantages >= 0, 1, -1) * BETA / 4 * (1 + 5 * advantages.abs())
    share = trainer.noise_process.scheduler.alphas_cumprod[images["timesteps"]]
    a, s = share.sqrt(), (1 - share).sqrt()
    if arm == "nft_offline":
        of_image = (s / a).view(-1, 1, 1, 1) * residuals
        return advantages * (s / a).square() / of_image.flatten(1).abs().mean(1)
    level = s / (a + s)
    return advantages / 5 * level * (errors / (1 - level) ** 2) ** -0.75 / (1 - level) ** 2


@pytest.mark.parametrize("arm", ARMS)
def test_at_the_reference_each_is_signed_weighted_fine_tuning(make_trainer, arm):
    """The value there, and the gradient: a sum of those of the images' denoising errors. Then two steps, saved with its card."""
    trainer = make_trainer(arm)
    batch = stack(trainer, range(2 if ARMS[arm][0] == "dpo" else 4))
    images = stack_lists(batch)[0] if "mask" in batch else batch
    target = trainer.noise_process.target(images["latents"], images["noise"], images["timesteps"])
    prediction = trainer.predict(trainer.model, images)
    errors, residuals = per_sample_mse(prediction, target), (prediction - target).detach()
    factors = said_of(trainer, arm, batch, errors.detach(), residuals, images)
    assert len(factors) == len(errors) and factors.min() < 0 < factors.max()
    expected = (factors * errors).sum() / trainer.args.global_batch_size
    loss = trainer.compute_loss(trainer.model, batch)
    parameters = trainer.trainable_parameters()
    for mine, theirs in zip(*(torch.autograd.grad(value, parameters) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-5 * float(factors.abs().max()))
    value = {
        "tgo": math.log(2) * (1 + 5 * batch["advantage"].abs()).mean() if arm == "tgo" else None,
        "nft_offline": 5 * (factors / batch["advantage"] * errors).mean().detach() if arm == "nft_offline" else None,
    }.get(arm, ARMS[arm][2])
    assert loss.item() == pytest.approx(float(value), rel=1e-4, abs=1e-6)

    trainer._metrics.clear()  # of what was done by hand
    before, reference = weights(trainer), {k: v.clone() for k, v in trainer.reference.state_dict().items()}
    trainer.train()
    after = weights(trainer)
    assert not [name for name in before if torch.equal(before[name], after[name])]
    assert all(torch.equal(reference[name], value) for name, value in trainer.reference.state_dict().items())
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    number = {"diffusion_lpo": 5, "dgpo_offline": 5, "lair": 5}.get(arm, 4)
    assert [(entry["passes"], entry["passes_without_gradient"]) for entry in logs] == [(number, number)] * 2
    assert all(math.isfinite(entry["loss"]) for entry in logs) and logs[1]["loss"] != logs[0]["loss"]
    trainer.create_model_card()
    card = (trainer.encoded.parent / "README.md").read_text()
    unit = {"sdpo": "2 lists.", "nft_offline": "4 images.", "awm_offline": "4 images.", "tgo": "4 images."}
    assert f"Method: {ARMS[arm][3]}" in card and unit.get(arm, "2 lists.") in card and "@misc{" in card


def test_an_adapter(make_trainer):
    """Its reference is the model without it, and nothing is loaded twice."""
    lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
    trainer = make_trainer("nft_offline", peft_config=lora, learning_rate=1e-2)
    assert trainer.reference is None
    trainer.train()
    distances = [entry["distance_to_base"] for entry in trainer.state.log_history if "loss" in entry]
    assert distances[0] == 0 < distances[1]


@pytest.mark.parametrize("arm", ["awm_offline", "diffusion_lpo"])
def test_on_a_flow(make_trainer, tmp_path, arm):
    CASES["stable_diffusion_3_without_t5"]().save_pretrained(tmp_path / "sd3")
    settings = {"max_sequence_length": 20, "text_encoder_dtype": "float32", "max_steps": 1}
    lists = arm == "diffusion_lpo"
    dataset = make_dataset([0.5, -1.0, 2.0, -0.5], size=32)
    if lists:
        dataset = dataset.remove_columns("prompt").add_column("prompt", ["a"] * 4).add_column("group_id", [0, 0, 1, 1])
    trainer = make_trainer(arm, model=tmp_path / "sd3", dataset=dataset, **settings)
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx({"diffusion_lpo": math.log(2), "awm_offline": -0.05}.get(arm, loss), rel=1e-4)
    assert math.isfinite(loss)


class TestLists:
    def test_samples(self, make_trainer):
        """The best first; all at one noise and timestep, each with its own posterior noise; shorter lists filled up."""
        samples = make_trainer("diffusion_lpo", max_steps=20, seed=5).train_dataset
        assert samples.lists == [[1, 0, 2], [4, 3]] and samples.count == 2
        for k in range(4):
            sample, rows = samples[k], samples.lists[samples.place(k)]
            assert sample["mask"].tolist() == [True, True, len(rows) == 3]
            assert sample["advantage"].tolist()[: len(rows)] == sorted(samples.advantages[rows].tolist(), reverse=True)
            for number, row in enumerate(rows):
                rng = np.random.default_rng((5, 1 + number if number else 0, k))
                noise = torch.from_numpy(rng.standard_normal(samples[k]["noise"].shape, dtype=np.float32))
                mean, std = samples.encoded["latent_mean"][row], samples.encoded["latent_std"][row]
                expected = (mean + std * noise) * samples.statistics["scaling_factor"]
                torch.testing.assert_close(sample["latents"][number], expected)
            assert not sample["latents"][len(rows) :].any()

    def test_micro_batches_do_not_matter(self, make_trainer):
        curves = []
        for micro in (2, 1):
            settings = {"global_batch_size": 2, "per_device_train_batch_size": micro}
            trainer = make_trainer("diffusion_lpo", **settings)
            trainer.train()
            curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        np.testing.assert_allclose(curves[0], curves[1], rtol=2e-4)

    def test_a_pair_is_a_list_of_two(self, make_trainer):
        """Diffusion-DPO on groups of two; by the ranking's loss, and the group's, it is the same."""
        losses = []
        for loss_type in ("sigmoid", "plackett_luce", "group"):
            trainer = make_trainer(dataset=make_pairs(), loss_type=loss_type)
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.mul_(1.02)
            losses.append(trainer.compute_loss(trainer.model, stack(trainer, range(2))).item())
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-4) and abs(losses[0] - math.log(2)) > 1e-3

    @pytest.mark.parametrize(
        ("changes", "settings", "message"),
        [
            (
                {},
                {},
                "loss_type sigmoid is for pairs, and group_id 0 has 3 images: set it to plackett_luce or group or",
            ),
            (
                {"group_id": [0, 0, 0, 1, 2]},
                {},
                "group_id 1 is a list of one image, and there is nothing to compare it",
            ),
            ({"group_id": [0, 0, None, 1, 1]}, {}, "The group_id of row 2 is null: it says which images are a list."),
            (
                {"prompt": ["a", "a", "b", "c", "c"]},
                {},
                "group_id 0 has images of several prompts, and a list is of one.",
            ),
            (
                {},
                {"train_prompt": "expanded"},
                "group_id 0 has .*, and a list is of one: set train_prompt to original.",
            ),
            ({"advantage": [1.0, 1.0, 1.0, 2.0, 2.0]}, {}, "All images of each list have the same advantage"),
            (
                {"advantage": [1.0, float("nan"), 1.0, 2.0, 3.0]},
                {},
                "The advantage of row 1 is nan; it must be a finite",
            ),
            (
                {"advantage": [1.0, None, 1.0, 2.0, 3.0]},
                {},
                "The advantage of row 1 is null; it must be a finite number",
            ),
            ({"advantage": None}, {}, "The dataset of lists has no column 'advantage'; it has image, expanded_prompt"),
            (
                {"group_id": None},
                {},
                "The dataset has neither 'chosen' and 'rejected' nor a 'group_id'; it has image, exp",
            ),
        ],
    )
    def test_mistakes(self, make_trainer, changes, settings, message):
        dataset = make_lists()
        for column, values in changes.items():
            dataset = dataset.remove_columns(column)
            dataset = dataset.add_column(column, values) if values is not None else dataset
        loss_type = "plackett_luce" if changes or settings else "sigmoid"
        if "expanded_prompt" in dataset.column_names and settings:
            prompts = ["a", "b", "c", "d", "e"]
            dataset = dataset.remove_columns("expanded_prompt").add_column("expanded_prompt", prompts)
        with pytest.raises(UsageError, match=message):
            make_trainer(dataset=dataset, loss_type=loss_type, **settings)

    def test_pairs_without_a_winner(self, make_trainer):
        dataset = make_lists((2, 2), (1.0, -1.0, 0.5, 0.5))
        with pytest.raises(UsageError, match="The two images of group_id 7 have the same advantage: leave it out."):
            make_trainer(dataset=dataset)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"loss_type": "ipo"}, "loss_type must be one of sigmoid, plackett_luce, group, regression, got 'ipo'"),
            (
                {"loss_type": "group", "safeguard_mu": 0.5},
                "safeguard_mu is of loss_type sigmoid, and loss_type is group",
            ),
            ({"safeguard_mu": 1.5}, "safeguard_mu must be from 0 to 1, got 1.5"),
            ({"regression_penalty": 2.0}, "regression_penalty is of loss_type regression, and loss_type is sigmoid"),
            (
                {"loss_type": "regression", "regression_temperature": 0.0},
                "regression_temperature must be above 0, got 0.0",
            ),
        ],
    )
    def test_settings(self, tmp_path, settings, message):
        with pytest.raises(UsageError, match=message):
            DiffusionDPOConfig(str(tmp_path), max_steps=1, use_cpu=True, **settings)


class TestScored:
    def test_every_row_counts(self, make_trainer):
        """One of advantage 0 ties the model to the reference: it is passed through the model like any other."""
        trainer = make_trainer("nft_offline", dataset=make_dataset([0.0, 0.0, 0.0, 1.0]))
        assert [len(batch["advantage"]) for batch in trainer.get_train_dataloader()] == [4, 4]
        assert trainer.args.gradient_accumulation_steps == 1

    def test_scores_of_any_scale(self, make_trainer):
        """The threshold is their median; they are in units of their standard deviation."""
        scores = [20.0, 21.0, 22.0, 27.0]
        trainer = make_trainer("tgo", dataset=make_dataset(scores))
        expected = (np.array(scores) - 21.5) / np.std(scores)
        np.testing.assert_allclose(trainer.train_dataset.advantages, expected, rtol=1e-6)

    @pytest.mark.parametrize("arm", ["nft_offline", "awm_offline", "tgo"])
    def test_without_scores(self, make_trainer, arm):
        with pytest.raises(UsageError, match="The advantage of every row is 1: there is nothing to tell images by."):
            make_trainer(arm, dataset=make_dataset([1.0, 1.0]))
        with pytest.raises(UsageError, match="The dataset has no column 'advantage'"):
            make_trainer(arm, dataset=make_dataset().remove_columns("advantage"))
        broken = concatenate_datasets([make_dataset([1.0]), make_dataset([float("inf")])])
        with pytest.raises(UsageError, match="The advantage of row 1 is inf; it must be a finite number"):
            make_trainer(arm, dataset=broken)

    def test_defaults(self, tmp_path):
        of = lambda **settings: ScoredConfig(str(tmp_path), max_steps=1, use_cpu=True, **settings)  # noqa: E731
        assert (of().beta, of(loss_type="tgo").beta, of(loss_type="awm").beta) == (1.0, 2000.0, None)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"loss_type": "grpo"}, "loss_type must be one of nft, tgo, awm, got 'grpo'"),
            (
                {"loss_type": "awm", "beta": 0.5},
                "beta is of loss_type nft and tgo, and loss_type is awm: leave it out",
            ),
            ({"kl_beta": 0.1}, "kl_beta is of loss_type awm, and loss_type is nft: leave it out"),
            (
                {"loss_type": "tgo", "advantage_clip": 2.0},
                "advantage_clip is of loss_type nft and awm, and loss_type is tgo",
            ),
            ({"confidence_weight": 1.0}, "confidence_weight is of loss_type tgo, and loss_type is nft"),
            ({"beta": -1.0}, "beta must be above 0, got -1.0"),
            ({"loss_type": "awm", "clip_range": 0.0}, "clip_range must be above 0, got 0.0"),
            ({"snr_gamma": 5.0}, "snr_gamma is not part of these losses, got 5.0"),
        ],
    )
    def test_settings(self, tmp_path, settings, message):
        with pytest.raises(UsageError, match=message):
            ScoredConfig(str(tmp_path), max_steps=1, use_cpu=True, **settings)


def test_passes_are_counted_across_a_resumption(make_trainer, tmp_path):
    """From the log, which a checkpoint keeps."""
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = make_trainer("awm_offline", **settings)
    trainer.train()
    (tmp_path / "out" / "checkpoint-2").rename(tmp_path / "last")
    again = make_trainer("awm_offline", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    for one in (trainer, again):
        assert one.state.global_step == 2
        assert [
            sum(e.get(name, 0) for e in one.state.log_history) for name in ("passes", "passes_without_gradient")
        ] == [8, 8]
    assert json.loads((tmp_path / "last" / "trainer_state.json").read_text())["log_history"][0]["passes"] == 4
