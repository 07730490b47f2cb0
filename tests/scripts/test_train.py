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

"""`craft train`: what it refuses before the model is loaded, and how it resumes a checkpoint that is named."""

import json
import os
import shutil
import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from craft_trl import CraftTrainer
from craft_trl.cli.main import main
from craft_trl.scripts.train import main as main_of_train
from craft_trl.scripts.train import make_parser

from ..helpers import make_dataset
from ..pipelines import make_pipeline


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A small model, a dataset, and a run that has written checkpoints."""
    folder = tmp_path_factory.mktemp("train")
    make_pipeline("sd", "epsilon", tiny).save_pretrained(folder / "model")
    make_dataset().save_to_disk(str(folder / "dataset"))
    assert train(folder, folder / "run", "--save_steps", "1") == 0
    return folder


def train(folder, output_dir, *arguments):
    return main(
        [
            "train", "--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "dataset"),
            "--output_dir", str(output_dir), "--max_steps", "2", "--global_batch_size", "4", "--use_cpu",
            "--per_device_train_batch_size", "4", *arguments,
        ]
    )  # fmt: skip


@pytest.fixture
def refuses(folder, tmp_path, capsys, monkeypatch):
    """Checks that a command ends with one line that holds a message, and that it loads no model for it."""
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", None)

    def check(message, *arguments):
        assert train(folder, tmp_path / "other", *arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("craft: error: ") and message in error

    return check


def test_a_checkpoint_that_is_none(refuses, folder, tmp_path):
    refuses("nothing: it is not a complete checkpoint", "--resume_from_checkpoint", "nothing")
    shutil.copytree(folder / "run" / "checkpoint-1", tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "trainer_state.json").unlink()
    refuses(
        "checkpoint-1: it is not a complete checkpoint", "--resume_from_checkpoint", str(tmp_path / "checkpoint-1")
    )


def test_a_checkpoint_without_the_state_of_the_optimizer(refuses, folder, tmp_path, capsys):
    shutil.copytree(folder / "run", tmp_path / "other")
    checkpoint = tmp_path / "other" / "checkpoint-2"
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "scheduler.pt").unlink()
    refuses("other/checkpoint-2 has no state of optimizer", "--resume_from_checkpoint", str(checkpoint))


def test_a_run_of_such_checkpoints_starts_again_and_says_so(folder, tmp_path, capsys):
    arguments = ["--save_steps", "1", "--save_only_model"]
    assert train(folder, tmp_path / "again", *arguments) == 0
    record = json.loads((tmp_path / "again" / "stage.json").read_text())
    (tmp_path / "again" / "stage.json").write_text(json.dumps({**record, "finished": False}))
    capsys.readouterr()
    assert train(folder, tmp_path / "again", *arguments) == 0
    out = capsys.readouterr().out
    assert "again/checkpoint-2 has no state of optimizer and schedule (save_only_model): training starts again." in out
    assert "goes on from" not in out
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (folder / "run" / name).read_bytes()


def test_memory_is_given_back(folder, tmp_path):
    """The next stage of a run finds none of the model in its memory."""
    models = []

    class Watched(CraftTrainer):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            models.append(weakref.ref(self.model))

    argv = ["--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "dataset"), "--use_cpu"]
    argv += ["--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--save_strategy", "no", "--bf16", "true"]
    main_of_train(*make_parser().parse_args_and_config(argv), trainer_class=Watched)
    assert [model() for model in models] == [None]


def test_a_checkpoint_of_another_run(refuses, folder):
    checkpoint = str(folder / "run" / "checkpoint-1")
    message = "is of another run: training.learning_rate was 5e-05, is now 0.1"
    refuses(message, "--resume_from_checkpoint", checkpoint, "--learning_rate", "0.1")


def test_a_checkpoint_of_the_same_run(folder, tmp_path, capsys):
    """From another folder: the checkpoint is this run's, whatever the folder that it goes on in."""
    assert train(folder, tmp_path / "again", "--resume_from_checkpoint", str(folder / "run" / "checkpoint-1")) == 0
    assert "goes on from" in capsys.readouterr().out
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (folder / "run" / name).read_bytes()


