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


"""`craft run` as one command: whatever the training writes is judged, and no stage keeps memory from the next one."""

import gc
import json
import re
import shutil
import weakref
from pathlib import Path

import pytest
import yaml
from torch import nn

from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.planning.recipes import RunRecipes
from craft_trl.planning.rounds import check_rounds
from craft_trl.scripts import dpo, evaluate, expand, generate, run, scored, spo, train
from craft_trl.scripts.launch import check_launch, run_script
from craft_trl.trainer.arguments import LaunchArguments

from ..conftest import ROOT


@pytest.fixture
def adapter(recipes):
    """A second recipe of the training, of an adapter, in a folder of its own."""
    content = yaml.safe_load((recipes.folder / "craft.yaml").read_text())
    content |= {"use_peft": True, "lora_r": 2, "output_dir": "runs/tiny/lora", "learning_rate": 1e-2, "max_steps": 3}
    (recipes.folder / "craft_lora.yaml").write_text(yaml.safe_dump(content | {"warmup_steps": 0}))
    return recipes


@pytest.fixture
def left_over(monkeypatch):
    """By stage, the networks of those before it that are alive when it begins. Cycles that hold them are not collected."""
    existing = weakref.WeakSet(thing for thing in gc.get_objects() if isinstance(thing, nn.Module))
    left = {}

    def watch(module):
        work = module.main

        def watching(*args, **kwargs):
            alive = [thing for thing in gc.get_objects() if isinstance(thing, nn.Module) and thing not in existing]
            alive = [thing for thing in alive if next(thing.parameters(), None) is not None]
            left[module.__name__.rpartition(".")[2]] = sorted({type(thing).__name__ for thing in alive})
            return work(*args, **kwargs)

        monkeypatch.setattr(module, "main", watching)

    for module in (expand, generate, run.filter_script, train, evaluate):
        watch(module)
    gc.disable()  # a collection by chance would hide what is left over
    yield left
    gc.enable()


class TestTrainRecipe:
    def test_an_adapter_from_start_to_finish(self, capsys, tmp_path, adapter, left_over):
        command = ["run", str(adapter.folder), "--output_dir", "runs/mine", "--candidates.num_prompts", "4"]
        assert main([*command, "--train_recipe", "craft_lora.yaml"]) == 0
        assert left_over == {"expand": [], "generate": [], "filter": [], "train": [], "evaluate": []}
        out = capsys.readouterr().out
        assert "[run] the evaluation judges craft=lora:runs/mine/lora\n" in out and "Verdict: craft " in out
        results = json.loads((tmp_path / "runs/mine/evaluation/results.json").read_text())
        deltas = [row["delta"] for row in results if row["model"] == "craft" and row["part"] is None]
        assert any(delta != 0 for delta in deltas)  # drawn with the adapter, not with the base
        report = (tmp_path / "runs/mine/evaluation/report.html").read_text()
        assert "<h2>Training loss</h2>" in report
        assert (tmp_path / "runs/mine/lora/pytorch_lora_weights.safetensors").exists()
        assert not (tmp_path / "runs/mine/model").exists() and not (tmp_path / "runs/tiny").exists()

        # The whole model beside it, from the same pool: only what is other is made.
        assert main(command) == 0
        out = capsys.readouterr().out
        assert out.count("done before") == 3 and "[run]" not in out and (tmp_path / "runs/mine/model/unet").is_dir()

    @pytest.mark.parametrize(
        ("options", "models", "judged"),
        [
            ([], "craft=runs/tiny/model", None),
            (["--use_peft", "true"], "craft=lora:runs/tiny/model", "craft=lora:runs/tiny/model"),
            (["--train.output_dir", "runs/tiny/other"], "craft=runs/tiny/other", "craft=runs/tiny/other"),
            (["--train_recipe", "craft_lora"], "craft=lora:runs/tiny/lora", "craft=lora:runs/tiny/lora"),
            (["--train_recipe=craft_lora.yaml", "--output_dir", "o"], "craft=lora:o/lora", "craft=lora:o/lora"),
            (
                ["--use_peft", "true", "--models", "base=x/y", "half=strength:0.5:runs/tiny/model"],
                "half=strength:0.5:lora:runs/tiny/model",
                "half=strength:0.5:lora:runs/tiny/model",
            ),
            (
                ["--output_dir", "o", "--models", "base=x/y", "half=strength:0.5:runs/tiny/model"],
                "half=strength:0.5:o/model",
                None,
            ),
            (["--models", "base=x/y", "mine=lora:runs/tiny/model"], "mine=runs/tiny/model", "mine=runs/tiny/model"),
        ],
    )
    def test_the_evaluation_follows(self, adapter, options, models, judged):
        recipes = RunRecipes.load(adapter.folder, options)
        assert recipes.evaluation.models[1:] == [models] and recipes.judged == judged
        # A process that is started for it judges the same.
        config, _ = evaluate.make_parser().parse_args_and_config(recipes.evaluate_argv)
        assert config == recipes.evaluation
        *_, training, _ = train.make_parser().parse_args_and_config(recipes.train_argv)
        assert training.output_dir == recipes.training.output_dir and recipes.train.use_peft == ("lora:" in models)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--train_recipe"], "--train_recipe needs one file, got none"),
            (["--train_recipe", "craft_lorra.yaml"], "there is no .*craft_lorra.yaml. Did you mean craft_lora.yaml"),
            (["--train_recipe", "evaluate.yaml"], "evaluate.yaml: unknown keys .* Is it a recipe of another command"),
            (["--train_recip", "craft_lora.yaml"], "Unknown argument --train_recip. Did you mean --train_recipe"),
            (["--evaluate.models", "base=x/y", "craft=elsewhere"], "models does not name runs/tiny/model, which"),
            (["--use_peft", "true", "--models", "base=FILE", "craft=runs/tiny/model"], "and .* is a file"),
        ],
    )
    def test_mistakes(self, adapter, options, message):
        options = [option.replace("FILE", str(adapter.folder / "craft.yaml")) for option in options]
        with pytest.raises(UsageError, match=message):
            RunRecipes.load(adapter.folder, options)

    def test_planned(self, capsys, adapter):
        assert main(["plan", str(adapter.folder), "--train_recipe", "craft_lora.yaml", "--gpu", "a100:80"]) == 0
        assert "3 steps of 4 of LoRA" in capsys.readouterr().out


