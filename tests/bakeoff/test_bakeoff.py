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

"""The comparison of baselines: what each arm is trained on, what is made of the scores, and a small one from end to end."""

import json
import multiprocessing
import re
import shlex
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from datasets import load_from_disk
from PIL import Image
from safetensors.torch import load_file

from craft_trl.bakeoff.arms import (
    BASELINES,
    METHODS,
    RIVALS,
    Material,
    check_arms,
    describe_passes,
    make_seed_groups,
)
from craft_trl.bakeoff.comparison import HELD_OUT, compare_arms, held_out_score, two_way_bootstrap, two_way_p, verdict
from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.errors import NothingToDoError, UsageError
from craft_trl.evaluation.figure import frontier_svg
from craft_trl.evaluation.statistics import paired_p
from craft_trl.filtering.votes import key_line as veto_line
from craft_trl.scripts.bakeoff import Bakeoff, make_parser
from craft_trl.scripts.dpo import make_parser as dpo_parser

from ..conftest import ROOT, TINY
from ..processes import FORKSERVER


PAGE = (ROOT / "docs" / "source" / "baselines.md").read_text()
REWARDS = ["hpsv2", "pickscore", "aesthetic"]


class TestMethods:
    @pytest.fixture
    def material(self, tmp_path):
        """
        Scores by image (original, first and second variant; then the other two seeds of the original prompt). Group a
        passes the triple filter, b the double one, c the single one; d has one variant that passes all.
        """
        groups = make_groups(list("abcd"), [[f"{p}1", f"{p}2"] for p in "abcd"], seed=7)
        seed_groups = make_seed_groups(groups)
        table = {  # hpsv2, pickscore, aesthetic of each image
            "a": [(1, 1, 1), (2, 2, 2), (3, 3, 3), (0, 0, 0), (1, 1, 2)],
            "b": [(1, 1, 1), (2, 2, 2), (2, 0, 2), (5, 5, 5), (1, 1, 1)],
            "c": [(1, 1, 1), (2, 2, 2), (2, 0, 0), (0, 0, 0), (0, 0, 0)],
            "d": [(1, 1, 1), (3, 3, 3), (0, 0, 0), (2, 2, 2), (4, 4, 4)],
        }
        pool = CandidatePool(tmp_path / "pool", REWARDS)
        for group, seeds in zip(groups, seed_groups, strict=True):
            values = np.array(table[group.prompt], dtype=np.float32)
            keys = [*group.keys, *seeds.keys[1:]]
            images = [Image.new("RGB", (8, 8))] * 5
            pool.append(keys, images, {name: values[:, i] for i, name in enumerate(REWARDS)})
        return Material(groups, seed_groups, pool, FilterConfig())

    def test_what_each_is_trained_on(self, material):
        datasets = {name: METHODS[name].build(material) for name in METHODS if name != "spo_offline"}
        kept = {name: d["expanded_prompt"][:] for name, d in datasets.items() if "expanded_prompt" in d.column_names}
        assert kept == {
            "sft": [f"{p}{j}" for p in "abcd" for j in (1, 2)],
            **dict.fromkeys(("best_of_n", "own_images"), ["a", "b", "c", "d"]),
            "sft_filtered": ["a1", "a2"],
            "image_filter": ["a1", "a2", "b1", "c1", "d1"],
            "h": ["a1", "a2", "b1", "b2", "c1", "c2"],
            "ha": ["a1", "a2", "b1", "b2"],
            "craft": ["a1", "a2"],
            "no_filter": [f"{p}{j}" for p in "abcd" for j in ("", 1, 2)],
            "proximal": ["a", "a1", "a2"],
            "proximal_all": [f"{p}{j}" for p in "abcd" for j in ("", 1, 2)],
            **dict.fromkeys(("expanded_prompts", "min_snr"), ["a1", "a2"]),
            **dict.fromkeys(
                ("diffusion_lpo", "dgpo_offline", "lair"), [p + j for p in "abcd" for j in ("", "1", "2")]
            ),
            "smpo": ["a2", "a", "b1", "b", "c1", "c2", "d1", "d2"],
            "tgo": [p + j for p in "abcd" for j in ("", "1", "2")],
            **dict.fromkeys(("nft_offline", "awm_offline"), [p for p in "abcd" for _ in range(3)]),
        }
        everything = replace(material, config=FilterConfig(train_images="all"))  # where the recipe has it
        assert METHODS["craft"].build(everything)["expanded_prompt"][:] == ["a1", "a2"]
        np.testing.assert_allclose(datasets["proximal"]["advantage"][:], [-np.sqrt(1.5), 0, np.sqrt(1.5)], atol=1e-3)
        assert set(datasets["sft"]["advantage"]) == {1.0} == set(datasets["best_of_n"]["advantage"])
        assert datasets["sft_filtered"]["advantage"][:] == [1.0, 1.0]
        assert datasets["craft"]["advantage"][0] == pytest.approx(0, abs=1e-3)
        assert datasets["craft"]["advantage"][1] == pytest.approx(np.sqrt(1.5), abs=1e-3)
        # a: the third seed leads by aesthetic; b: the second by all; c: none is better than the original; d: the third.
        assert datasets["best_of_n"]["seed"][:] == [2_000_007, 1_000_008, 9, 2_000_010]
        assert datasets["own_images"]["seed"][:] == [7, 8, 9, 10] and set(datasets["own_images"]["advantage"]) == {1.0}
        assert datasets["diffusion_dpo"]["prompt"][:] == ["a", "b", "c", "d"]
        assert datasets["sdpo"].to_dict() == datasets["diffusion_dpo"].to_dict()
        assert datasets["inpo"].to_dict() == datasets["diffusion_dpo"].to_dict()
        # By the sum of z-scores, between the worst of the pool, d's second variant, and the best, a's second and d's first.
        pairs, scores = (
            datasets["smpo"],
            np.array([[material.pool.scores[k] for k in g.keys] for g in material.groups]),
        )
        totals = ((scores - scores.mean((0, 1))) / scores.std((0, 1))).sum(2)
        totals = (totals - totals.min()) / (totals.max() - totals.min())
        expected = [
            totals[i, j] for i, (best, worst) in enumerate([(2, 0), (1, 0), (1, 2), (1, 2)]) for j in (best, worst)
        ]
        np.testing.assert_allclose(pairs["advantage"][:], expected, atol=1e-6)
        assert pairs["group_id"][:] == [0, 0, 1, 1, 2, 2, 3, 3] and max(expected) == 1 and min(expected) == 0
        # The lists have the advantages of their group: a's images are 1, 2 and 3 of each reward, b's 3, 6 and 4 together.
        lists = datasets["diffusion_lpo"]
        assert lists["group_id"][:] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
        np.testing.assert_allclose(lists["advantage"][:3], np.array([-1, 0, 1]) * np.sqrt(1.5), atol=1e-3)
        # The pool's originals have no spread, so that it is all images that rewards are in units of.
        totals = {}
        for name, groups in (("tgo", material.groups), ("nft_offline", material.seed_groups)):
            scores = np.array(
                [[material.pool.scores[key] for key in group.keys] for group in groups], dtype=np.float64
            )
            totals[name] = ((scores - scores.mean((0, 1))) / scores.std((0, 1))).sum(2)  # (4, 3)
        np.testing.assert_allclose(datasets["tgo"]["advantage"][:], totals["tgo"].flatten(), rtol=1e-5, atol=1e-6)
        expected = totals["nft_offline"] - totals["nft_offline"].mean(1, keepdims=True)
        expected = (expected / (totals["nft_offline"].std() + 1e-4)).flatten()
        np.testing.assert_allclose(datasets["nft_offline"]["advantage"][:], expected, rtol=1e-5, atol=1e-6)
        assert datasets["nft_offline"]["seed"][:3] == [7, 1_000_007, 2_000_007]

    def test_seed_groups(self):
        groups = make_groups(["a", "b"], [["a1"], ["b1"]], seed=7)
        seeds = make_seed_groups(groups)
        assert seeds[1].keys == [("b", "b", 8), ("b", "b", 1_000_008)] and seeds[1].keys[0] == groups[1].keys[0]

    def test_nothing_passes(self, material):
        few = Material(material.groups[2:3], material.seed_groups[2:3], material.pool, FilterConfig())
        with pytest.raises(NothingToDoError, match="No group passed the filter"):
            METHODS["craft"].build(few)
        assert len(METHODS["h"].build(few)) == 2

    def test_vetoed_and_equal_images_are_in_no_list(self, material, tmp_path):
        vetoed = [material.groups[0].keys[1], material.groups[1].keys[2]]
        (tmp_path / "veto.jsonl").write_text("".join(veto_line(key) + "\n" for key in vetoed))
        vetoing = Material(material.groups, material.seed_groups, material.pool, FilterConfig(veto="veto.jsonl"))
        lists = METHODS["lair"].build(vetoing)
        assert [len(lists.filter(lambda row, g=g: row["group_id"] == g)) for g in range(4)] == [2, 2, 3, 3]
        assert len(METHODS["tgo"].build(vetoing)) == 10
        groups = make_groups(["e", "f"], [["e1"], ["f1"]])
        pool = CandidatePool(tmp_path / "equal", REWARDS)
        for group, second in zip(groups, (1, 2), strict=True):
            images = [Image.new("RGB", (8, 8))] * 2
            pool.append(group.keys, images, {name: np.array([1, second], dtype=np.float32) for name in REWARDS})
        assert METHODS["lair"].build(Material(groups, groups, pool, FilterConfig()))["prompt"][:] == ["f", "f"]
        with pytest.raises(NothingToDoError, match="In no group of .* is one image better than another"):
            METHODS["lair"].build(Material(groups[:1], groups[:1], pool, FilterConfig()))

    def test_check(self):
        check_arms(list(METHODS), REWARDS)
        for names, rewards, message in (
            (["craft", "ppo"], REWARDS, "there is no 'ppo'. Known are sft, best_of_n"),
            (["craft", "ha"], ["hpsv2"], "ha filters by aesthetic, and the rewards are hpsv2"),
            (["craft"], REWARDS, "at least two different ones"),
            (["craft", "craft"], REWARDS, "at least two different ones"),
        ):
            with pytest.raises(UsageError, match=message):
                check_arms(names, rewards)


