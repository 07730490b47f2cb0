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


"""`craft run --rounds`: who draws, what it is compared with, what goes on and what stops, killed and gone on with."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from craft_trl.candidates.config import CandidatesConfig
from craft_trl.candidates.generation import ImageGenerator
from craft_trl.candidates.groups import load_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.evaluation.rounds import Rounds, held_out_gains, pass_shares
from craft_trl.planning.recipes import RunRecipes
from craft_trl.planning.rounds import check_rounds, recipes_of_round

from ..processes import Program


JUDGES = """
import numpy as np
import torch


def contrast(images, prompts):
    return torch.tensor([float(np.asarray(image, dtype=np.float32).std()) for image in images])


def extremes(images, prompts):
    return torch.tensor([float(np.isin(np.asarray(image), (0, 255)).mean()) for image in images])
"""
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(recipes):
    """
    Recipes of a training so wild that whatever the machine, its model draws images of more contrast, which is the reward, with
    pixels at the ends of their range, which the held-out judge likes.
    """
    (recipes.folder / "judges.py").write_text(JUDGES)
    reward, judge = ["contrast=./judges.py:contrast"], ["extremes=./judges.py:extremes"]
    recipes("candidates", rewards=reward, num_variants=1)
    recipes("craft", learning_rate=1e-2, warmup_steps=0, lr_scheduler_type="constant", save_steps=1)
    recipes("evaluate", rewards=reward, held_out_rewards=judge)
    return recipes.folder


def files(folder: Path) -> dict[str, bytes]:
    left_out = ("timings.json", ".lock")
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith(left_out)]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def decided(folder: Path) -> list[dict]:
    rounds = json.loads((folder / "rounds.json").read_text())["rounds"]
    return [{name: value for name, value in row.items() if name != "model"} for row in rounds]


def pool_of(folder: Path) -> CandidatePool:
    return CandidatePool(folder / "pool", ["contrast"])


def test_a_run_goes_on_in_rounds(folder, tmp_path, capsys):
    """A run of one round is gone on with; one that is killed in its second round and started again ends alike."""
    killed, whole = tmp_path / "runs" / "killed", tmp_path / "runs" / "whole"
    assert main(["run", str(folder), "--output_dir", "runs/whole"]) == 0
    first = files(whole)
    assert "[run]" not in capsys.readouterr().out and "rounds.json" not in first
    shutil.copytree(whole, killed)
    moments = {
        "generate": lambda: any((killed / "round-2" / "pool").glob("shard-*.parquet")),
        "train": lambda: (killed / "round-2" / "model" / "checkpoint-1" / "trainer_state.json").exists(),
    }
    for stage, moment in moments.items():
        program = Program(main, "run", folder, "--output_dir", "runs/killed", "--rounds", "2")
        while not moment():
            assert program.is_alive(), f"ended before it could be killed in {stage}: {program.output}"
            time.sleep(0.0005)
        program.kill()
        program.finish(-9)
    program = Program(main, "run", folder, "--output_dir", "runs/killed", "--rounds", "2")
    assert main(["run", str(folder), "--output_dir", "runs/whole", "--rounds", "2"]) == 0
    out = capsys.readouterr().out

    # Round 1 is the run that it was, to the byte.
    after = files(whole)
    assert out.count("done before") == 5 and {name: after[name] for name in first} == first
    assert (
        "[run] round 1 of 2: held-out gain +" in out
        and "goes on: its held-out gain is above the base model's 0" in out
    )
    assert "[run] round 2: runs/whole/model draws and is trained, in runs/whole/round-2" in out
    assert "[generate] 6 originals of runs/whole, as they are" in out and "6 images made and scored, 12 in" in out
    assert "[run] the best of 2 rounds is round " in out
    draws_its_variants(folder, whole)
    begins_with_the_last_model(whole)
    is_compared_with_all_before(whole)

    program.finish()
    assert decided(killed) == decided(whole)
    for name in ("dataset", "round-2/dataset"):
        assert files(killed / name) == files(whole / name)
    for name in (f"model/{UNET}", f"round-2/model/{UNET}"):
        expected, got = load_file(whole / name), load_file(killed / name)
        assert all((expected[key] == got[key]).all() for key in expected)


def draws_its_variants(folder, run):
    """The originals of the second pool are the base's, to the byte; its variants are drawn by the model of round 1."""
    groups = load_groups(run / "prompts" / "groups.jsonl")
    assert load_groups(run / "round-2" / "prompts" / "groups.jsonl") == groups
    base, tuned = pool_of(run), pool_of(run / "round-2")
    originals, variants = [group.keys[0] for group in groups], [group.keys[1] for group in groups]
    assert list(base.images(originals)) == list(tuned.images(originals)) and not tuned.damaged
    assert all(base.scores[key] == tuned.scores[key] for key in originals)
    config = CandidatesConfig(**yaml.safe_load((folder / "candidates.yaml").read_text()))
    generator = ImageGenerator(str(run / "model"), config)
    drawn = generator([text for _, text, _ in variants[:4]], [seed for *_, seed in variants[:4]])
    contrasts = [np.asarray(image, dtype=np.float32).std() for image in drawn]
    assert contrasts == pytest.approx([tuned.scores[key][0] for key in variants[:4]], abs=0.5)
    assert contrasts != pytest.approx([base.scores[key][0] for key in variants[:4]], abs=0.5)
    record = json.loads((run / "round-2" / "pool" / "stage.json").read_text())
    first = json.loads((run / "pool" / "stage.json").read_text())
    assert record["settings"]["originals"] == first["fingerprint"] and "originals" not in first["settings"]
    # The rule of the filter holds of the base's originals.
    kept = {key for group in groups if tuned.scores[(key := group.keys[1])] > base.scores[group.keys[0]]}
    summary = json.loads((run / "round-2" / "dataset" / "stage.json").read_text())["summary"]
    assert summary["kept"] == len(kept) and decided(run)[1]["pass_rate"] == pytest.approx(len(kept) / 6)
    assert pass_shares(run / "round-2" / "dataset").tolist() == [group.keys[1] in kept for group in groups]