class TestMeanOfTwo:
    """A training on other candidates, in a run of their own, whose model is the mean with that of the first run."""

    @pytest.fixture
    def best(self, recipes):
        for name, changes in (
            ("candidates", {"output_dir": "runs/tiny_all", "train_images": "all", "generate_all": True}),
            ("craft", {"dataset_name": "runs/tiny_all/dataset", "output_dir": "runs/tiny_all/best"}),
        ):
            content = yaml.safe_load((recipes.folder / f"{name}.yaml").read_text()) | changes
            if name == "craft":
                content |= {"average_with": ["runs/tiny/model"], "negative_advantages": "proximal"}
            (recipes.folder / f"{name}_best.yaml").write_text(yaml.safe_dump(content))
        return ["run", str(recipes.folder), "--candidates_recipe", "candidates_best", "--train_recipe", "craft_best"]

    def test_from_start_to_finish(self, capsys, tmp_path, recipes, best):
        assert main(best) == 2
        message = (
            "average_with: there is no pipeline in runs/tiny/model. It is to be the folder of a finished training."
        )
        assert capsys.readouterr().err == f"craft: error: {message}\n" and not (tmp_path / "runs").exists()

        assert main(["run", str(recipes.folder)]) == 0
        files = {path: path.read_bytes() for path in (tmp_path / "runs/tiny").rglob("*") if path.is_file()}
        capsys.readouterr()
        assert main(best) == 0
        out = capsys.readouterr().out
        assert "the mean with runs/tiny/model saved in runs/tiny_all/best" in out
        assert "[run] the evaluation judges craft=runs/tiny_all/best\n" in out
        assert "Report: runs/tiny_all/evaluation/report.html" in out
        # Nothing of the first run is touched.
        assert files == {path: path.read_bytes() for path in (tmp_path / "runs/tiny").rglob("*") if path.is_file()}
        report = (tmp_path / "runs/tiny_all/evaluation/report.html").read_text()
        assert "<h2>Training loss</h2>" in report
        assert main(best) == 0
        assert capsys.readouterr().out.count("done before") == 5

    def test_folders(self, recipes, best):
        for options, folder in (([], "runs/tiny_all"), (["--output_dir", "o"], "o")):
            loaded = RunRecipes.load(recipes.folder, [*best[2:], *options])
            assert loaded.evaluation.models[1:] == [f"craft={folder}/best"]
            assert (loaded.evaluation.run_dir, loaded.evaluation.output_dir) == (folder, f"{folder}/evaluation")
            config, _ = evaluate.make_parser().parse_args_and_config(loaded.evaluate_argv)
            assert config == loaded.evaluation
            arguments, training, _ = train.make_parser().parse_args_and_config(loaded.train_argv)
            assert arguments.average_with == ["runs/tiny/model"] and arguments.dataset_name == f"{folder}/dataset"
            assert training.output_dir == f"{folder}/best"

    def test_no_rounds(self, recipes, best):
        loaded = RunRecipes.load(recipes.folder, [*best[2:], "--rounds", "2"])
        with pytest.raises(UsageError, match="rounds is 2, but average_with is of trainings of the base, and a later"):
            check_rounds(loaded)


