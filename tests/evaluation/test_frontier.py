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

"""Kept variety: by hand, by counting all sets, and of a model of which it is known; then all of it from real models."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from craft_trl.candidates.pool import CandidatePool
from craft_trl.errors import UsageError
from craft_trl.evaluation.alternatives import price
from craft_trl.evaluation.diversity import all_distances, diversity, mean_distances
from craft_trl.evaluation.evaluate import Evaluation
from craft_trl.evaluation.figure import Labels, frontier_svg, nice_ticks, paths
from craft_trl.evaluation.frontier import (
    Frontier,
    best_of,
    in_words,
    kept_variety,
    pair_weights,
    variety_at,
    winner_weights,
)
from craft_trl.scripts.evaluate import main

from ..models import tuned
from .test_evaluation import make_config


class TestBestOf:
    def test_hand_worked(self):
        # Of the six pairs of four images the best is in three, the next in two more, the third in the last.
        np.testing.assert_allclose(winner_weights(4, 2), [3 / 6, 2 / 6, 1 / 6, 0])
        # {1,2}{3,4}: 1 and 3 win; {1,3}{2,4} and {1,4}{2,3}: 1 and 2.
        expected = np.zeros((4, 4))
        expected[0, 1:3] = 2 / 3, 1 / 3
        np.testing.assert_allclose(pair_weights(4, 2), expected)
        assert pair_weights(2, 1).tolist() == [[0, 1], [0, 0]]

    @pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 1), (5, 2), (6, 3), (7, 3), (8, 4)])
    def test_is_the_mean_over_all_sets(self, n, k):
        single, double = np.zeros(n), np.zeros((n, n))
        for one in combinations(range(n), k):
            single[min(one)] += 1
            for other in combinations(sorted({*range(n)} - {*one}), k):
                double[min(min(one), min(other)), max(min(one), min(other))] += 1
        np.testing.assert_allclose(winner_weights(n, k), single / single.sum(), rtol=1e-12)
        np.testing.assert_allclose(pair_weights(n, k), double / double.sum(), rtol=1e-12)

    def test_follows_the_reward_whatever_the_order(self):
        total = np.array([[3.0, 1.0, 4.0, 2.0]])  # images 2, 0, 3, 1 from the best on
        distance = np.zeros((1, 4, 4))
        for (a, b), d in {(2, 0): 0.3, (2, 3): 0.6}.items():
            distance[0, a, b] = distance[0, b, a] = d
        kept, apart = best_of(2, total, {"x": np.array([[30.0, 10.0, 60.0, 20.0]])}, {"d": distance})
        assert kept["x"] == pytest.approx(60 / 2 + 30 / 3 + 20 / 6)
        assert apart["d"] == pytest.approx(0.3 * 2 / 3 + 0.6 / 3)

    def test_the_best_of_one_is_any_image(self):
        rng = np.random.default_rng(0)
        total, features = rng.normal(size=(3, 6)), rng.normal(size=(3, 6, 4))
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
        distances = 1 - features @ features.transpose(0, 2, 1)
        kept, apart = best_of(1, total, {"x": total}, {"d": distances})
        np.testing.assert_allclose(kept["x"], total.mean(axis=1))
        np.testing.assert_allclose(apart["d"], diversity(features)[:, 0])

    def test_of_equal_images_the_first(self):
        kept, _ = best_of(2, np.zeros((1, 4)), {"x": np.array([[1.0, 0.0, 0.0, 0.0]])}, {})
        assert kept["x"] == pytest.approx(1 / 2)


class TestVarietyAt:
    def at(self, gain, gains=(0.0, 1.0, 3.0), varieties=(1.0, 0.8, 0.6)):
        return [value.item() for value in variety_at(np.array([gain]), np.array([gains]), np.array([varieties]))]

    @pytest.mark.parametrize(
        ("gain", "expected"),
        [
            (0.0, [1.0, 0.0, False]),
            (0.5, [0.9, 0.5, False]),
            (1.0, [0.8, 1.0, False]),
            (2.0, [0.7, 1.5, False]),
            (3.0, [0.6, 2.0, False]),
            (3.1, [0.6, 2.0, True]),
            (-1.0, [1.0, 0.0, False]),
        ],
    )
    def test_hand_worked(self, gain, expected):
        assert self.at(gain) == pytest.approx(expected)

    def test_a_curve_that_turns_back(self):
        """The first, cheapest point that gains as much; and of none, the one that gains most."""
        curve = (0.0, 2.0, 1.0, 3.0), (1.0, 0.8, 0.6, 0.4)
        assert self.at(1.0, *curve) == pytest.approx([0.9, 0.5, False])
        assert self.at(2.5, *curve) == pytest.approx([0.45, 2.75, False])
        assert self.at(9.0, (0.0, 2.0, 1.0), (1.0, 0.8, 0.6)) == pytest.approx([0.8, 1.0, True])


class TestKeptVariety:
    def test_hand_worked(self):
        # The best of 1.5 gains 0.5 and keeps 0.9; the model keeps 0.45.
        curve = np.array([[0.0] * 4, [1.0] * 4]), np.array([[1.0] * 4, [0.8] * 4])
        kept = kept_variety(np.full(4, 0.5), np.full(4, 0.45), *curve, num_bootstrap=20)
        assert kept == pytest.approx({"kept": 0.5, "ci_low": 0.5, "ci_high": 0.5, "best_of": 1.5, "beyond": False})
        kept = kept_variety(np.full(4, 1.2), np.full(4, 0.6), *curve, num_bootstrap=20)
        assert kept["kept"] == pytest.approx(0.75) and kept["beyond"] and kept["best_of"] == 2
        nothing = kept_variety(np.full(4, 1.0), np.zeros(4), curve[0], np.zeros((2, 4)), num_bootstrap=20)
        assert nothing["kept"] == 1.0  # of a base that always draws the same there is nothing to keep

    def test_noise_by_which_all_are_more_varied_counts_for_none(self):
        curve = np.array([[0.0] * 4, [1.0] * 4]), np.array([[1.0] * 4, [0.8] * 4])
        for luck in (0.7, 1.0, 1.3):
            base, model = np.array([1.1, 0.9, 0.8, 1.2]) * luck, np.array([0.6, 0.3, 0.5, 0.4]) * luck
            kept = kept_variety(np.full(4, 0.5), model, *curve, base, num_bootstrap=200)
            assert kept["kept"] == pytest.approx(0.45 / 0.9)
            assert kept["ci_low"] < kept["kept"] < kept["ci_high"]

    def test_prompts_are_averaged_before_the_ratio(self):
        gains, varieties = np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 0.6], [0.6, 0.6]])
        kept = kept_variety(np.array([1.0, 0.0]), np.array([0.5, 0.2]), gains, varieties, num_bootstrap=20)
        assert kept["kept"] == pytest.approx(0.35 / 0.7)

    @staticmethod
    def images(rng, num_prompts, n):
        """Points in a plane as images, of a prompt's own spread; the reward likes those near one of them."""
        place = rng.normal(size=(num_prompts, n, 2)) * rng.uniform(0.5, 1.5, size=(num_prompts, 1, 1))
        reward = -np.linalg.norm(place - [1.0, 0.0], axis=-1)
        return place, reward

    @staticmethod
    def apart(place):
        return np.linalg.norm(place[:, :, None] - place[:, None], axis=-1)

    def model(self, rng, num_prompts, k):
        """Two images of each prompt, each the best of k fresh ones; with any two of the same noise beside them."""
        place, reward = self.images(rng, num_prompts, 2 * k)
        sets = reward.reshape(num_prompts, 2, k)
        best = sets.argmax(axis=2)[:, :, None]
        chosen = np.take_along_axis(place.reshape(num_prompts, 2, k, 2), best[..., None], axis=2)[:, :, 0]
        gain = np.take_along_axis(sets, best, axis=2)[..., 0].mean(axis=1) - reward.mean(axis=1)
        return gain, self.apart(chosen)[:, 0, 1]

    @pytest.mark.parametrize("k", [2, 3])
    def test_a_model_that_chooses_keeps_everything(self, k):
        rng = np.random.default_rng(k)
        place, reward = self.images(rng, 4000, 12)
        distances = {"d": self.apart(place)}
        points = [best_of(i, reward, {"x": reward}, distances) for i in range(1, 7)]
        gains = np.stack([kept["x"] - reward.mean(axis=1) for kept, _ in points])
        varieties = np.stack([apart["d"] for _, apart in points])
        kept = kept_variety(*self.model(rng, 4000, k), gains, varieties, num_bootstrap=300)
        assert kept["kept"] == pytest.approx(1.0, abs=0.02) and kept["best_of"] == pytest.approx(k, abs=0.1)
        assert kept["ci_low"] < 1 < kept["ci_high"] and kept["ci_high"] - kept["ci_low"] < 0.08

    def test_the_interval_covers_the_truth(self):
        rng, inside = np.random.default_rng(7), 0
        for _ in range(100):
            place, reward = self.images(rng, 60, 8)
            points = [best_of(i, reward, {"x": reward}, {"d": self.apart(place)}) for i in (1, 2, 3, 4)]
            gains = np.stack([kept["x"] - reward.mean(axis=1) for kept, _ in points])
            varieties = np.stack([apart["d"] for _, apart in points])
            kept = kept_variety(*self.model(rng, 60, 2), gains, varieties, num_bootstrap=200)
            inside += kept["ci_low"] <= 1 <= kept["ci_high"]
        assert 88 <= inside <= 99