def begins_with_the_last_model(run):
    settings = json.loads((run / "round-2" / "model" / "stage.json").read_text())["settings"]
    assert settings["model"] == json.loads((run / "round-2" / "pool" / "stage.json").read_text())["settings"]["model"]
    facts = json.loads((run / "round-2" / "model" / "training.json").read_text())
    assert (facts["rounds"], facts["base_name"], facts["began_with"]) == (2, "pipeline", "model")
    card = (run / "round-2" / "model" / "README.md").read_text()
    assert "In 2 rounds: from the second on" in card and "a local model, `pipeline`" in card
    assert "rounds" not in json.loads((run / "model" / "training.json").read_text())


def is_compared_with_all_before(run):
    rows = json.loads((run / "round-2" / "evaluation" / "results.json").read_text())
    assert list(rows[0]["settings"]["models"]) == ["base", "round-1", "round-2"]
    earlier = json.loads((run / "evaluation" / "results.json").read_text())
    by_name = {row["model"]: row["delta"] for row in rows if row["metric"] == "extremes"}
    assert by_name["round-1"] == next(
        r["delta"] for r in earlier if r["model"] == "craft" and r["metric"] == "extremes"
    )
    # Drawn once: of the base, and of each round.
    images = run / "round-2" / "evaluation" / "images"
    assert images.is_symlink() and images.samefile(run / "evaluation" / "images")
    assert sorted(len(CandidatePool(path, ["contrast", "extremes"])) for path in images.iterdir()) == [4, 4, 4]


def test_an_adapter_is_merged_for_the_next_round(folder, tmp_path, capsys):
    options = ["--use_peft", "true", "--lora_r", "4", "--learning_rate", "0.3", "--rounds", "2"]
    assert main(["run", str(folder), *options, "--output_dir", "runs/lora"]) == 0
    out, run = capsys.readouterr().out, tmp_path / "runs" / "lora"
    assert "[merge] runs/lora/model merged, in runs/lora/merged" in out
    assert "[merge] runs/lora/round-2/model merged, in runs/lora/round-2/merged" in out
    models = json.loads((run / "round-2/evaluation/results.json").read_text())[0]["settings"]["models"]
    assert "+lora:" in models["round-1"] and "+lora:" not in models["round-2"]
    # What is merged draws what the adapter draws.
    pipeline = StableDiffusionXLPipeline.from_pretrained(run / "merged")
    pipeline.set_progress_bar_config(disable=True)
    other = StableDiffusionXLPipeline.from_pretrained(folder / "pipeline")
    other.set_progress_bar_config(disable=True)
    other.load_lora_weights(run / "model")
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    one, two = (p("a fox", generator=torch.Generator().manual_seed(0), **options).images for p in (pipeline, other))
    np.testing.assert_allclose(one, two, atol=2e-3)
    assert json.loads((run / "round-2/merged/training.json").read_text())["lora"] is None


