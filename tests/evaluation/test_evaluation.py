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


import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from craft_trl.errors import UsageError
from craft_trl.evaluation.config import EvaluationConfig
from craft_trl.evaluation.diversity import diversity, pixel_distance
from craft_trl.evaluation.evaluate import Evaluation
from craft_trl.evaluation.provenance import notes
from craft_trl.evaluation.report import curve, format_table, verdict, write_report
from craft_trl.evaluation.statistics import compare, decide, holm, paired_bootstrap, paired_p, student_p
from craft_trl.scripts.evaluate import main
from craft_trl.sources import content_hash
from craft_trl.stages import Stage
from craft_trl.trainer.guard import GuardConfig

from ..models import tuned


class TestPairedBootstrap:
    def test_hand_worked(self):
        result = paired_bootstrap(np.array([2.0, 2.0, 5.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0]))
        assert result["delta"] == 0.5
        assert result["win_rate"] == (2 + 0.5) / 4
        assert result["ci_low"] < 0.5 < result["ci_high"]

    def test_a_constant_difference_has_no_spread(self):
        base = np.arange(10.0)
        result = paired_bootstrap(base + 2, base)
        assert result == {"delta": 2.0, "ci_low": 2.0, "ci_high": 2.0, "win_rate": 1.0}

    def test_interval_is_that_of_the_mean(self):
        rng = np.random.default_rng(0)
        difference = rng.normal(0.3, 1.0, 400)
        result = paired_bootstrap(difference, np.zeros(400))
        half = 1.96 * difference.std() / 20
        assert result["ci_low"] == pytest.approx(difference.mean() - half, abs=0.02)
        assert result["ci_high"] == pytest.approx(difference.mean() + half, abs=0.02)

    def test_covers_the_truth_about_as_often_as_it_says(self):
        rng = np.random.default_rng(1)
        inside = 0
        for _ in range(200):
            result = paired_bootstrap(rng.normal(0.5, 1, 60), np.zeros(60), num_bootstrap=400)
            inside += result["ci_low"] <= 0.5 <= result["ci_high"]
        assert 180 <= inside <= 199

    def test_images_of_a_prompt_are_one_unit(self):
        # The same ten prompts drawn fifty times over are no better evidence than drawn once.
        rng = np.random.default_rng(2)
        per_prompt = rng.normal(0, 1, (10, 1))
        once = paired_bootstrap(per_prompt, np.zeros((10, 1)))
        often = paired_bootstrap(np.repeat(per_prompt, 50, axis=1), np.zeros((10, 50)))
        assert often["ci_low"] == pytest.approx(once["ci_low"]) and often["ci_high"] == pytest.approx(once["ci_high"])

    def test_less_is_better(self):
        result = paired_bootstrap(np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0]), higher_is_better=False)
        assert result["delta"] == pytest.approx(-2 / 3) and result["win_rate"] == pytest.approx((2 + 0.5) / 3)

    def test_shapes(self):
        with pytest.raises(ValueError, match="one shape"):
            paired_bootstrap(np.zeros(3), np.zeros(4))


def test_diversity():
    same = np.tile([1.0, 0.0], (1, 3, 1))
    orthogonal = np.eye(3)[None]
    np.testing.assert_allclose(diversity(same), [[0]])
    np.testing.assert_allclose(diversity(orthogonal), [[1]])
    np.testing.assert_allclose(diversity(np.array([[[1.0, 0], [0.6, 0.8]]])), [[0.4]])


class TestCompare:
    scores = {
        "base": {"hpsv2": np.array([[1.0], [2.0], [3.0]]), "defects": np.array([[1.0], [1.0], [0.0]])},
        "craft": {"hpsv2": np.array([[2.0], [3.0], [4.0]]), "defects": np.array([[0.0], [1.0], [0.0]])},
    }
    roles = {"hpsv2": "training", "defects": "held_out"}

    def test_rows(self):
        rows = compare(self.scores, self.roles, {"defects"})
        assert len(rows) == 4
        base, craft = (next(r for r in rows if r["model"] == m and r["metric"] == "hpsv2") for m in ("base", "craft"))
        assert base["delta"] is None and base["mean"] == 2.0 and base["n"] == 3 and base["role"] == "training"
        assert craft["delta"] == 1.0 and craft["win_rate"] == 1.0 and craft["median"] == 3.0
        defects = next(r for r in rows if r["model"] == "craft" and r["metric"] == "defects")
        assert defects["higher_is_better"] is False and defects["win_rate"] == pytest.approx(2 / 3)

    def test_parts(self):
        rows = compare(self.scores, self.roles, {"defects"}, parts=["x", "y", "x"])
        part = next(r for r in rows if r["part"] == "x" and r["model"] == "base" and r["metric"] == "hpsv2")
        assert part["n"] == 2 and part["mean"] == 2.0
        assert {r["part"] for r in rows} == {None, "x", "y"}

    def test_table(self):
        table = format_table(compare(self.scores, self.roles, {"defects"}))
        assert table.splitlines()[1].split()[:7] == [
            "craft",
            "hpsv2",
            "training",
            "2.0000",
            "3.0000",
            "+1.0000",
            "better",
        ]
        assert "base  " not in table.splitlines()[1]


