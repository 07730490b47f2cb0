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


import io

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value, load_from_disk
from PIL import Image as PILImage

from craft_trl.candidates.config import CandidatesConfig
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.errors import NothingToDoError, UsageError
from craft_trl.filtering.dataset import build_dataset_dict, validate
from craft_trl.filtering.votes import key_line as veto_line


def config(**settings):
    defaults = {
        "prompts": "p",
        "model_name_or_path": "m",
        "output_dir": "o",
        "templates": ["t"],
        "rewards": ["hpsv2", "pickscore"],
    }
    return CandidatesConfig(**{**defaults, **settings})


@pytest.fixture
def groups():
    return make_groups(["a", "b", "c"], [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]])


@pytest.fixture
def pool(tmp_path, groups):
    """Group a passes; b loses on pickscore with its second variant; c was rejected after its first variant."""
    scores = {
        "hpsv2": [[0.2, 0.3, 0.4], [0.2, 0.3, 0.3], [0.2, 0.1, None]],
        "pickscore": [[20, 21, 22], [20, 21, 20], [20, 19, None]],
    }
    pool = CandidatePool(tmp_path, list(scores))
    for i, group in enumerate(groups):
        made = [j for j in range(3) if scores["hpsv2"][i][j] is not None]
        images = [PILImage.new("RGB", (8, 8), (40 * i, 40 * j, 0)) for j in made]
        pool.append(
            [group.keys[j] for j in made], images, {n: np.array([v[i][j] for j in made]) for n, v in scores.items()}
        )
    return pool