class TestStatistics:
    def test_interval_holds_the_spread_of_prompts_and_of_training_seeds(self):
        rng = np.random.default_rng(0)
        prompts, seeds = rng.normal(0, 1, 400), rng.normal(0, 0.5, (40, 1))
        result = two_way_bootstrap(0.3 + prompts + seeds)
        assert result["delta"] == pytest.approx(0.3 + prompts.mean() + seeds.mean())
        half = 1.96 * np.sqrt(1 / 400 + 0.25 / 40)
        assert result["ci_high"] - result["delta"] == pytest.approx(half, rel=0.15)
        alone = two_way_bootstrap((0.3 + prompts)[None])
        assert alone["ci_high"] - alone["ci_low"] == pytest.approx(2 * 1.96 / 20, rel=0.15)
        assert two_way_bootstrap(np.full((3, 5), 2.0)) == {"delta": 2.0, "ci_low": 2.0, "ci_high": 2.0}

    def test_held_out_score(self):
        base = {"quality": np.array([1.0, 3.0]), "defects": np.array([0.0, 2.0]), "flat": np.array([5.0, 5.0])}
        scores = {"quality": np.array([[4.0, 2.0]]), "defects": np.array([[1.0, 3.0]]), "flat": np.array([[6.0, 5.0]])}
        higher = {"quality": True, "defects": False, "flat": True}
        # quality: (4-2)/1, (2-2)/1; defects: -(1-1)/1, -(3-1)/1; flat, without a spread, in its own units: 1, 0.
        np.testing.assert_allclose(held_out_score(scores, base, higher), [[1.0, -2 / 3]])
        np.testing.assert_allclose(held_out_score(base, base, higher).mean(), 0, atol=1e-12)

    def scores(self, *means, seeds=3, prompts=50, noise=0.1):
        rng = np.random.default_rng(0)
        common = rng.normal(0, 1, prompts)
        names = ["base", "craft", "sft", "h"]
        return {
            name: {
                "hpsv2": common + mean + rng.normal(0, noise, (1 if name == "base" else seeds, prompts)),
                "quality": common + mean + rng.normal(0, noise, (1 if name == "base" else seeds, prompts)),
            }
            for name, mean in zip(names, (0, *means), strict=False)
        }

    def compare(self, *means, **kwargs):
        roles, higher = {"hpsv2": "training", "quality": "held_out"}, {"hpsv2": True, "quality": True}
        return compare_arms(self.scores(*means, **kwargs), roles, higher, num_bootstrap=400)

    def test_rows(self):
        rows = self.compare(0.5, 0.2)
        assert len(rows) == 2 * 3 + 2
        (row,) = [r for r in rows if (r["arm"], r["against"], r["metric"]) == ("craft", "base", "quality")]
        assert row["ci_low"] < 0.5 < row["ci_high"] and len(row["deltas"]) == 3 and row["role"] == "held_out"
        (back,) = [r for r in rows if (r["arm"], r["against"]) == ("sft", "craft")]
        (forth,) = [r for r in rows if (r["arm"], r["against"]) == ("craft", "sft")]
        assert back["metric"] == HELD_OUT and back["delta"] == pytest.approx(-forth["delta"])

    def test_verdicts(self):
        said = verdict(self.compare(0.5, 0.2, -0.5))
        assert said["ranking"] == ["craft", "sft", "h"] and said["level_with"] == []
        assert said["sentences"][0].startswith("craft wins: +0.") and said["sentences"][1].startswith(
            "It is better than"
        )
        assert said["sentences"][-1] == "Worse than the base model: h."
        said = verdict(self.compare(0.2, 0.5))
        assert said["winner"] == "sft" and "craft is number 2 of 2, -0." in said["sentences"][-1]
        assert "(beyond chance)" in said["sentences"][-1]
        said = verdict(self.compare(0.5, 0.5, noise=1.0))
        assert said["level_with"] and said["sentences"][1].startswith("It cannot be told from ")
        said = verdict(self.compare(-0.2, -0.5))
        assert said["sentences"][0].startswith(
            "No arm is better than the base model beyond chance; craft comes closest"
        )

    @pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.3)])
    def test_arms_that_are_the_base_model(self, seeds, spread):
        """At most one bake-off in twenty says anything of the held-out score, also where training seeds differ."""
        rng, wrong, trials = np.random.default_rng(1), 0, 100
        roles, higher = {"quality": "held_out", "defects": "held_out"}, {"quality": True, "defects": False}
        for _ in range(trials):
            common, scores = rng.normal(size=40), {}
            for name in ("base", "craft", "sft", "h"):
                k = 1 if name == "base" else seeds
                of_seed = rng.normal(size=(k, 1)) * (0 if name == "base" else spread)
                scores[name] = {
                    n: common + of_seed * (1 if higher[n] else -1) + rng.normal(size=(k, 40)) for n in roles
                }
            rows = compare_arms(scores, roles, higher, num_bootstrap=2)
            wrong += any(row["change"] for row in rows if row["metric"] == HELD_OUT)
        assert wrong <= 0.05 * trials

    def test_both_ways_of_a_pair_are_one_difference(self):
        rows = {(r["arm"], r["against"]): r["change"] for r in self.compare(0.5, 0.2) if r["metric"] == HELD_OUT}
        assert rows["craft", "sft"] == "better" and rows["sft", "craft"] == "worse"
        assert rows["craft", "base"] == rows["sft", "base"] == "better"

    def test_p_value(self):
        rng = np.random.default_rng(0)
        difference = rng.normal(0.1, 1, (3, 50))
        per_prompt = difference.mean(axis=0)
        assert two_way_p(difference) == pytest.approx(paired_p(per_prompt, np.zeros(50)))
        # Seeds that differ make it less sure; with one seed it is of that model alone.
        assert two_way_p(difference, 0.5, 6) > two_way_p(difference, 0.1, 6) > two_way_p(difference)
        assert two_way_p(difference[:1], 0.5, 6) == pytest.approx(paired_p(difference[0], np.zeros(50)))
        assert two_way_p(np.full((3, 5), 2.0)) == 0.0 and two_way_p(np.zeros((3, 5))) == 1.0


