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


"""A vetoed variant counts as one that does not pass: what that means for the image, its group and the advantages."""

import json

import numpy as np
import pytest
from PIL import Image as PILImage

from craft_trl.candidates.config import CandidatesConfig
from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.errors import NothingToDoError, UsageError
from craft_trl.filtering.dataset import build_dataset_dict, build_pairs, with_images
from craft_trl.filtering.filter import filter_candidates
from craft_trl.filtering.votes import key_line as veto_line
from craft_trl.filtering.votes import load_vetoes, load_votes, vote_line
from craft_trl.planning.odds import simulate


# Groups a and b pass whole; of c the second variant loses on aesthetic; d was rejected after its first variant.
SCORES = {
    "hpsv2": [[0.2, 0.3, 0.4], [0.2, 0.3, 0.3], [0.2, 0.4, 0.3], [0.2, 0.1, None]],
    "aesthetic": [[5, 6, 7], [5, 8, 6], [5, 6, 4], [5, 7, None]],
}
GROUPS = make_groups(["a", "b", "c", "d"], [[f"{p}, sharp", f"{p}\u2028detailed"] for p in "abcd"], seed=2**53)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    pool = CandidatePool(tmp_path_factory.mktemp("pool"), list(SCORES))
    for i, group in enumerate(GROUPS):
        made = [j for j in range(3) if SCORES["hpsv2"][i][j] is not None]
        pool.append(
            [group.keys[j] for j in made],
            [PILImage.new("RGB", (8, 8), (40 * i, 40 * j, 0)) for j in made],
            {name: np.array([values[i][j] for j in made]) for name, values in SCORES.items()},
        )
    return pool


def filtered(pool, tmp_path, *vetoes, **settings):
    """Kept images as (group, variant), reasons, and advantages, after a veto of images given in the same way."""
    path = tmp_path / "veto.jsonl"
    path.write_text("".join(veto_line(GROUPS[i].keys[j]) + "\n" for i, j in vetoes), encoding="utf-8")
    rows = build_dataset_dict(GROUPS, pool, FilterConfig(veto=str(path), **settings))["candidates"].to_list()
    kept = [(row["group_id"], row["variant"]) for row in rows if row["keep"]]
    return kept, [row["drop_reason"] for row in rows], [row["advantage"] for row in rows]


class TestGroupLevel:
    def test_a_variant_takes_its_group_with_it(self, pool, tmp_path):
        kept, reasons, _ = filtered(pool, tmp_path, (0, 2))
        assert kept == [(1, 1), (1, 2)]
        assert reasons[:3] == ["original", "variant 2: vetoed", "vetoed"]

    def test_an_original_takes_its_group_with_it(self, pool, tmp_path):
        kept, reasons, _ = filtered(pool, tmp_path, (1, 0))
        assert kept == [(0, 1), (0, 2)]
        assert reasons[3:6] == ["vetoed", "original: vetoed", "original: vetoed"]

    def test_what_had_failed_stays_failed(self, pool, tmp_path):
        kept, reasons, _ = filtered(pool, tmp_path, (2, 2), (3, 1))
        assert kept == [(0, 1), (0, 2), (1, 1), (1, 2)]
        assert reasons[6:] == [
            "original", "variant 2: aesthetic, vetoed", "aesthetic, vetoed", "original", "hpsv2, vetoed", "not_generated",
        ]  # fmt: skip


class TestImageLevel:
    def test_a_variant_falls_alone(self, pool, tmp_path):
        before = filtered(pool, tmp_path, filter_level="image")[0]
        kept, reasons, _ = filtered(pool, tmp_path, (0, 2), filter_level="image")
        assert before == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)] and kept == [key for key in before if key != (0, 2)]
        assert reasons[:3] == ["original", "", "vetoed"]

    def test_an_original_takes_its_group_with_it(self, pool, tmp_path):
        kept, reasons, _ = filtered(pool, tmp_path, (2, 0), filter_level="image")
        assert kept == [(0, 1), (0, 2), (1, 1), (1, 2)]
        assert reasons[6:9] == ["vetoed", "original: vetoed", "aesthetic"]


def test_no_advantage_changes(pool, tmp_path):
    """A vetoed image was drawn and scored: it stays in the statistics, as one that did not win does."""
    without = filtered(pool, tmp_path)[2]
    assert filtered(pool, tmp_path, (0, 0), (2, 1))[2] == without
    assert filtered(pool, tmp_path, (0, 1), (1, 2), filter_level="image")[2] == without


