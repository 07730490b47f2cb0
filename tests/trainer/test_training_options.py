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

"""Which options of the Trainer work, which are refused, and that those that work do something."""

import dataclasses
import importlib.util
import math

import pytest
import torch
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from craft_trl import CraftConfig, CraftTrainer, DiffusionDPOConfig, ScoredConfig, SPOConfig
from craft_trl.errors import UsageError
from craft_trl.trainer import diffusion_config
from craft_trl.trainer.base_config import BaseConfig
from craft_trl.trainer.diffusion_config import native_half_precision
from craft_trl.trainer.training_options import RANGES, WORKS, Range, check_available

from ..helpers import config, make_dataset, weights
from ..pipelines import make_pipeline


INHERITED = {field.name: field for field in dataclasses.fields(BaseConfig)}
REFUSED = sorted(INHERITED.keys() - WORKS.keys())


def another(value):
    """A value that an option does not have by default."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else "something"


class TestRefused:
    def test_the_list_names_options_that_there_are(self):
        assert set(WORKS) <= set(INHERITED)
        assert set(RANGES) <= {
            f.name for c in (CraftConfig, DiffusionDPOConfig, ScoredConfig, SPOConfig) for f in dataclasses.fields(c)
        }

    @pytest.mark.parametrize("name", REFUSED)
    def test_each_of_the_others(self, tmp_path, name):
        (field,) = [field for field in dataclasses.fields(CraftConfig) if field.name == name]
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        with pytest.raises(UsageError) as error:
            config(tmp_path, **{name: another(default)})
        message = str(error.value)
        assert message.startswith(f"{name} ") and "\n" not in message
        assert name != "hub_token" or "something" not in message  # a secret is not repeated
        config(tmp_path, **{name: default})  # as a recipe may say it

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_train_epochs": 1.0}, "num_train_epochs is not supported, got 1.0: max_steps says how long"),
            ({"data_seed": 3}, "data_seed is not supported, got 3: seed decides the samples too. Leave it at None"),
            ({"accelerator_config": {"split_batches": True}}, "accelerator_config is not supported"),
            ({"eval_strategy": "steps", "eval_steps": 5}, "eval_strategy is not supported, got 'steps': validation_"),
            ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "activation_checkpointing_kwargs is not"),
            (
                {"lr_scheduler_type": "reduce_lr_on_plateau"},
                "lr_scheduler_type 'reduce_lr_on_plateau' follows an eval",
            ),
            ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type 'greedy' follows an evaluation"),
            ({"warmup_steps": 5}, "warmup_steps has no effect under lr_scheduler_type 'constant'"),
            ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_kwargs has no effect under"),
            ({"save_strategy": "best"}, "save_strategy must be 'no', 'steps' or 'epoch', got 'best'"),
            ({"dataloader_prefetch_factor": 4}, "dataloader_prefetch_factor has no effect without dataloader_num_wor"),
            ({"validation_steps": 3}, "validation_steps has no effect without validation_prompts"),
            ({"lr_scheduler_type": "rising"}, "rising is not a valid SchedulerType, please select one of"),
            ({"optim": "adam"}, "adam is not a valid OptimizerNames, please select one of"),
            ({"fp16": True, "bf16": True}, "At most one of fp16 and bf16 can be True"),
        ],
    )
    def test_messages(self, tmp_path, settings, message):
        with pytest.raises(UsageError, match=message.replace("(", r"\(")):
            config(tmp_path, **settings)

    def test_what_was_made_of_a_configuration_makes_it_again(self, tmp_path):
        args = config(tmp_path, global_batch_size=16)
        assert dataclasses.replace(args, seed=3).gradient_accumulation_steps == 4


class TestRanges:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("seed", -1, "seed must be from 0 to 4294967295, got -1"),
            ("seed", 2**32, "seed must be from 0 to 4294967295, got 4294967296"),
            ("max_steps", 0, "max_steps must be at least 1, got 0"),
            ("per_device_train_batch_size", 0, "per_device_train_batch_size must be at least 1, got 0"),
            ("gradient_accumulation_steps", 0, "gradient_accumulation_steps must be at least 1, got 0"),
            ("learning_rate", -1e-5, "learning_rate must be at least 0, got -1e-05"),
            ("learning_rate", math.nan, "learning_rate must be at least 0, got nan"),
            ("adam_beta2", 1.5, "adam_beta2 must be from 0 to 1, got 1.5"),
            ("save_steps", 0, "save_steps must be above 0, got 0"),
            ("save_total_limit", 0, "save_total_limit must be at least 1, got 0"),
            ("ema_decay", 1.0, "ema_decay must be between 0 and 1, got 1.0"),
            ("snr_gamma", math.nan, "snr_gamma must be above 0, got nan"),
        ],
    )
    def test_out_of_it(self, tmp_path, name, value, message):
        with pytest.raises(UsageError) as error:
            config(tmp_path, **{name: value})
        assert str(error.value) == f"{message}."

    def test_ends(self):
        assert 0 in Range(0, 1) and 1 in Range(0, 1) and 0 not in Range(0, 1, open=True)
        assert math.inf not in Range(0) and math.nan not in Range(0, 1)


class TestAvailable:
    """What is not installed, and what optimizer and schedule do not take, is said before anything is loaded."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"report_to": ["wandb"]}, "report_to wandb: it is not installed; `pip install wandb`"),
            ({"optim": "adamw_bnb_8bit"}, "optim adamw_bnb_8bit: You need to install `bitsandbytes`"),
            ({"optim": "galore_adamw"}, "optim galore_adamw: You need to"),
            (
                {"lr_scheduler_type": "cosine_with_min_lr"},
                "lr_scheduler_type cosine_with_min_lr: One of min_lr or min_lr",
            ),
            (
                {"lr_scheduler_type": "warmup_stable_decay"},
                "lr_scheduler_type warmup_stable_decay: .* 'num_decay_steps'",
            ),
            (
                {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"cycles": 1}},
                "lr_scheduler_type linear: .*'cycles'",
            ),
            ({"optim_args": "amsgrad=True"}, "optim_args has no effect on optim adamw_torch_fused"),
            ({"optim": "sgd", "adam_beta1": 0.5}, "adam_beta1 has no effect on optim sgd"),
        ],
    )
    def test_what_is_missing(self, tmp_path, settings, message):
        for package in ("wandb", "bitsandbytes"):
            if package in message and importlib.util.find_spec(package):
                pytest.skip(f"{package} is installed")
        with pytest.raises(UsageError, match=message) as error:
            check_available(config(tmp_path, **settings))
        assert "\n" not in str(error.value)

    def test_every_optimizer_and_schedule_is_taken_or_refused_in_a_line(self, tmp_path):
        taken = set()
        for kind, names in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
            for name in names:
                try:
                    check_available(config(tmp_path, **{kind: name.value}))
                    taken.add(name.value)
                except UsageError as error:
                    assert "\n" not in str(error) and name.value in str(error)
        assert taken >= {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "linear", "cosine", "constant"}


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    make_pipeline("sd", "epsilon", tiny).save_pretrained(folder)
    return str(folder)