@pytest.fixture
def recipe(recipes):
    """The tiny bakeoff, small enough for seconds."""
    content = yaml.safe_load((TINY / "bakeoff.yaml").read_text())
    content |= {"num_prompts": 6, "num_test_prompts": 4, "max_steps": 1, "global_batch_size": 4}
    content |= {"arms": ["best_of_n", "diffusion_dpo"], "seeds": [0]}

    def write(**changes):
        path = recipes.folder / "bakeoff.yaml"
        merged = {**content, **changes}
        path.write_text(yaml.safe_dump({key: value for key, value in merged.items() if value != "DELETE"}))
        return str(path)

    return write


class TestBakeoff:
    def test_from_end_to_end_and_arm_by_arm(self, recipe, tmp_path, capsys):
        assert main(["bakeoff", recipe(arms=["best_of_n", "diffusion_dpo@2e-5"])]) == 0
        out = capsys.readouterr().out
        folder = tmp_path / "runs" / "tiny_bakeoff"
        assert "held-out score" in out and f"Report: {folder.relative_to(tmp_path)}/bakeoff.html" in out
        content = json.loads((folder / "bakeoff.json").read_text())
        assert set(content["arms"]) == {"best_of_n", "diffusion_dpo@2e-5"} == set(content["verdict"]["ranking"])
        # The budget: the same steps, and as many images per step.
        assert {
            arm: (a["steps"], a["batch"], a["unit"], a["learning_rate"]) for arm, a in content["arms"].items()
        } == {
            "best_of_n": (1, 4, "images", 1e-4),
            "diffusion_dpo@2e-5": (1, 2, "pairs", 2e-5),
        }
        seeds = load_from_disk(str(folder / "arms/best_of_n/dataset"))
        assert len(seeds) == 6 and seeds["prompt"][:] == seeds["expanded_prompt"][:]
        assert content["settings"]["roles"]["imagereward"] == "held_out" and HELD_OUT in {
            row["metric"] for row in content["rows"]
        }
        report = (folder / "bakeoff.html").read_text()
        for heading in (
            "Against the base model",
            "Against each other",
            "Every judge",
            "The budget",
            "The same prompts",
        ):
            assert f"<h2>{heading}" in report
        assert content["verdict"]["sentences"][0] in report and report.count("data:image/png") == 4 * 3
        assert "http://" not in report and "https://" not in report

        # What its training took stands beside each result: of pairs every image passes through the reference model as well.
        assert {arm: a["passes"] for arm, a in content["arms"].items()} == {
            "best_of_n": [[4, 0]],
            "diffusion_dpo@2e-5": [[4, 4]],
        }
        assert ">4 + 4<" in report and re.search(r"diffusion_dpo@2e-5  .*  4 \+ 4 +\d+\n", out)

        # More arms, those of other methods among them: only they are done.
        models = {path: path.stat().st_mtime_ns for path in folder.rglob("model_index.json")}
        arms = ["best_of_n", "sft", "diffusion_lpo", "nft_offline", "smpo", "spo_offline", "diffusion_dpo@2e-5"]
        arms += ["best_of_n+diffusion_dpo@2e-5", "sft+spo_offline"]
        trees = {"tree_steps": 4, "first_branch": 2, "num_branches": 2, "min_preference": 0.0}
        assert main(["bakeoff", recipe(arms=arms, **trees)]) == 0
        out = capsys.readouterr().out
        assert out.count("[train] done before") == 2 and "[arm] 12 rows in" in out
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in models.items())
        assert len(list(folder.rglob("model_index.json"))) == 9
        arms = json.loads((folder / "bakeoff.json").read_text())["arms"]
        assert arms["diffusion_lpo"]["unit"] == "lists" and arms["diffusion_lpo"]["passes"] == [
            [3, 3]
        ]  # a list of three
        assert arms["nft_offline"]["rows"] == 18 and arms["nft_offline"]["passes"] == [[4, 4]]
        assert "without new images" in (report := (folder / "bakeoff.html").read_text())
        # A mean of two arms: no training, and what theirs took.
        mean = arms["best_of_n+diffusion_dpo@2e-5"]
        assert (
            mean["passes"] == [[8, 4]]
            and mean["title"] == "the mean of the models of best_of_n and diffusion_dpo@2e-5"
        )
        assert arms["diffusion_dpo@2e-5"]["title"].endswith("from the pool, at a learning rate of 2e-5")
        seconds = [arms[arm]["seconds"][0] for arm in ("best_of_n", "diffusion_dpo@2e-5")]
        assert mean["seconds"] == [pytest.approx(sum(seconds))] and "no training of its own" in report
        weights, *parts = (
            load_file(folder / "arms" / arm / "seed-0" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
            for arm in ("best_of_n+diffusion_dpo@2e-5", "best_of_n", "diffusion_dpo@2e-5")
        )
        assert all(torch.equal(value, (parts[0][name] + parts[1][name]) / 2) for name, value in weights.items())
        # A tree: two plain steps, the first that branches, and two branches seen once; each twice, for the guidance. What they took
        # stands beside what the training took.
        assert len(list((folder / "trees").glob("*.safetensors"))) == 6 and arms["spo_offline"]["tree_passes"] == 60
        assert arms["sft+spo_offline"]["tree_passes"] == 60 and "tree_passes" not in mean
        rows = arms["spo_offline"]["rows"]
        assert 0 < rows <= 12 and f"6 trees, 60 denoiser passes, {rows} of at most 12 pairs kept" in out
        assert arms["spo_offline"]["passes"] == [[4, 4]] and arms["spo_offline"]["unit"] == "transitions"
        assert re.search(r"spo_offline  .*  4 \+ 4, trees 60 +\d+\n", out) and "trees 60" in report
        # Two pairs; with the gradient, then the reference and 2 to 20 calls of the inversion for each image.
        assert (
            arms["smpo"]["rows"] == 6 == arms["diffusion_lpo"]["rows"]
        )  # one of each prompt, of two images and of three
        ((with_gradient, without),) = arms["smpo"]["passes"]
        assert with_gradient == 4 and 4 + 4 * 2 <= without <= 4 + 4 * 20
        assert "SmPO" in (folder / "arms/smpo/seed-0/model/README.md").read_text()

        # The Python of docs/source/baselines.md, with this pool as the one it names.
        (folder.parent / "tiny").symlink_to(folder)
        (tmp_path / "recipes" / "tiny").symlink_to(TINY)
        (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
        exec(compile(code, "baselines.md", "exec"), {})
        assert (tmp_path / "dpo" / "model_index.json").exists()

    def test_what_a_gain_costs(self, recipe, tmp_path, capsys):
        """An arm is the mean of its seeds; the page has the figure, and pictures of the first image of each prompt."""
        settings = {"arms": ["sft", "best_of_n"], "seeds": [0, 1], "num_images_per_prompt": 2, "frontier": True}
        assert main(["bakeoff", recipe(**settings, num_test_prompts=3)]) == 0
        out = capsys.readouterr().out
        assert (
            "[bakeoff] the frontier takes 60 images of the base beside the 30 of the comparison: 3 x 16 to choose"
            in out
        )
        assert "\nsft keeps " in out and "\nbest_of_n keeps " in out
        folder = tmp_path / "runs" / "tiny_bakeoff"
        frontier = json.loads((folder / "bakeoff.json").read_text())["frontier"]
        assert frontier_svg(frontier) == (folder / "frontier.svg").read_text()
        points = {point["name"]: point for point in frontier["points"]}
        assert [*points] == [*(f"best of {k}" for k in range(1, 9)), "base", "sft", "best_of_n", "base at guidance 3", "base at guidance 5"]  # fmt: skip
        assert [points[name]["way"] for name in ("base", "sft", "base at guidance 3")] == ["base", "model", "guidance"]
        rows = json.loads((folder / "bakeoff.json").read_text())["rows"]
        delta = next(r["delta"] for r in rows if (r["arm"], r["against"], r["metric"]) == ("sft", "base", "quality"))
        assert points["sft"]["quality"] == pytest.approx(delta, abs=1e-6)
        report = (folder / "bakeoff.html").read_text()
        assert (
            "<h2>What the gain costs" in report
            and 'class="frontier"' in report
            and "mean of its training seeds" in report
        )
        assert report.count("data:image/png") == 3 * 3 and "2 images each" in report
        assert main(["bakeoff", recipe(**settings | {"num_images_per_prompt": 1})]) == 2
        assert "frontier needs num_images_per_prompt of 2 or more" in capsys.readouterr().err

    def test_in_two_processes(self, recipe, tmp_path, capsys, monkeypatch):
        """One training is killed, the other one goes on; the same command then does that one alone, and all is as by one process."""
        # It has imported the libraries, for which each process takes seconds else.
        monkeypatch.setattr(multiprocessing, "get_context", lambda method: FORKSERVER)
        settings = {"max_steps": 3, "num_test_prompts": 8}  # two batches, one for each process
        assert main(["bakeoff", recipe(**settings)]) == 0
        one, two = tmp_path / "runs" / "tiny_bakeoff", tmp_path / "runs" / "two"
        for name in ("prompts", "pool"):
            shutil.copytree(one / name, two / name)
        for shard in (two / "pool").glob("shard-*.parquet"):
            if int(shard.name.split("-")[1]) >= 18:  # images from other seeds
                shard.unlink()
        capsys.readouterr()

        def kill_one():
            while len(list(two.glob("arms/*/seed-0/train.log"))) < 2:
                time.sleep(0.001)
            multiprocessing.active_children()[0].kill()

        threading.Thread(target=kill_one, daemon=True).start()
        command = ["bakeoff", recipe(**settings), "--output_dir", "runs/two", "--num_processes", "2"]
        with pytest.raises(SystemExit) as ended:
            main(command)
        out = capsys.readouterr().out
        said = r"\[bakeoff\] (\w+), seed 0: the training ended by signal 9, see runs/two/arms/(\w+)/seed-0/train.log\n"
        ((killed, folder),) = re.findall(said, out)
        (other,) = {"best_of_n", "diffusion_dpo"} - {killed}
        assert folder == killed and re.search(rf"\[bakeoff\] {other}, seed 0: trained \(\d+ s\)\n", out)
        assert "[train] 3 steps on" in (two / "arms" / other / "seed-0" / "train.log").read_text()
        assert ended.value.code == 1 and "[train]" not in out and out.endswith(
            "[bakeoff] 1 of 2 trainings failed. Run the same command again to go on from here.\n"
        )  # fmt: skip
        done = {path: path.stat().st_mtime_ns for path in two.rglob("model_index.json")}

        assert main(command) == 0
        out = capsys.readouterr().out
        assert "[bakeoff] 1 of 2 trainings were done before\n" in out and f"[bakeoff] {killed}, seed 0: trained" in out
        assert len(done) == 1 and all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
        assert re.search(r"\[bakeoff\] images of 3 models drawn and judged \(\d+ s\)\n", out)
        assert "Images of base" in (two / "evaluation" / "process-1.log").read_text()
        pools = [CandidatePool(folder / "pool", REWARDS) for folder in (one, two)]
        rows = [{key: pool.scores[key].tobytes() for key in pool.scores} for pool in pools]
        assert rows[0] == rows[1] and len(rows[0]) == 30
        assert list(pools[0].images(rows[0])) == list(pools[1].images(rows[0]))
        for arm in ("best_of_n", "diffusion_dpo"):
            datasets = [load_from_disk(str(folder / "arms" / arm / "dataset")) for folder in (one, two)]
            assert datasets[0].to_dict() == datasets[1].to_dict()
        contents = [json.loads((folder / "bakeoff.json").read_text()) for folder in (one, two)]
        # The last bits of weights depend on the number of threads alone, which is 1 here.
        assert all(contents[0][name] == contents[1][name] for name in ("verdict", "rows", "settings"))
        assert any(row["delta"] for row in contents[0]["rows"])
        again = Bakeoff(make_parser().parse_args_and_config(["--config", *command[1:], "--max_steps", "4"])[0])
        assert not again.is_trained(killed, 0)

    def test_options_of_an_arm(self, recipe):
        arms = ["craft", "proximal", "expanded_prompts", "min_snr", "craft@5e-5", "craft@2e-4"]
        bakeoff = Bakeoff(make_parser().parse_args_and_config(["--config", recipe(arms=arms)])[0])
        args = {arm: bakeoff.training(arm, 0)[1] for arm in arms}
        assert [args[arm].learning_rate for arm in arms] == [1e-4] * 4 + [5e-5, 2e-4]
        assert [args[arm].negative_advantages for arm in arms] == ["zero", "proximal", *["zero"] * 4]
        assert args["proximal"].proximal_tau == 0.2
        assert (args["expanded_prompts"].train_prompt, args["craft"].train_prompt) == ("expanded", "original")
        assert (args["min_snr"].snr_gamma, args["craft"].snr_gamma) == (5.0, None)

    def test_an_arm_is_what_it_says_whatever_the_recipes_say(self, recipe, recipes):
        """By a recipe that learns from worse images too: of the arms only those whose name says so do."""
        recipes("craft", negative_advantages="proximal", proximal_tau=0.3)
        arms = ["sft", "craft", "proximal_all"]
        bakeoff = Bakeoff(make_parser().parse_args_and_config(["--config", recipe(arms=arms)])[0])
        args = {arm: bakeoff.training(arm, 0)[1] for arm in arms}
        assert [args[arm].negative_advantages for arm in arms] == ["zero", "zero", "proximal"]
        assert args["proximal_all"].proximal_tau == 0.2

    def test_a_recipe_whose_model_is_a_mean(self, recipe, recipes, capsys):
        """All arms would be means with that model."""
        recipes("craft", average_with=["runs/tiny/model"])
        assert main(["bakeoff", recipe()]) == 2
        message = (
            "craft.yaml: average_with is of one training. The mean of arms is an arm such as craft+sft: leave it out."
        )
        assert message in capsys.readouterr().err

    def test_spo_has_no_empty_prompts(self, recipe, recipes):
        """Its texts are those of its transitions, whatever the recipe says."""
        recipes("craft", proportion_empty_prompts=0.2)
        bakeoff = Bakeoff(make_parser().parse_args_and_config(["--config", recipe(arms=["inpo", "spo_offline"])])[0])
        given = [bakeoff.training(arm, 0)[1].proportion_empty_prompts for arm in ("inpo", "spo_offline")]
        assert given == [0.2, 0.0]

    def test_the_recipe_at_full_size(self, monkeypatch):
        """What is planned of recipes/tiny_full/bakeoff.yaml: its budget, its judges' images and its price."""
        monkeypatch.chdir(ROOT)
        bakeoff = Bakeoff(make_parser().parse_args_and_config(["--config", "recipes/tiny_full/bakeoff.yaml"])[0])
        assert {*bakeoff.config.arms} - {*bakeoff.trained} == {"craft+proximal_all"}
        for arm in bakeoff.trained:
            args = bakeoff.training(arm, 0)[1]
            assert args.max_steps * args.global_batch_size * (2 if arm.startswith("diffusion_dpo") else 1) == 200 * 128
        evaluation = bakeoff.evaluation()
        assert len(evaluation.prompts) == 400 and len(evaluation.models) == 1 + 6 * 3
        assert sum(evaluation.image_counts()) == 20 * 1600 + 400 * 16 + 2 * 1600

    def test_commands_of_the_page(self, monkeypatch):
        monkeypatch.chdir(ROOT)
        (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
        for line in block.splitlines():
            craft, command, *args = shlex.split(line)
            assert (craft, command) == ("craft", "bakeoff")
            make_parser().parse_args_and_config(["--config", *args])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"arms": ["craft", "ppo"]}, "arms: there is no 'ppo'. Known are sft"),
            ({"seeds": [1, 1]}, "seeds must be different numbers from 0 on, at least one; got [1, 1]"),
            ({"seeds": [-1]}, "seeds must be different numbers from 0 on, at least one; got [-1]"),
            ({"global_batch_size": 0}, "global_batch_size must be at least 1, got 0"),
            ({"arms": ["sft@1e-4", "sft@1.0e-4"]}, "at least two different ones of sft"),
            (
                {"arms": ["sft", "craft@fast"]},
                "arms: the learning rate of 'craft@fast' must be a number above 0, as in craft@2e-5",
            ),
            ({"arms": ["sft", "craft@"]}, "arms: the learning rate of 'craft@' must be a number above 0"),
            ({"arms": ["sft", "craft@-1"]}, "arms: the learning rate of 'craft@-1' must be a number above 0"),
            ({"arms": ["sft", "dpo@1e-5"]}, "arms: there is no 'dpo'. Known are sft"),
            ({"arms": ["sft", "h+nft"]}, "arms: there is no 'nft'"),
            ({"arms": ["sft", "sft+h"]}, "arms: sft+h is a mean of models, and h is not among the arms: name it too"),
            ({"arms": ["sft", "h", "h+h"]}, "arms: h+h has the same one twice"),
            ({"arms": ["sft", "h", "h+"]}, "arms: there is no ''. Known are sft"),
            ({"arms": ["sft", "h", "h+sft", "sft+h"]}, "at least two different ones of sft"),
            ({"training": "./none.yaml"}, "Cannot read the recipe"),
            ({"candidates": "DELETE"}, "candidates is missing: give it in the recipe or as --candidates"),
            ({"global_batch_size": 3}, "global_batch_size must be even, got 3: a pair is two images"),
            ({"num_prompts": 5000}, "num_prompts must be from 1 to 2000"),
            ({"num_processes": 0}, "num_processes must be at least 1, got 0"),
            ({"num_processes": "two"}, "num_processes must be a whole number, got 'two'"),
            ({"num_test_prompts": 0}, "num_test_prompts must be at least 1, got 0"),
            ({"num_test_prompts": 9999}, "num_prompts must be from 1 to"),
            ({"arm": ["craft"]}, "unknown key 'arm'. Did you mean arms"),
            ({"tree_steps": 5}, "tree_steps is of the arm spo_offline, which is not among the arms: leave it out"),
            ({"arms": ["craft", "spo_offline"], "first_branch": 20}, "first_branch is 20, and there are 20 steps"),
        ],
    )
    def test_mistakes(self, recipe, tmp_path, capsys, changes, message):
        assert main(["bakeoff", recipe(**changes)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("craft: error: ") and err.count("\n") == 1 and message in err, err
        assert not (tmp_path / "runs").exists()

    def test_more_processes_than_devices(self, recipe, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
        assert main(["bakeoff", recipe(num_processes=3)]) == 2 and not (tmp_path / "runs").exists()
        assert "num_processes is 3, but this machine has 2 cuda devices." in capsys.readouterr().err

    def test_limits_of_the_filter(self, recipe, recipes, tmp_path, capsys):
        """The arms would do without them."""
        candidates = tmp_path / "limited.yaml"
        settings = yaml.safe_load((recipes.folder / "candidates.yaml").read_text()) | {"filter_rewards": ["hpsv2<9"]}
        candidates.write_text(yaml.safe_dump(settings))
        assert main(["bakeoff", recipe(candidates=str(candidates))]) == 2
        assert (
            "filter_rewards has the limit hpsv2<9, but the arms of a bake-off have filters" in capsys.readouterr().err
        )

    def test_rivals(self, recipe):
        """Each by its loss, with no more images per step than the others, and at the recipe's learning rate."""
        losses = {}
        for arm in RIVALS:
            (config,) = make_parser().parse_args_and_config(
                ["--config", recipe(arms=["craft", arm], global_batch_size=16)]
            )
            _, args, _ = Bakeoff(config).training(arm, 0)
            losses[arm] = getattr(args, "loss_type", "spo")
            images = {"images": 1, "pairs": 2, "lists": 3, "transitions": 2}[METHODS[arm].unit]
            assert args.global_batch_size == 16 // images and args.learning_rate == 1e-4
            assert args.beta == (
                5000.0
                if METHODS[arm].script == "dpo"
                else {"tgo": 2000.0, "nft_offline": 1.0, "spo_offline": 10.0}.get(arm)
            )
            assert getattr(args, "safeguard_mu", None) == (0.6 if arm == "sdpo" else None)
            inverts = {"inpo": (10, False, None), "smpo": (10, True, 10.0)}.get(arm, (None, False, None))
            options = ("inversion_steps", "renoise", "smoothing")
            assert METHODS[arm].script != "dpo" or tuple(getattr(args, name) for name in options) == inverts
        expected = [
            "plackett_luce",
            "sigmoid",
            "group",
            "regression",
            "sigmoid",
            "sigmoid",
            "spo",
            "tgo",
            "nft",
            "awm",
        ]
        assert list(losses.values()) == expected

    def test_a_list_does_not_fit_into_a_step(self, recipe, capsys):
        assert main(["bakeoff", recipe(arms=["craft", "lair"], global_batch_size=2)]) == 2
        message = "global_batch_size must be at least 3, got 2: lair trains on lists of so many."
        assert capsys.readouterr().err == f"craft: error: {message}\n"

    def test_passes_in_words(self):
        assert describe_passes([[960, 960], [960, 960]]) == "960 + 960"
        assert describe_passes([[1200, 0], [1190, 0], [None, None]]) == "1,190 to 1,200"
        assert describe_passes([[8, 4], [8, 6]]) == "8 + 4 to 6"
        assert describe_passes([[None, None]]) == "not counted"

    def test_without_judges_or_recipe(self, recipe, recipes, capsys):
        recipes("evaluate", held_out_rewards="DELETE")
        assert main(["bakeoff", recipe()]) == 2 and main(["bakeoff"]) == 2
        err = capsys.readouterr().err
        assert "held_out_rewards is missing, and they decide" in err and "craft bakeoff needs a recipe, such as" in err

    def test_no_guard(self, recipe, recipes):
        recipes(
            "craft", held_out_rewards=["quality=./inspector.py:quality"], guard_prompts="./prompts/tiny-parti.jsonl"
        )
        (config,) = make_parser().parse_args_and_config(["--config", recipe()])
        for arm in config.arms:
            train_args, _, _ = Bakeoff(config).training(arm, 0)
            assert train_args.held_out_rewards is None

    def test_micro_batches_are_those_of_the_recipe(self, recipe, recipes):
        """A global batch of 128 does not fit on a GPU in one piece; a pair is two images."""
        recipes("craft", global_batch_size="DELETE", per_device_train_batch_size=5, gradient_accumulation_steps=2)
        for size, micro, count in ((128, 5, 26), ("DELETE", 5, 2)):
            (config,) = make_parser().parse_args_and_config(["--config", recipe(global_batch_size=size)])
            for arm, images in (("best_of_n", 1), ("diffusion_dpo", 2)):
                _, args, _ = Bakeoff(config).training(arm, 0)
                assert args.global_batch_size == (10 if size == "DELETE" else size) // images
                assert args.per_device_train_batch_size == micro // images
                expected = -(-args.global_batch_size // (micro // images))
                assert args.gradient_accumulation_steps == expected and (images == 2 or expected == count)
        recipes("craft", per_device_train_batch_size=1, gradient_accumulation_steps=2)
        _, args, _ = Bakeoff(config).training("diffusion_dpo", 0)
        assert args.per_device_train_batch_size == 1

    def test_trainings_are_launched_as_the_recipe_says(self, recipe, recipes, tmp_path, capsys, monkeypatch):
        cpu = yaml.safe_load((ROOT / "accelerate_configs" / "cpu.yaml").read_text())
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(cpu))
        recipes("craft", accelerate_config=str(tmp_path / "own.yaml"))
        launched = []
        monkeypatch.setattr("craft_trl.scripts.bakeoff.launch", lambda *arguments: launched.append(arguments))
        (config,) = make_parser().parse_args_and_config(["--config", recipe()])
        Bakeoff(config).train("diffusion_dpo", 0)
        ((module, argv, launch_args),) = launched
        assert module == "craft_trl.scripts.dpo" and launch_args.accelerate_config == str(tmp_path / "own.yaml")
        train_args, args, _ = dpo_parser().parse_args_and_config(argv)
        assert train_args.held_out_rewards is None and args.global_batch_size == 2
        assert main(["bakeoff", recipe(num_processes=2)]) == 2 and not (tmp_path / "runs").exists()
        assert (
            f"num_processes is 2, but each training of {recipes.folder}/craft.yaml is launched on processes of its own: leave one of "
            "the two out."
        ) in capsys.readouterr().err
        recipes("craft", accelerate_config="zero9")
        assert main(["bakeoff", recipe()]) == 2 and "accelerate_config 'zero9' is neither" in capsys.readouterr().err
        recipes("craft", accelerate_config="cpu", global_batch_size="DELETE")
        assert main(["bakeoff", recipe(global_batch_size="DELETE")]) == 2
        assert "global_batch_size is missing: name it here or in" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "where",
        [{"num_processes": 2}, {"executor": "local"}, {"shared_dir": "s3://bucket/run"}, {"tasks": 2, "task": 0}],
    )
    def test_where_an_evaluation_is_done_is_not_its_recipes_to_say(self, recipe, recipes, capsys, where):
        recipes("evaluate", num_processes=1)
        Bakeoff(make_parser().parse_args_and_config(["--config", recipe()])[0])
        recipes("evaluate", **{"num_processes": "DELETE"} | where)
        assert main(["bakeoff", recipe()]) == 2
        name = next(iter(where))
        assert (
            f"{recipes.folder}/evaluate.yaml: {name} says where an evaluation is done. A bake-off does its own here"
            in capsys.readouterr().err
        )

    def test_the_packaged_recipe(self, monkeypatch, tmp_path):
        (config,) = make_parser().parse_args_and_config(["--config", str(TINY / "bakeoff.yaml")])
        dpo = "diffusion_dpo@2e-5"
        assert config.arms == [*list(BASELINES)[:-1], dpo] and list(BASELINES)[-1] == "diffusion_dpo"
        assert config.seeds == [0, 1, 2]
        bakeoff = Bakeoff(config)
        budgets = set()
        for arm in config.arms:
            _, args, _ = bakeoff.training(arm, 1)
            images = args.global_batch_size * (2 if arm == dpo else 1)
            budgets.add((args.max_steps, images, args.lr_scheduler_type, args.warmup_steps, args.seed))
            assert args.learning_rate == (2e-5 if arm == dpo else 1e-4)
        assert len(budgets) == 1
        assert len(bakeoff.evaluation().config.models) == 1 + 8 * 3
