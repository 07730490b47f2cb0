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

"""Two machines, each a process group of its own on loopback, train what one process trains, or say why they cannot."""

import socket

import pytest
from safetensors.torch import load_file

from craft_trl.cli.main import main

from ..helpers import make_dataset
from ..pipelines import make_pipeline
from ..processes import RANK, Program


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A small model and a dataset."""
    folder = tmp_path_factory.mktemp("machines")
    make_pipeline("sd", "epsilon", tiny).save_pretrained(folder / "model")
    make_dataset([1.0, 0.5, 2.0, 0.25, 1.5]).save_to_disk(str(folder / "dataset"))
    make_dataset([1.0, 0.5, 2.0, 0.25, 1.0]).save_to_disk(str(folder / "another"))
    return folder


def options(folder, output_dir, dataset="dataset") -> list[str]:
    return [
        "--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / dataset), "--output_dir", str(output_dir),
        "--max_steps", "4", "--global_batch_size", "8", "--per_device_train_batch_size", "2", "--save_steps", "2",
        "--lr_scheduler_type", "constant", "--learning_rate", "1e-4",
    ]  # fmt: skip


def machine(rank: int, port: int) -> list[str]:
    """Options of accelerate on one of two machines with one process each."""
    return [
        "--num_machines", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port),
        "--num_processes", "2",
    ]  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def difference(one, two) -> float:
    a, b = (load_file(path / "unet" / "diffusion_pytorch_model.safetensors") for path in (one, two))
    return max((a[key] - b[key]).abs().max().item() for key in a)


def on_two_machines(monkeypatch, *commands: list[str], folders=None) -> list[Program]:
    """The two commands of `craft` through `accelerate launch`, each in its folder."""
    from accelerate.commands.launch import main as accelerate

    port, programs = free_port(), []
    for rank, command in enumerate(commands):
        if folders:
            monkeypatch.chdir(folders[rank])
        fork = {"PET_START_METHOD": "fork", "PET_RUN_PATH": "1"}
        programs.append(Program(accelerate, "--multi_gpu", *machine(rank, port), RANK, *command, **fork))
    return programs


def test_same_as_one_process(folder, tmp_path, monkeypatch):
    """`craft train` on each of two machines; then machine 0 is found done, and machine 1 with it."""
    assert main(["train", *options(folder, tmp_path / "one")]) == 0
    port = free_port()
    trained = [
        "train",
        *options(folder, tmp_path / "two"),
        "--accelerate_config",
        "multi_node",
        "--mixed_precision",
        "no",
    ]
    programs = [Program(main, *trained, *machine(rank, port)) for rank in range(2)]
    first, second = (program.finish() for program in programs)
    assert "[train] 4 steps on 5 images" in first and "[train]" not in second
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-6
    names = ("optimizer.pt", "rng_state_0.pth", "rng_state_1.pth")
    assert all((tmp_path / "two" / "checkpoint-4" / name).is_file() for name in names)
    assert not list((tmp_path / "two").glob("encoded*")) and not list((tmp_path / "two").glob(".shared*"))

    programs = on_two_machines(monkeypatch, *[trained[:-4]] * 2)
    first, second = (program.finish() for program in programs)
    assert "[train] done before: 4 steps on 5 images" in first and "rank 1 of 2 has ended" in second


def test_disks_of_their_own(folder, tmp_path, monkeypatch):
    """Each machine is told, before anything is encoded; and nothing is left that would look like work."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for path in folders:
        path.mkdir()
    command = ["train", *options(folder, "run")]
    for program in on_two_machines(monkeypatch, command, command, folders=folders):
        said = program.finish(1)
        assert "craft: error: The machines do not share run: each sees another folder of that name." in said
        assert "Encoding" not in said
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["stage.json"]
    assert not (tmp_path / "b" / "run").exists()


def test_other_data(folder, tmp_path, monkeypatch):
    commands = [["train", *options(folder, tmp_path / "run", dataset)] for dataset in ("dataset", "another")]
    first, second = (program.finish(1) for program in on_two_machines(monkeypatch, *commands))
    assert "craft: error: Process 1 has another dataset than process 0: copy model, dataset and recipe" in first
    assert not (tmp_path / "run").exists() and "craft: error" not in second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_machines", "2"], "num_processes is missing: with num_machines 2, give the processes of all machines"),
        (["--num_machines", "2", "--num_processes", "3"], "num_processes must be a multiple of the 2 machines, got 3"),
        (["--num_machines", "2", "--num_processes", "4"], "machine_rank is missing: with num_machines 2"),
        (["--accelerate_config", "zero2", "--num_machines", "2"], "num_processes is missing"),
        (["--num_machines=2", "--num_processes=4", "--machine_rank=2"], "machine_rank must be from 0 to 1, got 2"),
        (["--num_machines=2", "--num-processes=4", "--machine-rank=1"], "main_process_ip is missing"),
        (["--machine_rank", "1"], "machine_rank has no effect on one machine: leave it out, or set num_machines"),
        (["--num_machines", "two"], "Argument --num_machines/--num-machines: invalid int value: 'two'"),
        (["--num_machines", "2", "3"], "Unexpected argument '3'"),
        (["--multi_gpu", "now"], "Unexpected argument 'now'"),
        (["--num_machins", "2"], "Unknown argument --num_machins. Did you mean --num_machines"),
        (["--fsdp_versionn", "2"], "Unknown argument --fsdp_versionn. Did you mean --fsdp_version"),
        (["--learning_rat", "2"], "Unknown argument --learning_rat. Did you mean --learning_rate"),
        (["--config_file", "x.yaml"], "Unknown argument --config_file."),
    ],
)
def test_mistakes(folder, capfd, arguments, message):
    assert main(["train", *options(folder, "run"), *arguments]) == 2
    said = capfd.readouterr().err
    assert said.startswith("craft: error: ") and said.count("\n") == 1 and message in said, said