def row(metric, role, low, high, higher_is_better=True):
    common = {"model": "m", "part": None, "metric": metric, "role": role, "higher_is_better": higher_is_better}
    return {**common, "delta": (low + high) / 2, "ci_low": low, "ci_high": high}


class TestVerdict:
    @pytest.mark.parametrize(
        ("rows", "word"),
        [
            ([row("a", "training", 1, 2), row("b", "held_out", 1, 2)], "better"),
            ([row("a", "training", -1, 2), row("b", "held_out", 1, 2)], "better"),
            ([row("a", "training", 1, 2), row("b", "held_out", -1, 2)], "better on training rewards only"),
            ([row("a", "training", 1, 2), row("b", "held_out", -2, -1)], "hacked"),
            ([row("a", "training", -1, 2), row("b", "held_out", -2, -1)], "worse"),
            ([row("a", "training", -2, -1), row("b", "held_out", -1, 1)], "worse"),
            ([row("a", "training", -2, -1), row("b", "held_out", 1, 2)], "undecided"),
            ([row("a", "training", -1, 1), row("b", "held_out", -1, 1)], "undecided"),
            ([row("a", "training", 1, 2), row("defects", "held_out", -2, -1, False)], "better"),
            ([row("a", "training", 1, 2), row("defects", "held_out", 1, 2, False)], "hacked"),
        ],
    )
    def test_word(self, rows, word):
        assert verdict(rows, "m")["word"] == word

    def test_alone(self):
        alone = {**row("a", "training", 1, 2), "delta": None, "ci_low": None, "ci_high": None}
        assert verdict([alone], "m")["sentence"].startswith("m stands alone")
        table = format_table([{**alone, "mean": 1.5, "median": 1.0}]).splitlines()
        assert table[1].split() == ["m", "a", "training", "1.5000", "1.0000"]

    def test_sentence(self):
        rows = [row("a", "training", 1, 2), row("b", "held_out", 1, 2), row("c", "held_out", -1, 1)]
        assert verdict(rows, "m")["sentence"] == (
            "m is better than the base model: 1 of 1 training rewards and 1 of 2 held-out judges improved beyond chance; "
            "none is worse."
        )

    def test_sentence_names_what_the_images_lost_in_variety(self):
        rows = [row("a", "training", 1, 2), row("b", "held_out", 1, 2)]
        diverse = [
            {**row("diversity_a", "diversity", -0.2, -0.1), "mean": 0.25},  # 0.4 before
            {**row("diversity_pixels", "diversity", -0.1, 0.1), "mean": 0.2},
        ]
        said = verdict(rows + diverse, "m")
        assert said["word"] == "better"
        assert said["sentence"].endswith("none is worse. The images of one prompt differ less: diversity_a -38%.")
        assert verdict(rows + diverse[1:], "m") == verdict(rows, "m")