def test_a_single_file_is_trained_as_its_folder_is(folder, tmp_path):
    """The configuration of the small model lies beside the file; published models need none."""
    shutil.copytree(folder / "model", tmp_path / "beside")
    file = tmp_path / "beside" / "model.safetensors"
    assert main(["export", "--model", str(folder / "model"), "--format", "single-file", "--output", str(file)]) == 0
    assert train(folder, tmp_path / "single", "--model_name_or_path", str(file)) == 0
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "single" / name).read_bytes() == (folder / "run" / name).read_bytes()
    assert (tmp_path / "single" / "vae").is_dir() and not list((tmp_path / "single").glob("source-*"))


def test_an_adapter_for_a_single_file_needs_its_modules(refuses, tmp_path):
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    message = "lora_target_modules is missing: a single file does not name its defaults"
    refuses(message, "--model_name_or_path", str(tmp_path / "x.safetensors"), "--use_peft")


def test_no_worse_image_to_be_pushed_away_from(folder, tmp_path, capsys):
    for advantages, said in (([1.0, 0.5], True), ([1.0, -0.5], False)):
        make_dataset(advantages).save_to_disk(str(tmp_path / f"dataset{said}"))
        arguments = "--dataset_name", str(tmp_path / f"dataset{said}"), "--max_steps", "1", "--save_strategy", "no"
        assert train(folder, tmp_path / f"out{said}", *arguments, "--negative_advantages", "proximal") == 0
        message = "[train] negative_advantages is proximal, but no advantage in the dataset is below 0: train_images: kept_groups"
        assert (message in capsys.readouterr().out) == said
    assert (
        train(folder, tmp_path / "outTrue", "--dataset_name", str(tmp_path / "datasetTrue"), "--save_strategy", "no")
        == 0
    )
    assert "below 0" not in capsys.readouterr().out


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class TestAverage:
    def test_the_mean_is_saved(self, folder, tmp_path, capsys):
        assert train(folder, tmp_path / "seed1", "--seed", "1") == 0
        arguments = ["--average_with", str(tmp_path / "seed1")]
        assert train(folder, tmp_path / "mean", *arguments) == 0
        assert f", the mean with {tmp_path / 'seed1'} saved in {tmp_path / 'mean'}" in capsys.readouterr().out
        own, other, mean = (
            load_file(path / WEIGHTS) for path in (folder / "run", tmp_path / "seed1", tmp_path / "mean")
        )
        assert own.keys() == mean.keys() and any(not torch.equal(value, other[name]) for name, value in own.items())
        assert all(torch.equal(value, (own[name] + other[name]) / 2) for name, value in mean.items())
        assert not list((tmp_path / "mean").rglob("*.tmp"))
        # As the export of the two has it, and as a model that says what it is.
        exported = [
            "--model",
            str(folder / "run"),
            "--average",
            str(tmp_path / "seed1"),
            "--output",
            str(tmp_path / "x"),
        ]
        assert main(["export", "--format", "diffusers", *exported]) == 0
        assert (tmp_path / "x" / WEIGHTS).read_bytes() == (tmp_path / "mean" / WEIGHTS).read_bytes()
        assert json.loads((tmp_path / "mean" / "training.json").read_text())["averaged_with"] == ["seed1"]
        card = (tmp_path / "mean" / "README.md").read_text()
        assert (
            "mean of those that this training ended with and those of `seed1`, which\nbegan with the same model."
            in card
        )
        assert "averaged_with" not in json.loads((folder / "run" / "training.json").read_text())

        # Stopped between the training and its end: the mean is taken once, of the training's own weights.
        record = json.loads((tmp_path / "mean" / "stage.json").read_text())
        (tmp_path / "mean" / "stage.json").write_text(json.dumps({**record, "finished": False}))
        before = (tmp_path / "mean" / WEIGHTS).read_bytes()
        assert train(folder, tmp_path / "mean", *arguments) == 0
        assert "goes on from" in capsys.readouterr().out and (tmp_path / "mean" / WEIGHTS).read_bytes() == before
        assert train(folder, tmp_path / "mean", *arguments) == 0
        assert "[train] done before" in (out := capsys.readouterr().out) and "the mean with" in out

    def test_mistakes(self, refuses, folder, tmp_path):
        run = str(folder / "run")
        refuses("average_with: there is no pipeline in nothing.", "--average_with", "nothing")
        refuses("average_with has no mean of adapters", "--average_with", run, "--use_peft")
        refuses(f"average_with: {folder / 'model'} has no training.json", "--average_with", str(folder / "model"))
        refuses(f"average_with: {run} is there twice", "--average_with", run, run)
        shutil.copytree(folder / "run", tmp_path / "other")
        refuses(
            f"average_with: {tmp_path / 'other'} is what this training writes",
            "--average_with",
            str(tmp_path / "other"),
        )
        facts = json.loads((tmp_path / "other" / "training.json").read_text()) | {"base_hash": "f" * 64}
        (tmp_path / "other" / "training.json").write_text(json.dumps(facts))
        shutil.move(tmp_path / "other", tmp_path / "foreign")
        foreign = str(tmp_path / "foreign")
        refuses(f"average_with: {foreign} was trained from another model than", "--average_with", foreign)
        refuses(
            f"average_with: {run} and {foreign} were trained from different models", "--average_with", run, foreign
        )
        record = json.loads((tmp_path / "foreign" / "stage.json").read_text()) | {"finished": False}
        (tmp_path / "foreign" / "stage.json").write_text(json.dumps(record))
        refuses(f"average_with: {foreign} is not finished", "--average_with", foreign)