class TestOptionsOfAccelerate:
    @pytest.mark.parametrize("command", ["train", "dpo", "scored", "spo"])
    def test_of_a_training(self, capsys, recipes, command):
        """In the recipe and on the command line; what is wrong with them is told as of any other option."""
        script = {"train": train, "dpo": dpo, "scored": scored, "spo": spo}[command]
        path = recipes("craft", main_process_ip="10.0.0.1", num_machines=2, multi_gpu=True, same_network=False)
        *_, launch = script.make_parser().parse_args_and_config(
            ["--config", str(path), "--machine-rank=1", "--num_processes", "4", "--num_machines", "4"]
        )
        assert launch.given and launch.num_processes == 4
        in_recipe = ["--main_process_ip", "10.0.0.1", "--multi_gpu", "--num_machines", "2"]
        assert launch.launch_options == [*in_recipe, "--machine-rank=1", "--num_machines", "4"]
        assert check_launch(launch) == [*launch.launch_options, "--num_processes", "4"]
        with pytest.raises(UsageError, match="num_machines is 4, and `craft run` works on one machine"):
            check_launch(launch, on_one_machine="craft run")
        path = recipes("craft", num_machines=[2])
        assert main([command, "--config", str(path)]) == 2
        assert "craft.yaml: num_machines must be text, a number, or true or false, got [2]." in capsys.readouterr().err
        path = recipes("craft", num_machines="DELETE", main_process_ipp="10.0.0.1")
        assert main([command, "--config", str(path)]) == 2
        assert "unknown key 'main_process_ipp'. Did you mean main_process_ip" in capsys.readouterr().err

    def test_after_the_script(self, capsys, recipes):
        """Where accelerate has started the processes already, they would do nothing."""
        for words in (["--num_processes", "2"], ["--machine_rank=1"], ["--accelerate_config", "zero2"]):
            argv = ["--config", str(recipes("craft")), *words]
            assert run_script(train.main, train.make_parser, argv) == 2
            said = f"craft: error: {words[0].partition('=')[0]} says how processes are started, and these have been"
            assert capsys.readouterr().err.startswith(said)

    def test_one_process_is_not_made_of_several(self, in_tmp_path):
        assert check_launch(LaunchArguments(num_processes=2)) == ["--num_processes", "2", "--multi_gpu"]
        assert check_launch(LaunchArguments(num_processes=1)) == ["--num_processes", "1"]
        assert check_launch(LaunchArguments()) == []
        config = str(ROOT / "accelerate_configs" / "multi_gpu.yaml")
        Path("mine.yaml").write_text("num_machines: two\n")
        with pytest.raises(UsageError, match="accelerate_config: num_machines must be a whole number, got 'two'"):
            check_launch(LaunchArguments("mine.yaml"))
        assert check_launch(LaunchArguments("ddp", 2)) == ["--num_processes", "2", "--config_file", config]

    def test_of_an_evaluation(self, capsys, recipes):
        assert main(["evaluate", "--config", str(recipes("evaluate")), "--num_machines", "2"]) == 2
        said = "It is an option of accelerate: accelerate launch --num_machines ... -m craft_trl.scripts.evaluate --config RECIPE."
        assert capsys.readouterr().err == f"craft: error: Unknown argument --num_machines. {said}\n"

    def test_of_a_run(self, capsys, recipes):
        folder = str(recipes.folder)
        assert RunRecipes.load(recipes.folder, ["--main_process_port", "1234"]).launch.launch_options == [
            "--main_process_port", "1234",
        ]  # fmt: skip
        assert main(["run", folder, "--machine_rank", "1"]) == 2
        assert "machine_rank has no effect on one machine" in capsys.readouterr().err
        machines = ["--num_machines=2", "--train.num_processes=2", "--machine_rank=0", "--main_process_ip=10.0.0.1"]
        assert main(["run", folder, *machines]) == 2
        assert (
            "num_machines is 2, and `craft run` works on one machine: run `craft train` on each"
            in capsys.readouterr().err
        )
        assert main(["expand", "--config", str(recipes("candidates")), "--machine_rank", "1"]) == 2
        assert "accelerate" not in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "1000000"])
def test_wrong_numbers_of_processes(capsys, recipes, number):
    Path("runs/tiny/dataset").mkdir(parents=True)  # a training without one would speak of that first
    for command in (["train", "--config", str(recipes("craft"))], ["evaluate", "--config", str(recipes("evaluate"))]):
        assert main([*command, "--num_processes", number]) == 2
        assert re.fullmatch(r"craft: error: num_processes must be .*\n", capsys.readouterr().err)


def test_started_otherwise_than_it_says(recipes):
    shutil.rmtree("runs", ignore_errors=True)
    parsed = evaluate.make_parser().parse_args_and_config(["--config", str(recipes("evaluate", num_processes=3))])
    with pytest.raises(
        UsageError, match="num_processes is 3, but the script was started as 1: `craft evaluate` starts"
    ):
        evaluate.main(*parsed)