def test_options_that_work_do_something(source, tmp_path):
    """Each of these trains another model than the same run without it."""

    dataset = make_dataset()

    def trained(**settings):
        trainer = CraftTrainer(source, config(tmp_path, learning_rate=1e-3, **settings), dataset)
        trainer.train()
        return torch.cat([value.flatten() for value in weights(trainer).values()])

    plain = trained()
    for settings in (
        {"seed": 1},
        {"weight_decay": 0.5},
        {"adam_beta1": 0.5},
        {"max_grad_norm": 1e-6},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.5}},
        {"optim": "rmsprop", "optim_args": "alpha=0.5"},
    ):
        assert not torch.equal(plain, trained(**settings)), settings
    assert torch.equal(plain, trained())


class TestHalfPrecision:
    def test_emulated_bfloat16_does_not_count(self, monkeypatch):
        """As PyTorch says of a T4: supported, if emulation counts."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        assert native_half_precision() == "fp16"
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        assert native_half_precision() == "bf16"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert native_half_precision() is None

    @pytest.mark.parametrize(
        ("half", "settings", "expected"),
        [
            ("fp16", {}, (False, True, True)),
            ("bf16", {}, (True, False, False)),
            (None, {}, (False, False, False)),
            ("fp16", {"bf16": False}, (False, False, False)),
            ("fp16", {"fp16": True}, (False, True, False)),
            ("bf16", {"fp16": True}, (False, True, False)),
        ],
    )
    def test_default(self, tmp_path, monkeypatch, half, settings, expected):
        monkeypatch.setattr(diffusion_config, "native_half_precision", lambda: half)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if half == "fp16" else "no")  # a launcher's wish
        monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
        args = config(tmp_path, use_cpu=False, **settings)
        assert (args.bf16, args.fp16, args.fell_back_to_fp16) == expected