def test_a_round_that_passes_nothing_is_not_trained(folder, capsys):
    """Where less contrast is wanted, the wild model passes nothing against the base's originals."""
    (folder / "judges.py").write_text(JUDGES + "\n\ncontrast.higher_is_better = False\n")
    assert main(["run", str(folder), "--rounds", "3"]) == 0
    out = capsys.readouterr().out
    assert "[run] round 2 of 3: stops untrained: no variant passes the filter\n" in out
    assert "[run] the best of 2 rounds is round 1, runs/tiny/model" in out
    content = json.loads(Path("runs/tiny/rounds.json").read_text())
    assert content["best"] == 1 and content["asked"] == 3 and content["rounds"][1]["gain"] is None
    assert not Path("runs/tiny/round-2/model").exists()


class TestRule:
    def evaluation(self, folder, judges, **models):
        """A finished evaluation of two prompts with two images each, of scores by model and judge."""
        folder.mkdir(parents=True)
        settings = {"models": dict.fromkeys(models, "hash"), "prompts": {"n": 2}}
        rows = [
            {"metric": judge, "role": role, "higher_is_better": higher, "settings": settings}
            for judge, (role, higher) in judges.items()
        ]
        (folder / "results.json").write_text(json.dumps(rows))
        table = {"model": [name for name in models for _ in range(4)]}
        table |= {judge: [v for scores in models.values() for v in scores[judge]] for judge in judges}
        pq.write_table(pa.table(table), folder / "scores.parquet")
        return folder

    def test_gain_by_hand(self, tmp_path):
        judges = {"hpsv2": ("training", True), "quality": ("held_out", True), "defects": ("held_out", False)}
        base = {"hpsv2": [9, 9, 9, 9], "quality": [1, 3, 1, 3], "defects": [0, 4, 4, 0]}  # deviations 1 and 2
        tuned = {"hpsv2": [0, 0, 0, 0], "quality": [3, 5, 1, 3], "defects": [0, 0, 2, 0]}
        gains = held_out_gains(self.evaluation(tmp_path / "e", judges, base=base, craft=tuned))
        # The first prompt: (+2 / 1 + 2 / 2) / 2; the second: (0 + 1 / 2) / 2.
        assert list(gains) == ["craft"]
        np.testing.assert_allclose(gains["craft"], [1.5, 0.25])

    def test_decisions(self, tmp_path):
        judges, base = {"quality": ("held_out", True)}, {"quality": [1, 3, 1, 3]}

        def after(number, gain):
            models = {"base": base, "round": {"quality": [value + gain for value in base["quality"]]}}
            return self.evaluation(tmp_path / str(number), judges, **models)

        half, less = np.tile([0.0, 1.0, 0.5, 0.5], 8), np.tile([0.0, 0.5, 0.5, 0.0], 8)
        rounds = Rounds(tmp_path, 4)
        assert rounds.filtered("model", half) and rounds.evaluated(after(1, 0.25), "round")
        assert rounds.filtered("round-2/model", half) and rounds.evaluated(after(2, 0.5), "round")
        assert rounds.rounds[1].decision == "goes on: its held-out gain is above round 1's +0.250"
        assert rounds.filtered("round-3/model", half + 0.1) and not rounds.evaluated(after(3, 0.5), "round")
        assert rounds.rounds[2].decision == "stops: its held-out gain is not above round 2's +0.500"
        assert json.loads((tmp_path / "rounds.json").read_text())["best"] == rounds.best.round == 2

        rounds = Rounds(tmp_path, 2)
        assert rounds.filtered("model", half) and not rounds.evaluated(after(4, -0.1), "round")
        assert rounds.rounds[0].decision == "stops: its held-out gain is not above the base model's 0"
        rounds = Rounds(tmp_path, 1)
        assert rounds.filtered("model", half) and not rounds.evaluated(after(5, 0.1), "round")
        assert rounds.rounds[0].decision == "was the last one asked for"
        rounds = Rounds(tmp_path, 2)
        assert rounds.filtered("model", half) and rounds.evaluated(after(6, 0.1), "round")
        # One group of 32 that passes less is chance, and fewer groups are compared with those that they were.
        assert rounds.filtered("round-2/model", np.append([0.0, 0.0], half[2:]))
        rounds.rounds.pop(), rounds.passing.pop()
        assert not rounds.filtered("round-2/model", np.zeros(2))
        rounds.rounds.pop(), rounds.passing.pop()
        assert not rounds.filtered("round-2/model", less[:30]) and rounds.best.round == 1
        assert rounds.describe() == "round 2 of 2: stops untrained: 25.0% of the variants pass the filter, beyond chance fewer than the 50.0% of round 1"  # fmt: skip