def test_nothing_left(pool, tmp_path):
    with pytest.raises(NothingToDoError, match="and 5 did on all of them; 2 images are vetoed. To relax"):
        filtered(pool, tmp_path, (0, 1), (1, 0))


class TestFile:
    def test_lines_are_exact(self, pool, tmp_path):
        """Seeds beyond a double's integers, line separators inside a prompt, notes, blank lines, the same line twice."""
        line = json.loads(veto_line(GROUPS[1].keys[2])) | {"note": "six fingers"}
        assert line["seed"] == 2**53 + 1
        path = tmp_path / "veto.jsonl"
        lines = [json.dumps(line, ensure_ascii=False), "", veto_line(GROUPS[0].keys[0]), veto_line(GROUPS[0].keys[0])]
        path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
        assert load_vetoes(path, pool) == [GROUPS[1].keys[2], GROUPS[0].keys[0]]
        assert load_vetoes(None, pool) == []

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 2: not a veto, it needs prompt, expanded_prompt, seed"),
            ('"a"', "line 2: not a veto"),
            ('{"prompt": "a", "seed": 1}', "line 2: not a veto"),
            (
                '{"prompt": "a", "expanded_prompt": "a", "seed": "1"}',
                "line 2: a veto has two texts and a whole number",
            ),
            (
                '{"prompt": "a", "expanded_prompt": "a", "seed": 1.0}',
                "line 2: a veto has two texts and a whole number",
            ),
            (
                '{"prompt": "a", "expanded_prompt": "z", "seed": 1}',
                "line 2: the pool has no image of 'z' for 'a' with",
            ),
            (
                '{"prompt": "a", "expanded_prompt": "a", "seed": 1, "seed": 2}',
                "line 2: not a veto.*'seed' is there twice",
            ),
            (
                '{"prompt": "a\\ud83c", "expanded_prompt": "a", "seed": 1}',
                "line 2: not a veto.*half of a surrogate pair",
            ),
            (veto_line(GROUPS[3].keys[2]), "line 2: the pool has no image of 'd.*detailed' for 'd' with seed"),
        ],
    )
    def test_mistakes(self, pool, tmp_path, line, message):
        path = tmp_path / "veto.jsonl"
        path.write_text(f"{veto_line(GROUPS[0].keys[1])}\n{line}\n", encoding="utf-8")
        with pytest.raises(UsageError, match=f"veto.jsonl, {message}") as error:
            load_vetoes(path, pool)
        assert "\n" not in str(error.value)

    def test_no_file(self, pool, tmp_path):
        with pytest.raises(UsageError, match="veto: there is no file nowhere.jsonl. `craft sheet` writes a page"):
            FilterConfig(veto="nowhere.jsonl")
        (tmp_path / "binary").write_bytes(b"\xff\xfe")
        with pytest.raises(UsageError, match="binary, line 1: not UTF-8 text"):
            load_vetoes(tmp_path / "binary", pool)


VOTES = {(0, 0): "keep", (0, 1): "best", (1, 1): "keep", (1, 2): "veto", (2, 2): "best"}


@pytest.fixture
def votes(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text(
        "".join(vote_line(GROUPS[i].keys[j], vote) + "\n" for (i, j), vote in VOTES.items()), encoding="utf-8"
    )
    return str(path)


class TestReward:
    """Votes as the reward `human`: 2 for the best, 1 for what is to be kept, -1 for what is vetoed, else 0."""

    def test_a_column(self, pool, votes):
        made = build_dataset_dict(GROUPS, pool, FilterConfig(votes=votes, filter_level="image"))
        assert made["candidates"]["human"][:] == [1, 2, 0, 0, 1, -1, 0, 0, 2, 0, 0, None]
        # Beside the vetoes nothing is another filter or another advantage, unless they are named.
        plain = build_dataset_dict(GROUPS, pool, FilterConfig(filter_level="image"))["candidates"]
        assert made["candidates"]["advantage"][:] == plain["advantage"][:]
        kept = [(i, j) for i, j, keep in zip(plain["group_id"], plain["variant"], plain["keep"], strict=True) if keep]
        assert kept == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]
        assert made["train"]["human"][:] == [2, 0, 1, 0] and made["train"]["image"][0].size == (8, 8)
        assert "human" not in pool.rewards and "human" not in plain.column_names  # the pool is as it was

    @pytest.mark.parametrize(
        ("conditions", "level", "expected"),
        [
            (["human"], "image", [(0, 1), (1, 1), (2, 2)]),  # better than their original
            (["human>0"], "image", [(0, 1), (1, 1), (2, 2)]),
            (["human>1"], "image", [(0, 1), (2, 2)]),
            (["aesthetic", "human"], "image", [(0, 1), (1, 1)]),
            (["hpsv2", "human>-0.5"], "group", [(0, 1), (0, 2), (2, 1), (2, 2)]),
        ],
    )
    def test_a_filter(self, pool, votes, conditions, level, expected):
        config = FilterConfig(votes=votes, filter_level=level, filter_rewards=conditions)
        train = build_dataset_dict(GROUPS, pool, config)["train"]
        assert list(zip(train["group_id"], train["variant"], strict=True)) == expected

    def test_reasons(self, pool, votes):
        config = FilterConfig(votes=votes, filter_level="image", filter_rewards=["human"])
        reasons = build_dataset_dict(GROUPS, pool, config)["candidates"]["drop_reason"][:]
        assert reasons == ["original", "", "human", "original", "", "human, vetoed", "original", "human", ""] + [
            "original", "human", "not_generated",
        ]  # fmt: skip

    def test_an_advantage(self, pool, votes):
        """By hand: group a has 1, 2, 0, of mean 1 and standard deviation sqrt(2/3)."""
        config = FilterConfig(
            votes=votes, filter_level="image", reward_weights=["hpsv2=0", "aesthetic=0", "human=1"], advantage_eps=1e-9
        )
        rows = build_dataset_dict(GROUPS, pool, config)["candidates"].to_list()
        np.testing.assert_allclose([row["advantage"] for row in rows[:3]], [0, 1.224745, -1.224745], atol=1e-6)
        # Named as a condition to win on, it has the weight 1, as others do; by a limit, none.
        for conditions, weight in ((["hpsv2", "human"], 1), (["hpsv2", "human>0"], 0), (None, 0)):
            config = FilterConfig(votes=votes, filter_rewards=conditions)
            assert config.weights(["hpsv2", "aesthetic", "human"]) == {"hpsv2": 1, "aesthetic": 1, "human": weight}
        config = FilterConfig(votes=votes, filter_rewards=["hpsv2", "human"], reward_weights=[2, 3])
        assert config.weights(["hpsv2", "aesthetic", "human"]) == {"hpsv2": 2, "aesthetic": 3, "human": 1}

    def test_pairs(self, pool, votes):
        """The one that people prefer is chosen, and what they struck out is rejected, but never chosen."""
        pairs = build_pairs(GROUPS, pool, FilterConfig(votes=votes, filter_rewards=["human"]))
        assert pairs["group_id"][:] == [0, 1, 2]
        colour = [(row["chosen"].getpixel((0, 0)), row["rejected"].getpixel((0, 0))) for row in pairs]
        # Chosen: a's best, b's kept one, c's best. Rejected: the worst by all rewards of those that people like less.
        assert [chosen[:2] for chosen, _ in colour] == [(0, 40), (40, 40), (80, 80)]
        assert [rejected[:2] for _, rejected in colour][1] == (40, 80)
        # By other rewards, a vetoed image is in no pair.
        pairs = build_pairs(GROUPS, pool, FilterConfig(votes=votes, filter_rewards=["hpsv2"]))
        assert all(
            (40, 80) not in (row["chosen"].getpixel((0, 0))[:2], row["rejected"].getpixel((0, 0))[:2]) for row in pairs
        )

    def test_rows_with_it_and_pictures(self, pool, votes):
        """As for an export or an arm of the bake-off, which take the pool as it is."""
        rows = filter_candidates(GROUPS, pool, FilterConfig(votes=votes))
        assert rows[1]["human"] == 2
        assert with_images(rows[:3], pool)["expanded_prompt"][:] == [key[1] for key in GROUPS[0].keys]

    def test_nothing_left(self, pool, votes):
        with pytest.raises(NothingToDoError, match="human 3 beat their original.*; 1 images are vetoed"):
            build_dataset_dict(GROUPS, pool, FilterConfig(votes=votes, filter_rewards=["human", "hpsv2>9"]))

    def test_a_reward_of_that_name(self, tmp_path, votes):
        pool = CandidatePool(tmp_path / "pool", ["human"])
        keys = [key for group in GROUPS for key in group.keys]
        pool.append(keys, [PILImage.new("RGB", (8, 8))] * len(keys), {"human": np.arange(len(keys))})
        assert (
            len(build_dataset_dict(GROUPS, pool, FilterConfig())["train"]) == 8
        )  # without votes it is one like others
        with pytest.raises(UsageError, match="has a reward named human, as votes are to be"):
            build_dataset_dict(GROUPS, pool, FilterConfig(votes=votes))