@pytest.fixture
def made():
    """A frontier of numbers that can be worked out: two prompts that are alike, four images to choose from."""
    draws = {"r": np.array([[0.0, 1.0, 2.0, 3.0]] * 2), "h": np.array([[4.0, 3.0, 2.0, 1.0]] * 2)}
    distances = {"diversity_pixels": np.ones((2, 4, 4)) - np.eye(4)}
    base = {"r": np.full((2, 2), 1.5), "h": np.full((2, 2), 2.5), "diversity_pixels": np.full((2, 2), 1.0)}
    model = {"r": np.full((2, 2), 2.0), "h": np.full((2, 2), 2.0), "diversity_pixels": np.full((2, 2), 0.6)}
    return Frontier(
        draws=draws,
        distances=distances,
        arms={"base": base, "craft": model, "base at guidance 3": base},
        ways={"base": "base", "craft": "model", "base at guidance 3": "guidance"},
        labels={"base": "base", "craft": "craft", "base at guidance 3": "3"},
        roles={"r": "training", "h": "held_out"},
        lower_is_better=frozenset({"h"}),
    )


class TestFrontier:
    def test_hand_worked(self, made):
        results = made.results(num_bootstrap=10)
        assert results["score"] == "held_out_score" and results["variety"] == ["diversity_pixels"]
        assert results["scores"] == ["held_out_score", "training_score", "r", "h"] and results["images"] == 4
        points = {point["name"]: point for point in results["points"]}
        # The best of 2 by r has 3/2 + 2 * 2/6 + 1/6 of it on average, against 1.5; less of h is better.
        gain = 3 * 3 / 6 + 2 * 2 / 6 + 1 / 6 - 1.5
        spread = np.std([0, 1, 2, 3])
        assert points["best of 2"]["r"] == points["best of 2"]["h"] == pytest.approx(gain)
        assert points["best of 2"]["held_out_score"] == pytest.approx(gain / spread)
        assert points["craft"]["r"] == points["craft"]["h"] == 0.5
        for score in ("held_out_score", "training_score"):
            assert points["craft"][score] == pytest.approx(0.5 / spread)
        kept = {(row["name"], row["score"]): row for row in results["kept"]}
        assert kept["craft", "held_out_score"]["kept"] == pytest.approx(0.6)
        assert kept["craft", "held_out_score"]["best_of"] == pytest.approx(1 + 0.5 / gain)
        assert kept["base at guidance 3", "r"]["kept"] == 1.0 and len(kept) == 2 * 4
        assert in_words(results, ["craft"]) == [
            "craft keeps 60% [60%, 60%] of the variety of the best of 1.6 images of the base, at the same gain."
        ]
        json.dumps(results, allow_nan=False)

    def test_models_beside_each_other(self):
        """Paired by prompt: what moves both alike is in no difference; a model beyond the curve, another arm's way, is in none."""
        rng = np.random.default_rng(0)
        draws = {"r": rng.normal(size=(50, 8))}
        distances = {"x": np.broadcast_to(np.ones((8, 8)) - np.eye(8), (50, 8, 8))}
        wide = rng.uniform(0.5, 1.5, size=(50, 1))
        base = {"r": np.zeros((50, 1)), "x": np.ones((50, 1))}
        arms = {name: {"r": np.full((50, 1), 0.5), "x": share * wide} for name, share in (("a", 0.5), ("b", 0.8))}
        far = {"r": np.full((50, 1), 9.0), "x": wide}
        made = Frontier(
            draws=draws,
            distances=distances,
            arms={"base": base, **arms, "far": far, "base at guidance 3": arms["a"]},
            ways={"base": "base", **dict.fromkeys(("a", "b", "far"), "model"), "base at guidance 3": "guidance"},
            labels=dict.fromkeys(("base", "a", "b", "far", "base at guidance 3"), ""),
            roles={"r": "training"},
        )
        results = made.results(500)
        kept = {row["name"]: row for row in results["kept"] if row["score"] == "training_score"}
        (row,) = results["differences"]
        assert (row["name"], row["against"], row["variety"]) == ("a", "b", "x")
        assert row["difference"] == pytest.approx(kept["a"]["kept"] - kept["b"]["kept"])
        assert row["difference"] == pytest.approx(-0.375 * kept["b"]["kept"])
        # As far as both move together: the interval is that of one of them, times their difference.
        assert row["ci_low"] == pytest.approx(-0.375 * kept["b"]["ci_high"], rel=1e-6)
        assert row["ci_high"] == pytest.approx(-0.375 * kept["b"]["ci_low"], rel=1e-6)
        low, high = (-100 * row[name] for name in ("ci_high", "ci_low"))
        assert in_words(results, ["a", "b", "far"])[-1] == (
            f"b keeps most, in points of that share: {-100 * row['difference']:+.0f} [{low:+.0f}, {high:+.0f}] beside a."
        )
        assert len(in_words(results, ["a", "far"])) == 2  # of one alone there is nothing to say
        earlier = {name: value for name, value in results.items() if name != "differences"}
        assert in_words(earlier, ["a", "b", "far"]) == in_words(results, ["a", "b", "far"])[:-1]

    def test_training_rewards_alone(self, made):
        alone = Frontier(**{**vars(made), "roles": {"r": "training"}})
        assert alone.results(2)["score"] == "training_score"

    def test_beyond_the_curve(self, made):
        far = {
            name: values + (2 if name == "r" else -2) * (name != "diversity_pixels")
            for name, values in made.arms["craft"].items()
        }
        results = Frontier(**{**vars(made), "arms": {**made.arms, "craft": far}}).results(2)
        assert in_words(results, ["craft"])[0].startswith("craft keeps at least 60% ")
        assert in_words(results, ["craft"])[0].endswith("of the best of 2 images of the base, and gains more.")