class TestRecipes:
    def test_of_a_round(self, folder):
        recipes = RunRecipes.load(folder, ["--rounds", "3", "--output_dir", "runs/x", "--train_recipe", "craft.yaml"])
        third = recipes_of_round(recipes, 3)
        assert third.candidates.model_name_or_path == third.train.model_name_or_path == "runs/x/round-2/model"
        assert (third.candidates.originals_from, third.candidates.output_dir) == ("runs/x", "runs/x/round-3")
        assert third.evaluation.models[1:] == [
            "round-1=runs/x/model", "round-2=runs/x/round-2/model", "round-3=runs/x/round-3/model",
        ]  # fmt: skip
        # Processes that are started for it have the same settings.
        from craft_trl.scripts import evaluate, train

        config, _ = evaluate.make_parser().parse_args_and_config(third.evaluate_argv)
        assert config == third.evaluation and config.images_dir == "runs/x/evaluation/images"
        parsed, training, _ = train.make_parser().parse_args_and_config(third.train_argv)
        assert parsed == third.train and training.output_dir == third.training.output_dir == "runs/x/round-3/model"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--rounds", "0"], "rounds must be a whole number from 1 to 100, got 0."),
            (["--rounds", "-1"], "rounds must be a whole number from 1 to 100, got -1."),
            (["--rounds", "two"], "rounds must be a whole number from 1 to 100, got two."),
            (["--rounds"], "--rounds needs one number, got none"),
            (["--rounds", "2", "3"], "--rounds needs one number, got 2 3"),
            (
                ["--rounds", "2", "--candidates.model_name_or_path", "OTHER"],
                "craft.yaml trains .*pipeline, and candidates",
            ),
            (["--rounds", "2", "--strengths", "0.5"], "but strengths are of the way from the base"),
            (
                ["--rounds", "2", "--originals_from", "runs/y"],
                "originals_from is runs/y: the originals are those of the",
            ),
        ],
    )
    def test_mistakes(self, folder, tmp_path, capsys, tiny, options, message):
        from ..models import tuned

        if "OTHER" in options:
            tuned(tiny / "pipeline", tmp_path / "other")
            options = [str(tmp_path / "other") if option == "OTHER" else option for option in options]
        for command in ("run", "plan"):
            with pytest.raises(UsageError, match=message):
                check_rounds(RunRecipes.load(folder, options))
            assert main([command, str(folder), *options]) == 2
            error = capsys.readouterr().err
            assert error.startswith("craft: error: ") and error.count("\n") == 1
        assert not Path("runs").exists()

    def test_without_held_out_judges(self, folder, recipes):
        recipes("evaluate", held_out_rewards="DELETE")
        with pytest.raises(UsageError, match="no held_out_rewards, which decide whether another round follows"):
            check_rounds(RunRecipes.load(folder, ["--rounds", "2"]))
        check_rounds(RunRecipes.load(folder, []))

    def test_planned(self, folder, capsys):
        assert main(["plan", str(folder), "--rounds", "3", "--gpu", "h100:80", "--pass_rate", "0.5", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        stages = {stage["name"]: stage for stage in plan["stages"]}
        assert (
            list(stages)[5:] == ["round 2", "round 3"] and stages["round 2"]["seconds"] == stages["round 3"]["seconds"]
        )
        # One variant of two images is drawn anew, and of the two models of the evaluation one.
        seconds = {name: stages[name]["seconds"] for name in stages}
        expected = seconds["generate"] / 2 + seconds["train"] + seconds["evaluate"] / 2
        assert seconds["round 2"] == pytest.approx(expected)
        assert plan["gpu_hours"] == pytest.approx(sum(seconds.values()) / 3600)