class TestBuildDatasetDict:
    def test_group_level(self, groups, pool):
        dataset = build_dataset_dict(groups, pool, config())
        train, candidates = dataset["train"], dataset["candidates"]
        assert train["expanded_prompt"][:] == ["a1", "a2"] and train["prompt"][:] == ["a", "a"]
        assert train["image"][1].getpixel((0, 0)) == (0, 80, 0)
        assert len(candidates) == 9 and candidates["keep"][:] == [False, True, True] + [False] * 6
        assert candidates["drop_reason"][:] == [
            "original", "", "",
            "original", "variant 2: pickscore", "pickscore",
            "original", "hpsv2, pickscore", "not_generated",
        ]  # fmt: skip
        assert candidates["hpsv2"][8] is None and candidates["image"][0] is None
        # a: totals rise evenly, so the advantages are -1.22, 0 and 1.22 (sqrt(3/2)), less the small eps.
        np.testing.assert_allclose(train["advantage"][:], [0, np.sqrt(1.5)], atol=1e-3)

    def test_image_level(self, groups, pool):
        dataset = build_dataset_dict(groups, pool, config(filter_level="image"))
        assert dataset["train"]["expanded_prompt"][:] == ["a1", "a2", "b1"]
        assert dataset["candidates"]["drop_reason"][3:6] == ["original", "", "pickscore"]

    def test_fewer_rewards_in_the_filter(self, groups, pool):
        dataset = build_dataset_dict(groups, pool, config(filter_rewards=["hpsv2"]))
        assert dataset["train"]["expanded_prompt"][:] == ["a1", "a2", "b1", "b2"]

    def test_worse_images_too(self, groups, pool):
        """All that was judged, of the groups in which one passes or of all, each once, the original's first."""
        plain = build_dataset_dict(groups, pool, config())
        some = build_dataset_dict(groups, pool, config(train_images="kept_groups"))
        everything = build_dataset_dict(groups, pool, config(train_images="all"))
        assert some["train"]["expanded_prompt"][:] == ["a", "a1", "a2"]
        assert some["train"]["keep"][:] == [False, True, True]
        assert everything["train"]["expanded_prompt"][:] == ["a", "a1", "a2", "b", "b1", "b2", "c", "c1"]
        # Signed, as the filter's table has them: of each group they add up to 0.
        np.testing.assert_allclose(some["train"]["advantage"][:], [-np.sqrt(1.5), 0, np.sqrt(1.5)], atol=1e-3)
        np.testing.assert_allclose(everything["train"]["advantage"][6:], [1, -1], atol=1e-3)
        assert everything["train"]["advantage"][:] == plain["candidates"]["advantage"][:8]
        assert (
            some["train"]["image"][0].getpixel((0, 0)) == (0, 0, 0) == everything["train"]["image"][0].getpixel((0, 0))
        )
        # What passes is what it was.
        assert some["candidates"]["keep"][:] == plain["candidates"]["keep"][:] == everything["candidates"]["keep"][:]
        at_image = build_dataset_dict(groups, pool, config(train_images="kept_groups", filter_level="image"))
        assert at_image["train"]["expanded_prompt"][:] == ["a", "a1", "a2", "b", "b1", "b2"]

    def test_what_is_struck_out_is_not_among_them(self, groups, pool, tmp_path):
        """By a person or by a limit, which holds of originals too where they are to be learnt."""
        veto = tmp_path / "vetoes.jsonl"
        veto.write_text(veto_line(groups[0].keys[1]) + "\n")
        vetoed = build_dataset_dict(groups, pool, config(train_images="all", veto=str(veto)))
        assert vetoed["train"]["expanded_prompt"][:] == ["a", "a2", "b", "b1", "b2", "c", "c1"]
        limited = config(train_images="all", filter_level="image", filter_rewards=["hpsv2", "pickscore<20.5"])
        assert build_dataset_dict(groups, pool, limited)["train"]["expanded_prompt"][:] == ["a", "b", "b2", "c", "c1"]
        nothing = config(train_images="all", filter_rewards=["hpsv2", "pickscore<1"])
        with pytest.raises(NothingToDoError, match="No group passed the filter"):
            build_dataset_dict(groups, pool, nothing)

    def test_weights(self, groups, pool):
        plain = build_dataset_dict(groups, pool, config(filter_level="image", scale_rewards="group"))
        weighted = build_dataset_dict(
            groups, pool, config(filter_level="image", scale_rewards="group", reward_weights=[1.0, 0.0])
        )
        # b1 leads its group on both rewards, but b2 equals it on hpsv2.
        assert weighted["train"]["advantage"][2] < plain["train"]["advantage"][2]

    def test_weights_by_name(self, groups, pool):
        for by_name, in_order in ((["pickscore=0"], [1, 0]), (["pickscore=0.5", "hpsv2=2"], [2, 0.5])):
            one, other = (build_dataset_dict(groups, pool, config(reward_weights=w)) for w in (by_name, in_order))
            assert one["train"]["advantage"][:] == other["train"]["advantage"][:]

    def test_limits(self, groups, pool):
        """Of variants, in the units of the reward; it stands beside what must be beaten, and alone."""
        both = build_dataset_dict(
            groups, pool, config(filter_level="image", filter_rewards=["hpsv2", "pickscore", "hpsv2<0.35"])
        )
        assert both["train"]["expanded_prompt"][:] == ["a1", "b1"]
        assert both["candidates"]["drop_reason"][:6] == [
            "original", "", "hpsv2<0.35",
            "original", "", "pickscore",
        ]  # fmt: skip
        alone = build_dataset_dict(groups, pool, config(filter_level="image", filter_rewards=["pickscore<20.5"]))
        assert alone["train"]["expanded_prompt"][:] == ["b2", "c1"]
        with pytest.raises(NothingToDoError) as error:
            build_dataset_dict(groups, pool, config(filter_rewards=["hpsv2", "pickscore>30"]))
        assert (
            "of 5 variants of 3 prompts, hpsv2 4 beat their original, pickscore>30 0 are within their limit, and 0 do all of it"
            in str(error.value)
        )

    def test_a_reward_with_a_limit_only_has_no_part_in_the_advantage(self, groups, pool):
        def advantages(**settings):
            return build_dataset_dict(groups, pool, config(filter_level="image", **settings))["train"]["advantage"][:]

        limited = {"filter_rewards": ["hpsv2", "pickscore>20.5"]}
        assert advantages(**limited) == advantages(filter_rewards=["hpsv2", "pickscore>20.5"], reward_weights=[1, 0])
        weighted = advantages(**limited, reward_weights=["pickscore=1"])
        assert weighted == advantages(filter_rewards=["hpsv2", "pickscore", "pickscore>20.5"]) != advantages(**limited)

    def test_limits_where_less_is_better(self, groups, pool):
        """They are read in the reward's own units, however it is turned."""
        pool.signs[1] = -1
        dataset = build_dataset_dict(groups, pool, config(filter_level="image", filter_rewards=["pickscore<20.5"]))
        assert dataset["train"]["expanded_prompt"][:] == ["b2", "c1"]

    def test_equal_work_makes_equal_files(self, tmp_path, groups, pool):
        contents = []
        for name in "xy":
            build_dataset_dict(groups, pool, config()).save_to_disk(str(tmp_path / name))
            files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
            contents.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in files})
        assert contents[0] == contents[1] and len(contents[0]) == 7
        validate(load_from_disk(str(tmp_path / "x"))["train"])

    def test_nothing_passes(self, groups, pool):
        with pytest.raises(NothingToDoError) as error:
            build_dataset_dict(groups[1:], pool, config())
        assert str(error.value) == (
            "No group passed the filter: of 3 variants of 2 prompts, hpsv2 2, pickscore 1 beat their original, and 1 did "
            "on all of them. To relax: filter_level: image; a smaller num_variants; fewer filter_rewards; more prompts; "
            "milder templates. The pool is kept."
        )

    def test_unfinished_pool(self, pool):
        with pytest.raises(UsageError, match="has no image for 'd': run `craft generate` first"):
            build_dataset_dict(make_groups(["d"], [["d1"]]), pool, config())


class TestCandidatesConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_variants": 0}, "num_variants must be at least 1, got 0"),
            ({"filter_rewards": ["aesthetic"]}, r"among the rewards hpsv2, pickscore; got \['aesthetic'\]"),
            ({"filter_rewards": []}, "among the rewards"),
            ({"reward_weights": [1.0]}, "one number for each of hpsv2, pickscore"),
            ({"reward_weights": ["mps=1"]}, "must be of the rewards hpsv2, pickscore; got mps"),
            (
                {"reward_weights": ["hpsv2=1", "2"]},
                "a number for each reward in their order, or NAME=NUMBER, not both",
            ),
            ({"reward_weights": ["hpsv2=1", "hpsv2=2"]}, "reward_weights: hpsv2 is given twice"),
            ({"reward_weights": ["hpsv2=much", 1.0]}, "'hpsv2=much' is neither a finite number nor NAME=NUMBER"),
            ({"reward_weights": [True, 1.0]}, "True is neither a finite number"),
            ({"reward_weights": [float("nan"), 1.0]}, "nan is neither a finite number"),
            ({"filter_rewards": ["nsfw<0.5"]}, r"among the rewards hpsv2, pickscore; got \['nsfw<0.5'\]"),
            ({"filter_rewards": ["hpsv2<=0.5"]}, "'hpsv2<=0.5' is no limit; write NAME<NUMBER"),
            ({"advantage_eps": 0.0}, "advantage_eps must be above 0, got 0.0"),
            ({"prompts": None}, "prompts is missing: give it in the recipe or as --prompts"),
            ({"scheduler": "DDIM"}, "no scheduler 'DDIM'. Did you mean .*DDIMScheduler"),
            ({"height": 100}, "height must be a multiple of 8, got 100"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ],
    )
    def test_wrong_settings(self, settings, message):
        with pytest.raises(UsageError, match=message):
            config(**settings)

    def test_early_rejection_follows_the_filter(self):
        assert config().reject_on == ["hpsv2", "pickscore"]
        assert config(filter_rewards=["hpsv2"]).reject_on == ["hpsv2"]
        assert config(filter_level="image").reject_on is None
        assert config(generate_all=True).reject_on is None