def test_a_dataset_of_another_model(refuses, folder):
    pool = folder / "pool"
    pool.mkdir()
    record = {
        "stage": "generate",
        "fingerprint": "f",
        "finished": True,
        "summary": {},
        "settings": {"model": "another"},
    }
    (pool / "stage.json").write_text(json.dumps(record))
    try:
        refuses("were drawn by another model: train the model_name_or_path that `craft generate` had")
    finally:
        shutil.rmtree(pool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--global_batch_size", "0"], "global_batch_size must be a multiple of 1, the number of processes; got 0"),
        (["--push_to_hub", "--hub_strategy", "every_save"], "hub_strategy must be 'end', got 'every_save'"),
        (["--report_to", "mlflow"], "report_to must be among tensorboard, trackio, wandb, none; got 'mlflow'"),
        (["--torch_compile"], "use compile_blocks instead"),
        (["--model_name_or_path", "model.safetensors"], "Model model.safetensors: there is no such file"),
        (["--train_prompt", "both"], "train_prompt"),
        (
            ["--num_train_epochs", "5"],
            "num_train_epochs is not supported, got 5.0: max_steps says how long training is",
        ),
        (["--neftune_noise_alpha", "5"], "neftune_noise_alpha is not supported, got 5.0"),
        (["--use_liger_kernel"], "use_liger_kernel is not supported, got True"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "lr_scheduler_type cosine_with_min_lr: One of min_lr or"),
        (
            ["--use_peft", "--lora_target_modules", "q_proj"],
            "this model has no 'q_proj'. There are, among others, to_q",
        ),
        (["--lora_r", "8"], "have no effect without use_peft: set that too"),
        (["--use_peft", "--lora_r", "0"], "lora_r must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be from 0 to 4294967295, got -1"),
    ],
)
def test_settings(refuses, arguments, message):
    refuses(message, *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dataset: dataset.remove_columns("advantage"), "The dataset has no column 'advantage'; it has image"),
        (lambda dataset: dataset.select([]), "changed: it has no rows"),
        (lambda dataset: dataset.select([2, 3]), "No advantage is above 0: there is nothing to train on"),
    ],
)
def test_datasets(refuses, tmp_path, change, message):
    change(make_dataset()).save_to_disk(str(tmp_path / "changed"))
    refuses(message, "--dataset_name", str(tmp_path / "changed"))


def test_a_folder_of_something_else(refuses, tmp_path):
    """Such as a pool, or what was exported for other trainers."""
    (tmp_path / "stage.json").write_text("{}")
    message = (
        "this folder holds no dataset that `datasets` saved. `craft filter` makes one of a pool, `craft import` one"
    )
    refuses(message, "--dataset_name", str(tmp_path))


def test_memory_in_one_piece(monkeypatch):
    """Set before the GPU is used, and not against what the user says."""
    for said, expected in (
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "backend:native"),
    ):
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        make_parser()
        assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == expected
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    make_parser()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ
