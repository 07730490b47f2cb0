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

"""`negative_advantages: proximal`: worse images teach too, tied to the model that training began with."""

import pytest
import torch
from peft import LoraConfig

from craft_trl import CraftTrainer
from craft_trl.errors import TrainingDivergedError
from craft_trl.losses import min_snr_weights

from ..families.random_pipelines import CASES
from ..helpers import config, make_dataset, stack


@pytest.fixture
def make_trainer(tiny, tmp_path):
    def make(name="out", peft_config=None, model=None, dataset=None, **settings):
        settings = {"negative_advantages": "proximal", **settings}
        model, dataset = str(model or tiny / "pipeline"), dataset or make_dataset()
        return CraftTrainer(model, config(tmp_path, name, **settings), dataset, peft_config=peft_config)

    return make


LORA = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")


def written_out(trainer, batch, old, tau):
    """The mean of `A e^2 + 2 A <e, d> + tau d^2`, from the predictions of the model and the old model's."""
    target = trainer.noise_process.target(batch["latents"], batch["noise"], batch["timesteps"])
    error, change = old - target, trainer.predict(trainer.model, batch) - old
    a = batch["advantage"].view(-1, 1, 1, 1)
    terms = (a * error**2 + 2 * a * error * change + tau * change**2).flatten(1).mean(1)
    if trainer.args.snr_gamma is not None:
        terms = terms * min_snr_weights(trainer.noise_process, batch["timesteps"], trainer.args.snr_gamma)
    return terms.mean()


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize("lora", [False, True])
def test_loss_and_gradient_are_those_of_the_formula(make_trainer, lora, snr_gamma):
    trainer = make_trainer(
        peft_config=LORA if lora else None, proximal_tau=0.5, snr_gamma=snr_gamma, global_batch_size=4
    )
    batch = stack(trainer, range(4))
    with torch.no_grad():
        old = trainer.predict_reference(batch)
        assert torch.equal(old, trainer.predict(trainer.model, batch))
        generator = torch.Generator().manual_seed(0)
        for parameter in trainer.trainable_parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        assert torch.equal(trainer.predict_reference(batch), old)
    ours, expected = trainer.compute_loss(trainer.model, batch), written_out(trainer, batch, old, 0.5)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    parameters = trainer.trainable_parameters()
    for mine, theirs in zip(*(torch.autograd.grad(loss, parameters) for loss in (ours, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_on_a_flow(make_trainer, tmp_path):
    CASES["stable_diffusion_3_without_t5"]().save_pretrained(tmp_path / "sd3")
    settings = {"max_sequence_length": 20, "text_encoder_dtype": "float32", "global_batch_size": 4}
    trainer = make_trainer(model=tmp_path / "sd3", dataset=make_dataset(size=32), **settings)
    batch = stack(trainer, range(4))
    with torch.no_grad():
        old = trainer.predict_reference(batch)
        for parameter in trainer.trainable_parameters():
            parameter.mul_(1.1)
        torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), written_out(trainer, batch, old, 1.0))
    trainer.train()
    assert trainer.state.log_history[-2]["distance_to_base"] > 0


def test_it_begins_as_keep_does(make_trainer):
    """The same gradient at first, and a reference that no other training has."""
    keep, proximal = make_trainer("a", negative_advantages="keep"), make_trainer("b")
    assert keep.reference is None and proximal.reference is not None
    batch = stack(keep, range(4))
    for trainer in (keep, proximal):
        trainer.compute_loss(trainer.model, batch).backward()
    for (name, one), other in zip(keep.model.named_parameters(), proximal.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_nothing_runs_away(make_trainer):
    """Where `keep` ruins the model within ten steps, as most of what it is trained on is to be unlearnt, the tie holds it."""
    settings = {"max_steps": 12, "learning_rate": 1e-3, "global_batch_size": 4, "logging_steps": 1}
    settings["dataset"] = make_dataset([-1.0, -2.0, -0.5, 1.0, -1.5, -1.0])
    with pytest.raises(TrainingDivergedError, match="worse than predicting nothing"):
        make_trainer("keep", negative_advantages="keep", **settings).train()
    trainer = make_trainer("proximal", **settings)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[0]["distance_to_base"] == 0 < logs[-1]["distance_to_base"] < 1 > logs[-1]["denoising_loss"]


def test_a_sample_of_advantage_0_counts(make_trainer):
    """It holds the model where it was, by `tau d^2`, and is not left out as where only the advantage counts."""
    dataset = make_dataset([1.0, 0.0, -1.0, 0.0])
    proximal = make_trainer(dataset=dataset, global_batch_size=4)
    assert not any(proximal.train_dataset.weightless(k) for k in range(4))
    zero = make_trainer("zero", dataset=dataset, global_batch_size=4, negative_advantages="zero")
    assert sum(zero.train_dataset.weightless(k) for k in range(4)) == 3