class TestVotesFile:
    def test_old_files_are_votes(self, pool, tmp_path):
        """Of the lines of a file of vetoes none has a `vote`."""
        path = tmp_path / "veto.jsonl"
        path.write_text(f"{veto_line(GROUPS[0].keys[1])}\n{vote_line(GROUPS[0].keys[1], 'veto')}\n", encoding="utf-8")
        assert load_votes(path, pool) == {GROUPS[0].keys[1]: "veto"}
        assert load_vetoes(path, pool) == [GROUPS[0].keys[1]]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (vote_line(GROUPS[0].keys[1], "veto"), "lines 1 and 2: keep and veto for 'a, sharp' for 'a' with seed"),
            (vote_line(GROUPS[1].keys[0], "good"), "line 2: vote must be one of veto, keep, best, got 'good'"),
            (vote_line(GROUPS[1].keys[0], "keep").replace('"keep"', "1"), "line 2: vote must be one of .*, got 1"),
            (vote_line(GROUPS[3].keys[2], "keep"), "line 2: the pool has no image of 'd.*Was it made for another pool"),
            ('{"prompt": "a", "vote": "keep"}', "line 2: not a vote, it needs prompt, expanded_prompt, seed"),
            (f"{vote_line(GROUPS[1].keys[0], 'best')}\n{vote_line(GROUPS[1].keys[1], 'best')}", "lines 2 and 3: two images are the best for 'b'"),
        ],
    )  # fmt: skip
    def test_mistakes(self, pool, tmp_path, line, message):
        path = tmp_path / "votes.jsonl"
        path.write_text(f"{vote_line(GROUPS[0].keys[1], 'keep')}\n{line}\n", encoding="utf-8")
        with pytest.raises(UsageError, match=f"votes.jsonl, {message}") as error:
            load_votes(path, pool)
        assert "\n" not in str(error.value)

    def test_given_as_vetoes(self, pool, votes):
        with pytest.raises(UsageError, match="line 1: a vote for keep, which is no veto: give the file as votes"):
            load_vetoes(votes, pool)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"votes": "nowhere.jsonl"}, "votes: there is no file nowhere.jsonl. `craft sheet` writes a page that saves one"),
            ({"votes": "v", "veto": "v"}, "veto and votes are both given: give votes, which hold vetoes too"),
            ({"filter_rewards": ["human"]}, "human is what votes say, and there are none: give votes"),
            ({"reward_weights": ["human=1"]}, "human is what votes say, and there are none"),
            ({"votes": "v", "filter_rewards": ["hps"]}, r"filter_rewards must be among the rewards hpsv2; got \['hps'\]"),
            ({"votes": "v", "filter_rewards": []}, "filter_rewards must be among the rewards hpsv2"),
            ({"votes": "v", "reward_weights": [1, 2]}, "reward_weights must have one number for each of hpsv2"),
        ],
    )  # fmt: skip
    def test_mistakes(self, tmp_path, monkeypatch, settings, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "v").touch()
        with pytest.raises(UsageError, match=message):
            FilterConfig(**settings).check_rewards(["hpsv2"])

    def test_nobody_has_voted_when_images_are_drawn(self, tiny, tmp_path):
        """Early rejection and the plan go by the rewards."""
        (tmp_path / "v").touch()
        settings = {"prompts": str(tiny / "prompts" / "tiny-pick.txt"), "templates": ["{prompt}"], "num_variants": 2}
        settings |= {
            "model_name_or_path": "m",
            "output_dir": "o",
            "rewards": ["hpsv2", "aesthetic"],
            "votes": str(tmp_path / "v"),
        }
        for conditions, reject_on in (
            (None, ["hpsv2", "aesthetic"]),
            (["hpsv2", "human", "human>-1", "aesthetic<9"], ["hpsv2", "aesthetic<9"]),
            (["human"], None),
        ):
            config = CandidatesConfig(**settings, filter_rewards=conditions, reward_weights=["human=2"])
            assert config.reject_on == reject_on
            assert simulate(config, num_groups=2000).images > 2