class TestStudent:
    @pytest.mark.parametrize(
        ("t", "degrees", "p"),
        [
            (12.706, 1, 0.05),
            (4.303, 2, 0.05),
            (2.571, 5, 0.05),
            (3.169, 10, 0.01),
            (1.972, 199, 0.05),
            (-1.96, 1e5, 0.05),
        ],
    )
    def test_tables(self, t, degrees, p):
        assert student_p(t, degrees) == pytest.approx(p, rel=1e-3)

    def test_limits(self):
        assert student_p(0, 7) == 1.0 and student_p(float("inf"), 7) == 0.0 and student_p(60, 400) < 1e-12

    def test_paired(self):
        # 1, 0, 2, -1: mean 0.5, standard deviation 1.291, t = 0.775 with 3 degrees of freedom.
        values, base = np.array([2.0, 2.0, 5.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0])
        assert paired_p(values, base) == paired_p(base, values) == pytest.approx(0.4950, abs=1e-4)
        # Images of a prompt are one unit, and nothing can be said of one prompt.
        assert paired_p(np.repeat(values[:, None], 9, 1), np.repeat(base[:, None], 9, 1)) == paired_p(values, base)
        assert paired_p(values[:1], base[:1]) == 1.0 == paired_p(base, base) and paired_p(base + 1, base) == 0.0

    def test_strata(self):
        """The mean of two tasks' means, 2 and 0, whose variances are 1 / 3 and 4 / 3: t = 1 / sqrt(5 / 12)."""
        difference = np.array([1.0, 2.0, 3.0, -2.0, 0.0, 2.0])
        tasks = np.array(list("aaabbb"))
        degrees = (5 / 12) ** 2 / ((1 / 12) ** 2 / 2 + (4 / 12) ** 2 / 2)  # Welch and Satterthwaite
        expected = student_p((12 / 5) ** 0.5, degrees)
        assert paired_p(difference, np.zeros(6), tasks) == pytest.approx(expected) and 2 < degrees < 4


class TestDecide:
    def test_holm(self):
        assert holm([0.01, 0.04, 0.03]) == [True, False, False]  # 0.05 / 3, then 0.03 > 0.05 / 2
        assert holm([0.01, 0.04, 0.02]) == [True, True, True]
        assert holm([]) == [] and holm([0.05]) == [True] and holm([0.051]) == [False]

    def test_families(self):
        """Judges of a model are decided together; other models, its diversity and parts of the prompts do not count."""

        def rows(*others):
            mine = [
                {**row(name, "held_out", 0, 1), "p_value": p} for name, p in (("a", 0.012), ("b", 0.5), ("c", 0.9))
            ]
            return [*mine, *others]

        alone = decide(rows())
        assert alone == ["better", "", ""]
        others = [
            {**row("a", "held_out", 0, 1), "model": "other", "p_value": 1.0},
            {**row("d", "diversity", 0, 1), "p_value": 1.0},
            {**row("a", "held_out", 0, 1), "part": "x", "p_value": 1.0},
            {**row("base", "held_out", 0, 1), "delta": None, "p_value": None},
        ]
        assert decide(rows(*others))[:3] == alone
        assert (
            decide(
                rows({**row("t", "training", 0, 1), "p_value": 0.6}, {**row("u", "training", 0, 1), "p_value": 0.6})
            )[0]
            == ""
        )

    def test_less_is_better(self):
        assert decide([row("defects", "held_out", 1, 2, higher_is_better=False)]) == ["worse"]

    def test_table_and_verdict_say_the_same(self):
        """An interval that leaves 0 out by itself, which is no news among seven judges."""
        near = [row(name, "held_out", 0.01, 1.01) for name in "abcdefg"]
        near = [{**r, "mean": 1.0, "median": 1.0, "win_rate": 0.5, "settings": {}} for r in near]
        base = [{**r, "model": "base", "delta": None} for r in near]
        assert verdict(near, "m")["word"] == "undecided"
        assert "better" not in format_table([*base, *near])
        assert verdict(near[:1], "m")["word"] == "better" and "better" in format_table([*base[:1], *near[:1]])

    def test_compare(self):
        rng = np.random.default_rng(0)
        scores = {m: {"a": rng.normal(size=(30, 2)), "b": rng.normal(size=(30, 2))} for m in ("base", "craft")}
        for r in compare(scores, {"a": "training", "b": "held_out"}, parts=["x", "y"] * 15, num_bootstrap=2):
            part = np.array([r["part"] in (None, p) for p in ["x", "y"] * 15])
            expected = paired_p(scores["craft"][r["metric"]][part], scores["base"][r["metric"]][part])
            assert r["p_value"] == (expected if r["model"] == "craft" else None)

    @staticmethod
    def words(num_prompts, effect, trials=400, seed=0):
        """Verdicts on a model whose images score `effect` standard deviations more, by seven judges that agree in part."""
        rng = np.random.default_rng(seed)
        roles = dict.fromkeys(("t1", "t2", "t3"), "training") | dict.fromkeys(("h1", "h2", "h3", "h4"), "held_out")
        said = []
        for _ in range(trials):
            prompts, common = rng.normal(size=(num_prompts, 1)), rng.normal(size=(2, num_prompts, 1))
            scores = prompts + 0.4**0.5 * common + 0.6**0.5 * rng.normal(size=(2, num_prompts, 7))
            scores[1] += effect
            scores[..., 1], scores[..., 4] = np.exp(scores[..., 1]), np.exp(scores[..., 4])  # skewed
            scores[..., 5] = scores[..., 5] > 1  # yes or no
            rows = [
                {
                    **row(name, role, 0, 0),
                    "delta": (scores[1] - scores[0])[:, i].mean(),
                    "p_value": paired_p(*scores[::-1, :, i]),
                }
                for i, (name, role) in enumerate(roles.items())
            ]
            said.append(verdict(rows, "m")["word"])
        return said

    @pytest.mark.parametrize("num_prompts", [24, 80, 200])
    def test_models_that_are_the_same(self, num_prompts):
        """At most one comparison in twenty says anything. By each judge's own interval it was one in four."""
        said = self.words(num_prompts, effect=0.0)
        assert len(said) - said.count("undecided") <= 0.05 * len(said)

    def test_power(self):
        assert self.words(200, effect=0.5, trials=100).count("better") >= 95
        assert self.words(80, effect=0.5, trials=100).count("better") >= 60
        assert self.words(200, effect=-0.5, trials=100).count("worse") >= 95


