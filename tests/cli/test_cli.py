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


"""The command line as a person meets it: what it says, and what it does with mistakes."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from craft_trl.cli.main import main

from ..conftest import TINY
from ..processes import Program


def run(capsys, *argv):
    code = main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


class TestHelp:
    def test_overview(self, capsys):
        code, out, _ = run(capsys)
        assert code == 0 and "craft run FOLDER" in out and "craft evaluate" in out

    @pytest.mark.parametrize("command", ["expand", "generate", "filter", "train", "evaluate"])
    def test_every_stage(self, capsys, command):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        out = capsys.readouterr().out
        assert f"craft {command}" in out and "output_dir" in out

    def test_version_and_env(self, capsys):
        assert run(capsys, "--version")[1].strip().count(".") == 2
        code, out, _ = run(capsys, "env")
        assert code == 0 and "diffusers" in out and "torch" in out

    def test_unknown_command(self, capsys):
        code, _, err = run(capsys, "generat")
        assert code == 2 and err == (
            "craft: error: there is no command 'generat'. Known are run, expand, generate, filter, train, evaluate, dpo, scored, transitions, spo, sheet, export, export-dataset, plan, fetch, score, pick, import, blind, bakeoff, push, serve-reward, env.\n"
        )


class TestMistakes:
    """Each is one line on stderr with the value, what is allowed and what to do; exit code 2; nothing written."""

    @pytest.mark.parametrize(
        ("recipe", "changes", "message"),
        [
            ("candidates", {"num_variant": 2}, "unknown key 'num_variant'. Did you mean num_variants"),
            ("candidates", {"num_prompts": "many"}, "num_prompts must be a whole number or null, got 'many'"),
            ("candidates", {"num_variants": 0}, "num_variants must be at least 1, got 0"),
            ("candidates", {"num_variants": 50}, "num_variants must be from 1 to"),
            ("candidates", {"prompts": "nothing.txt"}, "Cannot read the prompts nothing.txt: No such file"),
            ("candidates", {"prompts": "DELETE"}, "prompts is missing: give it in the recipe or as --prompts"),
            ("candidates", {"num_prompts": 5000}, "num_prompts must be from 1 to 2000"),
            (
                "candidates",
                {"rewards": ["hpsv4"]},
                "There is no reward 'hpsv4'. Known are hpsv2, pickscore, aesthetic",
            ),
            ("candidates", {"rewards": ["hpsv2=./nowhere"]}, "there is no folder"),
            (
                "candidates",
                {"model_name_or_path": "./nowhere"},
                "there is no such folder",
            ),
            ("candidates", {"filter_level": "prompt"}, "filter_level must be one of group, image, got 'prompt'"),
            ("candidates", {"filter_rewards": ["hps"]}, "filter_rewards must be among the rewards hpsv2, pickscore"),
            ("candidates", {"output_dir": "/proc/nowhere"}, "is runs/tiny/dataset, but"),
            ("craft", {"learning_rat": 1}, "unknown key 'learning_rat'. Did you mean learning_rate"),
            ("craft", {"max_steps": "DELETE"}, "max_steps must be at least 1, got -1"),
            ("craft", {"gradient_accumulation_steps": 3}, "leave it out"),
            ("craft", {"dataset_name": "runs/other/dataset"}, "dataset_name is runs/other/dataset, but"),
            ("evaluate", {"models": ["pipeline"]}, "models must be NAME=FOLDER"),
            ("evaluate", {"held_out_rewards": ["x=./nothing.py:x"]}, "there is no file"),
            ("evaluate", {"prompts": "./prompts/none.jsonl"}, "Cannot read the prompts"),
        ],
    )
    def test_in_a_recipe(self, capsys, tmp_path, recipes, recipe, changes, message):
        recipes(recipe, **changes)
        code, out, err = run(capsys, "run", recipes.folder)
        assert code == 2 and err.startswith("craft: error: ") and err.count("\n") == 1 and message in err, err
        assert out == "" and not (tmp_path / "runs").exists()

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ([], "craft run needs a folder of recipes, such as recipes/tiny"),
            (["nowhere"], "nowhere is no folder with candidates.yaml, craft.yaml, evaluate.yaml"),
            (["RECIPES", "--num_prompt", "3"], "Unknown argument --num_prompt. Did you mean --num_prompts"),
            (
                ["RECIPES", "--num_prompts", "3"],
                "known to several stages: say --candidates.num_prompts or --evaluate.num_",
            ),
            (["RECIPES", "--generate.num_prompts", "3"], "Before the dot goes one of candidates, train, evaluate"),
            (["RECIPES", "--max_steps", "x"], "invalid int value: 'x'"),
            (["RECIPES", "--output_dir"], "--output_dir needs one folder, got none"),
            (["RECIPES", "--output_dir", "a", "b"], "--output_dir needs one folder, got a b"),
            (["RECIPES", "--max_steps=3", "3"], "Unexpected argument '3'"),
            (["RECIPES", "--max_steps=x"], "invalid int value: 'x'"),
            (["RECIPES", "--output_dir=/proc/nowhere"], "Cannot write to /proc/nowhere"),
            (["RECIPES", "3"], "Unexpected argument '3'"),
            (["RECIPES", "--output_dir", "/proc/nowhere"], "Cannot write to /proc/nowhere"),
            (
                ["RECIPES", "--accelerate_config", "zero9"],
                "accelerate_config 'zero9' is neither a file nor one of cpu, fsdp2",
            ),
        ],
    )
    def test_on_the_command_line(self, capsys, recipes, args, message):
        args = [str(recipes.folder) if arg == "RECIPES" else arg for arg in args]
        code, out, err = run(capsys, "run", *args)
        assert code == 2 and err.startswith("craft: error: ") and err.count("\n") == 1 and message in err, err
        assert out == ""

    @pytest.mark.parametrize(
        ("command", "key"),
        [
            ("run RECIPES", "output_dir"),
            ("expand --config RECIPES/candidates.yaml", "output_dir"),
            ("generate --config RECIPES/candidates.yaml", "output_dir"),
            ("filter --config RECIPES/candidates.yaml", "output_dir"),
            ("train --config RECIPES/craft.yaml", "output_dir"),
            ("evaluate --config RECIPES/evaluate.yaml", "output_dir"),
            ("dpo --config RECIPES/craft.yaml", "output_dir"),
            ("scored --config RECIPES/craft.yaml", "output_dir"),
            ("spo --config RECIPES/craft.yaml", "output_dir"),
            ("transitions --config RECIPES/candidates.yaml", "output_dir"),
            ("sheet --config RECIPES/candidates.yaml", "output_dir"),
            ("export --model RECIPES/pipeline", "output"),
            ("plan RECIPES", "output_dir"),
            ("bakeoff RECIPES/bakeoff.yaml", "output_dir"),
            ("push RECIPES", "repo_id"),
            ("serve-reward hpsv2", "port"),
            ("env", None),
        ],
    )
    def test_a_word_that_no_option_takes(self, capsys, tmp_path, recipes, command, key):
        shutil.copy(TINY / "bakeoff.yaml", recipes.folder)
        argv = command.replace("RECIPES", str(recipes.folder)).split()
        remedy = f"Write --{key} x/y." if key else "takes no arguments"
        for word, said in ((f"{key}=x/y", remedy), ("stray", "'stray'")):
            code, out, err = run(capsys, *argv, word)
            assert code == 2 and err.startswith("craft: error: ") and err.count("\n") == 1, err
            assert said in err and repr(word) in err and out == ""
        assert not (tmp_path / "runs").exists() and not (tmp_path / "x").exists()

    def test_bad_line_in_a_prompt_file(self, capsys, tmp_path, recipes):
        (tmp_path / "p.jsonl").write_text('{"prompt": "a fox"}\n{"prompt": "a c')
        path = recipes("candidates", prompts=str(tmp_path / "p.jsonl"))
        code, _, err = run(capsys, "expand", "--config", path)
        assert code == 2 and "p.jsonl, line 2: not JSON" in err

    def test_stages_in_the_wrong_order(self, capsys, recipes):
        path = recipes("candidates")
        assert "run `craft expand` first" in run(capsys, "generate", "--config", path)[2]
        assert run(capsys, "expand", "--config", path)[0] == 0
        assert "run `craft generate` first" in run(capsys, "filter", "--config", path)[2]
        code, _, err = run(capsys, "train", "--config", recipes("craft"))
        assert code == 2 and "Dataset runs/tiny/dataset: there is no such folder. `craft filter` makes one" in err
        code, _, err = run(capsys, "evaluate", "--config", recipes("evaluate"))
        assert code == 2 and "Model runs/tiny/model: there is no such folder" in err

    def test_as_a_process(self, recipes):
        """Through `accelerate launch` and `craft` as well: one line, the exit code, no traceback."""
        path = recipes("craft", dataset_name="runs/none")
        command = [sys.executable, "-m", "craft_trl.scripts.train", "--config", path]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 2, process.stderr
        for output in (process.stderr, Program(main, "train", "--config", path).finish(2)):
            assert output.splitlines()[-1].startswith("craft: error: Dataset runs/none: there is no such folder")
            assert "Traceback" not in output


class TestStages:
    def test_each_alone_then_changed(self, capsys, tmp_path, recipes):
        candidates, craft, evaluate = (recipes(name) for name in ("candidates", "craft", "evaluate"))
        commands = [("expand", candidates), ("generate", candidates), ("filter", candidates), ("train", craft)]
        commands.append(("evaluate", evaluate))
        for command, path in commands:
            code, out, err = run(capsys, command, "--config", path)
            assert code == 0 and f"[{command}] " in out and "done before" not in out, err
        assert "Verdict: " in out and (tmp_path / "runs/tiny/evaluation/report.html").exists()
        for command, path in commands:
            code, out, _ = run(capsys, command, "--config", path)
            assert code == 0 and f"[{command}] done before" in out

        # A filter of other settings needs no image made again, and sets the old dataset aside.
        _, out, _ = run(capsys, "filter", "--config", candidates, "--filter_rewards", "hpsv2")
        assert 'filter_rewards was ["hpsv2", "pickscore", "aesthetic"], is now ["hpsv2"]' in out and "set aside" in out

        # A pool of other settings is refused, and what differs is named.
        code, _, err = run(capsys, "generate", "--config", candidates, "--guidance_scale", "7.5")
        assert code == 2 and "sampling.guidance_scale was 2.0, is now 7.5" in err

        # More variants or prompts only add to the pool.
        pool = tmp_path / "runs/tiny/pool"
        shards = {path.name for path in pool.glob("*.parquet")}
        assert run(capsys, "expand", "--config", candidates, "--num_prompts", "8")[0] == 0
        _, out, _ = run(capsys, "generate", "--config", candidates, "--num_prompts", "8")
        made = 2 * (1 + yaml.safe_load(candidates.read_text())["num_variants"])
        assert f"{made} images made" in out and shards < {path.name for path in pool.glob("*.parquet")}

    def test_smoke(self, capsys, tmp_path, recipes):
        """Four prompts go through everything, and what they cost is not spent again."""
        path = recipes("candidates", generate_all=True)
        assert run(capsys, "expand", "--config", path)[0] == 0
        code, out, err = run(capsys, "generate", "--config", path, "--smoke")
        assert code == 0 and "12 images made and scored" in out and "smoke: of 8 variants of 4 prompts: " in out, err
        assert not json.loads((tmp_path / "runs/tiny/pool/stage.json").read_text())["finished"]
        assert "done before: 12 images" in run(capsys, "generate", "--config", path, "--smoke")[1]
        assert "6 images made and scored, 18 in" in run(capsys, "generate", "--config", path)[1]

    def test_no_group_passes(self, capsys, tmp_path, recipes):
        (tmp_path / "never.py").write_text("def never(images, prompts): return [0.0] * len(images)\n")
        path = recipes("candidates", rewards=["never=./never.py:never"], num_prompts=2)
        shutil.move(tmp_path / "never.py", recipes.folder)
        for command in ("expand", "generate"):
            assert run(capsys, command, "--config", path)[0] == 0
        code, _, err = run(capsys, "filter", "--config", path)
        assert code == 1 and "never 0 beat their original" in err and "The pool is kept" in err
        assert list((tmp_path / "runs/tiny/pool").glob("*.parquet"))

    def test_results(self, capsys, tmp_path, recipes):
        recipes(
            "craft",
            warmup_steps=0,  # from 0, the first step would change nothing, whatever the learning rate
            held_out_rewards=["imagereward=./evaluators/imagereward"],
            guard_prompts="./prompts/tiny-parti.jsonl",
            guard_num_prompts=8,
            guard_num_images_per_prompt=1,
            guard_num_inference_steps=1,
            guard_steps=1,
            guard_stop=False,
        )
        code, out, err = run(
            capsys, "run", recipes.folder, "--output_dir", "runs/mine", "--candidates.num_prompts", "4"
        )
        assert code == 0, err
        run_dir = tmp_path / "runs" / "mine"
        note = "imagereward: the guard of craft saved the step of the training that this judge liked best"
        assert note in out and note in (run_dir / "evaluation" / "report.html").read_text()
        assert (run_dir / "model" / "guard" / "verdict.txt").read_text().count("\n") == 3
        rows = json.loads((run_dir / "evaluation" / "results.json").read_text())
        assert {row["role"] for row in rows} == {"training", "held_out"}
        assert {
            "model",
            "metric",
            "role",
            "n",
            "mean",
            "median",
            "delta",
            "ci_low",
            "ci_high",
            "win_rate",
            "settings",
        } <= set(rows[0])
        assert len({row["metric"] for row in rows}) >= 6 and all(row["n"] == 4 for row in rows)
        report = (run_dir / "evaluation" / "report.html").read_text()
        for expected in ("What it was trained on", "Before and after", "Training loss", "Time per stage", "Settings"):
            assert f"<h2>{expected}</h2>" in report
        assert "http://" not in report.replace("http://www.w3.org", "") and "https://" not in report
        assert not (tmp_path / "runs" / "tiny").exists()

        # Again: nothing is done twice. With another learning rate: only training and what comes after it.
        arguments = ["run", recipes.folder, "--output_dir", "runs/mine", "--candidates.num_prompts", "4"]
        _, out, _ = run(capsys, *arguments)
        assert out.count("done before") == 5
        _, out, _ = run(capsys, *arguments, "--learning_rate", "2e-4")
        assert out.count("done before") == 3 and "training.learning_rate was 0.0001, is now 0.0002" in out
        _, out, _ = run(capsys, *arguments)
        assert "taken back" in out