class TestValidate:
    def rows(self, **columns):
        buffer = io.BytesIO()
        PILImage.new("RGB", (8, 8)).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
        features = {"image": Image(), "prompt": Value("string"), "advantage": Value("float32")}
        data = {"image": [image, image], "prompt": ["a", "b"], "advantage": [1.0, 0.5], **columns}
        data = {name: values for name, values in data.items() if values is not None}
        return Dataset.from_dict(data, features=Features({n: features[n] for n in data}))

    def test_good(self):
        validate(self.rows())

    @pytest.mark.parametrize("column", ["image", "prompt", "advantage"])
    def test_missing_column(self, column):
        with pytest.raises(UsageError, match=f"has no column '{column}'; it has"):
            validate(self.rows(**{column: None}))

    @pytest.mark.parametrize(("broken", "said"), [(float("nan"), "nan"), (float("inf"), "inf"), (None, "null")])
    def test_broken_advantage(self, broken, said):
        with pytest.raises(UsageError, match=f"advantage of row 1 is {said}; it must be a finite number"):
            validate(self.rows(advantage=[1.0, broken]))

    def test_an_advantage_that_float32_does_not_hold(self):
        dataset = self.rows().remove_columns("advantage").add_column("advantage", [1e38, 1e39])
        with pytest.raises(UsageError, match=r"advantage of row 1 is 1e\+39; it must be a finite number"):
            validate(dataset)

    @pytest.mark.parametrize(("broken", "said"), [(None, "null"), ("", "empty"), (" \n", "empty")])
    def test_broken_prompt(self, broken, said):
        with pytest.raises(UsageError, match=f"^The prompt of row 1 is {said}.$"):
            validate(self.rows(prompt=["a", broken]))
        dataset = self.rows().add_column("expanded_prompt", ["a", broken])
        validate(dataset)
        with pytest.raises(UsageError, match=f"^The expanded_prompt of row 1 is {said}.$"):
            validate(dataset, "expanded_prompt")

    @pytest.mark.parametrize(
        ("column", "values", "wanted"),
        [
            ("prompt", [["a"], ["b"]], "text, got List"),
            ("prompt", [1, 2], "text, got Value.'int64'"),
            ("advantage", ["1.0", "2.0"], "numbers, got Value.'string'"),
            ("advantage", [[1.0], [2.0]], "numbers, got List"),
            ("advantage", [True, False], "numbers, got Value.'bool'"),
            ("image", ["a.png", "b.png"], "images, got Value.'string'.*cast_column"),
            ("image", [[1], [2]], "images, got List"),
        ],
    )
    def test_columns_of_another_type(self, column, values, wanted):
        dataset = self.rows().remove_columns(column).add_column(column, values)
        with pytest.raises(UsageError, match=f"^The column '{column}' must hold {wanted}") as error:
            validate(dataset)
        assert "\n" not in str(error.value)

    def test_numbers_of_other_types(self):
        for values in ([1, 0], np.array([1, 0], dtype=np.float64), np.array([1, 0], dtype=np.float16)):
            validate(self.rows().remove_columns("advantage").add_column("advantage", values))

    def test_images(self):
        sizes = [PILImage.new("RGB", (8, 8)), PILImage.new("RGB", (16, 8))]
        with pytest.raises(UsageError, match="row 0 has 8x8, row 1 16x8"):
            validate(self.rows(image=sizes))
        with pytest.raises(UsageError, match="multiples of 8, got 12x8"):
            validate(self.rows(image=[PILImage.new("RGB", (12, 8))] * 2))
        with pytest.raises(UsageError, match="The image of row 1 is missing"):
            validate(self.rows(image=[sizes[0], None]))
        dataset = self.rows().remove_columns("image").add_column("image", ["a", "b"])
        with pytest.raises(UsageError, match="must hold images"):
            validate(dataset)

    def test_no_rows(self):
        with pytest.raises(UsageError, match="no rows"):
            validate(self.rows().select([]))