def test_curve_is_svg():
    svg = curve([1, 2, 3], [0.3, 0.1, 0.2])
    assert svg.startswith("<svg") and svg.count("<polyline") == 2 and ">0.1<" in svg


def make_config(tiny, **settings):
    defaults = {
        "models": [f"base={tiny / 'pipeline'}", f"craft={tiny / 'pipeline'}"],
        "prompts": str(tiny / "prompts" / "tiny-geneval.jsonl"),
        "rewards": [f"aesthetic={tiny / 'rewards/aesthetic'}"],
        "held_out_rewards": [f"all_atoms={tiny / 'inspector.py'}:all_atoms"],
        "output_dir": "out",
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
        "height": 64,
        "width": 64,
        "batch_size": 8,
    }
    return EvaluationConfig(**{**defaults, **settings})


SMALL = {"num_prompts": 4, "num_images_per_prompt": 2, "group_by": "tag", "num_bootstrap": 50}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Folder of a comparison of two equal models, and of one on expanded prompts."""
    folder = tmp_path_factory.mktemp("finished")
    main(make_config(tiny, **SMALL, templates=["{prompt}, sharp"], output_dir=str(folder / "out")))
    return folder / "out"


def test_pixel_distance():
    grey = [Image.new("RGB", (4, 4), (51 * i,) * 3) for i in range(3)]  # 0, 0.2 and 0.4
    assert pixel_distance(grey[:2]) == pytest.approx(0.2)
    assert pixel_distance(grey) == pytest.approx((0.2 + 0.4 + 0.2) / 3)
    assert pixel_distance([grey[1], grey[1]]) == 0


class TestEvaluation:
    def config(self, tiny, **settings):
        return make_config(tiny, **settings)

    def test_equal_models_have_no_difference(self, tiny, finished):
        rows = json.loads((finished / "results.json").read_text())
        assert list(dict.fromkeys(row["model"] for row in rows)) == ["base", "craft", "base+expansion"]
        for row in rows:
            if row["model"] == "craft":
                assert row["delta"] == row["ci_low"] == row["ci_high"] == 0 and row["win_rate"] == 0.5
        assert any(row["delta"] for row in rows if row["model"] == "base+expansion")
        assert {row["role"] for row in rows} == {"training", "held_out", "diversity"}
        diverse = {row["metric"]: row["mean"] for row in rows if row["role"] == "diversity" and row["part"] is None}
        assert set(diverse) == {"diversity_aesthetic", "diversity_pixels"} and all(v > 0 for v in diverse.values())

        again, scores = Evaluation(
            make_config(tiny, **SMALL, templates=["{prompt}, sharp"], output_dir=str(finished))
        ).run("cpu")  # from the stored images
        assert again == rows
        assert scores["base"]["aesthetic"].shape == scores["base"]["diversity_pixels"].shape == (4, 2)

    def test_every_row_says_how_it_was_made(self, tiny, finished):
        for row in json.loads((finished / "results.json").read_text()):
            settings = row["settings"]
            assert settings["sampling"]["guidance_scale"] == 2.0 and settings["seed"] == 3_000_000_000
            assert settings["prompts"]["n"] == 4 and len(settings["prompts"]["hash"]) == 64
            assert len(settings["models"]["base"]) == 64
            if row["metric"] == "aesthetic":
                assert row["scorer"]["id"] == "aesthetic"
                assert row["scorer"]["sha256"] == content_hash(tiny / "rewards" / "aesthetic")
        table = pq.read_table(finished / "scores.parquet")
        assert table.num_rows == 3 * 8 and {"seed", "diversity_pixels", "all_atoms"} <= set(table.column_names)

    def test_prompts_are_evenly_spaced_and_seeds_distinct(self, tiny):
        evaluation = Evaluation(self.config(tiny, num_prompts=6, num_images_per_prompt=3, seed=100, group_by="tag"))
        assert len(set(evaluation.parts)) == 6
        keys = evaluation.arms()[0].keys
        assert [seed for _, _, seed in keys] == list(range(100, 118))
        assert [key[1:] for key in keys] == [key[1:] for key in evaluation.arms()[1].keys]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"models": ["pipeline"]}, "models must be NAME=FOLDER or NAME=HUB_ID, got 'pipeline'"),
            ({"models": ["a=x/y", "a=x/z"]}, "Every model needs a name of its own"),
            ({"rewards": [], "held_out_rewards": []}, "Nothing to measure"),
            ({"num_prompts": 0}, "num_prompts must be at least 1, got 0"),
            ({"num_prompts": 241}, "num_prompts must be from 1 to 240"),
            ({"num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1, got 0"),
            ({"group_by": "style"}, "no.* column 'style'"),
            ({"rewards": ["hpsv9"]}, "no reward 'hpsv9'"),
            ({"prompts": "nothing.txt"}, "Cannot read the prompts nothing.txt"),
            ({"templates": ["sharp"]}, "must contain {prompt} once"),
            ({"strengths": [0.5, 2.5]}, "every number of strengths must be from 0 to 2, got 2.5"),
        ],
    )
    def test_wrong_settings(self, tiny, settings, message):
        with pytest.raises(UsageError, match=message):
            Evaluation(self.config(tiny, **settings)).arms()

    def test_geneval_needs_its_own_prompts(self, tiny):
        with pytest.raises(UsageError, match="geneval judges prompts of its own format only.*prompts: geneval"):
            Evaluation(self.config(tiny, held_out_rewards=["geneval"]))

    def test_missing_model(self, tiny):
        with pytest.raises(UsageError, match="runs/tiny/model: there is no such folder"):
            Evaluation(self.config(tiny, models=[f"base={tiny / 'pipeline'}", "craft=runs/tiny/model"])).check_models()


def test_strengths(tiny, tmp_path):
    """Between the base, whose images strength 0 has, and the model, which stands last and has the verdict."""
    models = [f"base={tiny / 'pipeline'}", f"craft={tuned(tiny / 'pipeline', tmp_path / 'model')}"]
    small = {"num_prompts": 2, "num_inference_steps": 1, "num_bootstrap": 10, "held_out_rewards": []}
    config = make_config(tiny, models=models, strengths=[0, 0.5], **small)
    main(config)
    rows = [row for row in json.loads((tmp_path / "out" / "results.json").read_text()) if row["metric"] == "aesthetic"]
    assert [row["model"] for row in rows] == ["base", "craft-0", "craft-0.5", "craft"]
    means = [row["mean"] for row in rows]
    assert means[0] == means[1] and len({*means}) == 3 and len([*(tmp_path / "out" / "images").iterdir()]) == 3
    hashes = rows[0]["settings"]["models"]
    assert hashes["craft-0"] == hashes["base"] and hashes["craft-0.5"].endswith("*0.5")
    record = json.loads((tmp_path / "out" / "stage.json").read_text())
    assert record["summary"]["verdict"]["sentence"].startswith("craft ")


def test_a_judge_that_chose_the_saved_step_is_named(tiny, tmp_path):
    """Held out of the training, but of a choice by this judge the table must speak."""
    settings = make_config(tiny)
    guard = GuardConfig(held_out_rewards=settings.held_out_rewards, guard_prompts=settings.prompts)
    record = {"guard": guard.guard_settings(), "training": {"max_steps": 50}}
    stage = Stage("train", tmp_path / "model", record)
    stage.begin()
    for part in (tiny / "pipeline").iterdir():
        (stage.folder / part.name).symlink_to(part)
    stage.finish()
    models = [f"base={tiny / 'pipeline'}", f"craft={stage.folder}", f"unet=unet:{stage.folder / 'unet'}"]
    evaluation = Evaluation(make_config(tiny, models=models))
    assert evaluation.guards == {"craft": ["all_atoms"], "unet": ["all_atoms"]}
    table = [
        {"metric": metric, "settings": evaluation.settings()}
        | row(metric, role, 1, 2)
        | {"mean": 1.5, "win_rate": 1.0}
        for metric, role in evaluation.roles.items()
    ]
    (note,) = notes(table)
    assert note.startswith(
        "all_atoms: the guard of craft, unet saved the step of the training that this judge liked best"
    )
    # Looks at the last step only: no choice.
    record["training"]["max_steps"] = guard.guard_steps
    short = Stage("train", stage.folder, record)
    short.finish()
    assert Evaluation(make_config(tiny, models=models)).guards == {}
    stage.finish()
    # Another judge of the same name is another judge.
    other = make_config(tiny, models=models, held_out_rewards=[f"all_atoms={tiny / 'inspector.py'}:quality"])
    assert Evaluation(other).guards == {}


class TestEarlierResults:
    def config(self, tiny, finished, **settings):
        models = [f"base={tiny / 'pipeline'}", f"craft=results:{finished}"]
        return make_config(tiny, **{**SMALL, "models": models, **settings})

    def test_stand_in_one_table(self, tiny, finished):
        evaluation = Evaluation(self.config(tiny, finished))
        evaluation.check_models()
        rows, _ = evaluation.run("cpu")
        before = [row for row in json.loads((finished / "results.json").read_text()) if row["model"] == "craft"]
        now = [row for row in rows if row["model"] == "craft"]
        assert [{**row, "settings": None} for row in now] == [{**row, "settings": None} for row in before]
        assert now[0]["settings"]["models"] == {
            name: before[0]["settings"]["models"][name] for name in ("base", "craft")
        }
        write_report(evaluation, rows, {}, finished.parent / "report.html")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"guidance_scale": 5.0}, r"other settings .* sampling.guidance_scale is 2.0 there and 5.0 here"),
            ({"num_prompts": 3}, "prompts.* there and .* here"),
            ({"seed": 1}, "seed is 3000000000 there and 1 here"),
            ({"held_out_rewards": ["all_atoms={}/inspector.py:quality"]}, "rewards.all_atoms is .* there and .* here"),
            ({"models": ["base={}/pipeline", "sft=results:{out}"]}, "knows no such model. It has base, craft, base"),
            ({"models": ["base={}/pipeline", "craft=results:nowhere"]}, "nowhere has no readable results.json"),
        ],
    )
    def test_other_settings_are_refused(self, tiny, finished, settings, message):
        settings = {
            name: [item.format(tiny, out=finished) for item in value] if isinstance(value, list) else value
            for name, value in settings.items()
        }
        with pytest.raises(UsageError, match=message):
            Evaluation(self.config(tiny, finished, **settings)).check_models()

    def test_a_table_of_different_settings_is_refused(self, finished):
        rows = json.loads((finished / "results.json").read_text())
        other = json.loads(json.dumps(rows[-1]))
        other["settings"]["sampling"]["num_inference_steps"] = 50
        with pytest.raises(UsageError, match="cannot stand in one table: sampling.num_inference_steps is 2"):
            format_table([*rows, other])


def test_mean_of_parts():
    """GenEval's score is the mean of the tasks' accuracies, however many prompts a task has."""
    values = np.array([[1.0], [1.0], [1.0], [0.0]])
    scores = {"base": {"geneval": np.zeros((4, 1))}, "craft": {"geneval": values}}
    rows = compare(scores, {"geneval": "held_out"}, set(), ["a", "a", "a", "b"], 200, mean_of_parts={"geneval"})
    row = next(r for r in rows if r["model"] == "craft" and r["part"] is None)
    assert row["mean"] == row["delta"] == row["ci_low"] == row["ci_high"] == 0.5
    assert row["win_rate"] == (1 + 0.5) / 2
    plain = compare(scores, {"geneval": "held_out"}, set(), ["a", "a", "a", "b"], 200)
    assert next(r for r in plain if r["model"] == "craft" and r["part"] is None)["mean"] == 0.75