def test_distances_of_all_pairs():
    """Their means are what the tables have."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(6)]
    features = rng.normal(size=(2, 3, 5))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    pairs, means = (measure(images, features, 3) for measure in (all_distances, mean_distances))
    assert pairs.shape == (2, 2, 3, 3) and means.shape == (2, 2)
    upper = np.triu_indices(3, 1)
    np.testing.assert_allclose(pairs[:, :, upper[0], upper[1]].mean(axis=-1), means, rtol=1e-6)
    assert all_distances(images, None, 3).shape == (2, 1, 3, 3)


SMALL = {
    "num_prompts": 3,
    "num_images_per_prompt": 2,
    "num_inference_steps": 1,
    "num_bootstrap": 20,
    "frontier_images": 4,
}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """An evaluation with a frontier of a real base, a tuned model at two strengths, and an expanded prompt."""
    folder = tmp_path_factory.mktemp("frontier")
    models = [f"base={tiny / 'pipeline'}", f"craft={tuned(tiny / 'pipeline', folder / 'model')}"]
    config = {
        "models": models,
        "strengths": [0.5],
        "templates": ["{prompt}, sharp"],
        "output_dir": str(folder / "out"),
    }
    main(make_config(tiny, frontier=True, **config, **SMALL))
    return config


class TestEvaluation:
    def test_results(self, tiny, finished, capsys):
        folder = Path(finished["output_dir"])
        rows = json.loads((folder / "results.json").read_text())
        assert list(dict.fromkeys(row["model"] for row in rows)) == ["base", "craft-0.5", "craft", "base+expansion"]
        assert rows[0]["settings"]["frontier"] == [4, [3.0, 5.0]]
        frontier = json.loads((folder / "frontier.json").read_text())
        assert [point["name"] for point in frontier["points"]] == [
            "best of 1", "best of 2", "base", "craft-0.5", "craft", "base+expansion", "base at guidance 3", "base at guidance 5",
        ]  # fmt: skip
        assert frontier["variety"] == ["diversity_aesthetic", "diversity_pixels"]
        points = {point["name"]: point for point in frontier["points"]}
        for row in rows:
            if row["role"] == "diversity":
                base = next(r["mean"] for r in rows if r["metric"] == row["metric"])
                share = points[row["model"]][row["metric"]] / points["best of 1"][row["metric"]]
                assert share == pytest.approx(row["mean"] / base)
            elif row["delta"] is not None:
                assert points[row["model"]][row["metric"]] == pytest.approx(row["delta"], abs=1e-6)
        assert points["best of 2"]["aesthetic"] > 0 == points["best of 1"]["aesthetic"]
        # What the base draws to choose from is fresh noise, and its guided images are of the others' noise.
        pools = [CandidatePool(path, ["aesthetic", "all_atoms"]) for path in (folder / "images").iterdir()]
        assert sorted(len(pool.scores) for pool in pools) == [6, 6, 6, 6, 6 + 6 + 12]
        assert main(make_config(tiny, frontier=True, **finished, **SMALL)) is None
        said = capsys.readouterr().out
        assert "done before" in said and "craft-0.5 keeps " in said and "craft keeps " in said

    def test_is_the_same_again_from_the_images(self, tiny, finished):
        before = json.loads((Path(finished["output_dir"]) / "frontier.json").read_text())
        for one_by_one in (False, True):
            evaluation = Evaluation(make_config(tiny, frontier=True, **finished, **SMALL))
            evaluation.run("cpu", one_by_one)
            assert evaluation.frontier.results(evaluation.config.num_bootstrap) == before

    def test_says_its_price_before(self, tiny, finished):
        evaluation = Evaluation(make_config(tiny, frontier=True, **finished, **SMALL))
        assert price(evaluation) == (
            "the frontier takes 24 images of the base beside the 24 of the comparison: 3 x 4 to choose from, and 3 x 2 at each "
            "guidance of 3 and 5"
        )
        assert evaluation.image_counts() == [6, 6, 6, 6, 12, 6, 6]
        assert Evaluation(make_config(tiny, **finished, num_prompts=3)).image_counts() == [3, 3, 3, 3]

    def test_other_results_do_not_know_of_it(self, tiny):
        assert "frontier" not in Evaluation(make_config(tiny)).settings_without_models

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"frontier": True}, "frontier needs num_images_per_prompt of 2 or more"),
            ({"frontier": True, "num_images_per_prompt": 2, "rewards": []}, "frontier needs rewards, by which"),
            ({"frontier_images": 8}, "frontier_images and frontier_guidance have no effect without frontier: true"),
            ({"frontier_guidance": [3.0]}, "have no effect without frontier"),
            ({"frontier": True, "frontier_images": 3}, "frontier_images must be from 4 to 256, got 3"),
            (
                {"frontier": True, "num_images_per_prompt": 2, "frontier_guidance": [2.0]},
                "frontier_guidance must be other scales than guidance_scale 2, each once; got 2",
            ),
        ],
    )
    def test_mistakes(self, tiny, settings, message):
        with pytest.raises(UsageError, match=message):
            make_config(tiny, **settings)


class TestFigure:
    def test_is_a_drawing_by_itself(self, made, finished, tiny):
        results = [made.results(5), json.loads((Path(finished["output_dir"]) / "frontier.json").read_text())]
        for result in results:
            root = ElementTree.fromstring(frontier_svg(result))
            names = {element.tag.rpartition("}")[2] for element in root.iter()}
            assert not names & {"script", "image", "a", "use", "foreignObject"}
            _, _, width, height = map(float, root.get("viewBox").split())
            for element in root.iter("{http://www.w3.org/2000/svg}text"):
                assert 0 <= float(element.get("x")) <= width and 0 <= float(element.get("y")) <= height
            said = "".join(root.itertext())
            assert "craft" in said and "best of k images" in said and "guidance" in said and "base" in said

    def test_a_line_for_each_way(self, finished, tiny):
        results = json.loads((Path(finished["output_dir"]) / "frontier.json").read_text())
        assert [(way, [point["name"] for point in line]) for way, line in paths(results)] == [
            ("best of k", ["best of 1", "best of 2"]),
            ("guidance", ["best of 1", "base at guidance 3", "base at guidance 5"]),
            ("expanded prompt", ["best of 1", "base+expansion"]),
            ("model", ["best of 1", "craft-0.5", "craft"]),
        ]

    def test_names_are_escaped(self, made):
        results = made.results(2)
        for part in (*results["points"], *results["kept"]):
            part["name"] = part["name"].replace("craft", "<b>&")
            part["label"] = part.get("label", "").replace("craft", "<b>&")
        assert "<b>&" in "".join(ElementTree.fromstring(frontier_svg(results)).itertext())

    def test_labels_keep_out_of_each_others_way(self):
        labels = Labels((0, 0, 400, 300))
        for i in range(6):
            labels.block(100 + i, 100)
            labels.put(100 + i, 100, ["a label", "of two lines"], "model")
        places = labels.taken[1::2]
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in combinations(places, 2))
        # The first stands beside its point, the last away from it, with a line between them.
        lines = [text for text in labels.svg if text.startswith("<line")]
        assert (
            not labels.svg[0].startswith("<line") and lines and 'class="lead model" x1="105.0" y1="100.0"' in lines[-1]
        )

    @pytest.mark.parametrize(("low", "high"), [(0, 0.73), (-0.1, 3.2), (0, 120)])
    def test_ticks(self, low, high):
        ticks = nice_ticks(low, high)
        assert 3 <= len(ticks) <= 8 and low <= ticks[0] and ticks[-1] < high

    def test_in_a_browser(self, finished, tiny, tmp_path):
        """The page and the file by itself: drawn, in both colour schemes, without a complaint."""
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        driver = shutil.which("chromedriver")
        if not (chromium and driver):
            missing = "needs chromium and chromedriver: apt-get install chromium chromium-driver"
            pytest.skip(missing)
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in (
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-sandbox",
            "--window-size=1000,900",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            for name in ("report.html", "frontier.svg"):
                browser.get((Path(finished["output_dir"]) / name).as_uri())
                colors = []
                for scheme in ("light", "dark"):
                    feature = {"name": "prefers-color-scheme", "value": scheme}
                    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
                    dots = browser.execute_script(
                        "return [...document.querySelectorAll('.frontier .model .dot')].map(dot => {"
                        "const box = dot.getBoundingClientRect(); return [box.width, box.height, getComputedStyle(dot).fill]})"
                    )
                    assert len(dots) == 4 and all(width > 4 and height > 4 for width, height, _ in dots)
                    colors.append(dots[0][2])
                assert colors == ["rgb(43, 95, 217)", "rgb(138, 176, 255)"]
            assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
        finally:
            browser.quit()
