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


import dataclasses
import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_trl.candidates.drawing import fill_pool, generate_candidates
from craft_trl.candidates.groups import load_groups, make_groups, save_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.candidates.rejection import needed, up_to_target
from craft_trl.candidates.storing import Storing
from craft_trl.crf import composite_reward_filter
from craft_trl.errors import UsageError

from ..helpers import REWARDS, SCORERS, Draw, groups_of, reward


class TestGroups:
    def test_round_trip(self, tmp_path):
        groups = groups_of(3, 2)
        assert [g.seeds for g in groups] == [(5,) * 3, (6,) * 3, (7,) * 3]
        assert groups[0].keys == [(("prompt 0"), t, 5) for t in ("prompt 0", "prompt 0, v0", "prompt 0, v1")]
        save_groups(groups, tmp_path / "groups.jsonl")
        assert load_groups(tmp_path / "groups.jsonl") == groups

    def test_distinct_seeds(self):
        groups = make_groups(["a", "b"], [["a1", "a2"], ["b1", "b2"]], seed=5, group_seeds="distinct")
        seeds = [seed for group in groups for seed in group.seeds]
        assert len(set(seeds)) == 6 and [group.seeds[0] for group in groups] == [5, 6]
        # One more variant changes none of the others.
        (more,) = make_groups(["a"], [["a1", "a2", "a3"]], seed=5, group_seeds="distinct")
        assert more.keys[:3] == groups[0].keys

    @pytest.mark.parametrize("group_seeds", ["same", "distinct"])
    def test_seeds_of_the_prompt(self, group_seeds):
        """Prompts may be added anywhere: each image of the others is found in the pool again."""
        options = {"seed": 5, "group_seeds": group_seeds, "seed_by": "prompt"}
        before = make_groups(["a", "b"], [["a1", "a2"], ["b1", "b2"]], **options)
        after = make_groups(["new", "b", "a"], [["n1", "n2"], ["b1", "b2"], ["a1", "a2"]], **options)
        assert [group.keys for group in after[:0:-1]] == [group.keys for group in before]
        assert [group.group_id for group in after] == [0, 1, 2]
        seeds = {seed for group in after for seed in group.seeds}
        assert len(seeds) == (3 if group_seeds == "same" else 9) and max(seeds) < 2**63
        other = make_groups(["a"], [["a1", "a2"]], **options | {"seed": 6})
        assert other[0].seeds[0] == before[0].seeds[0] + 1

    @pytest.mark.parametrize("line", ["{", "[]", '{"group_id": 0}', '"x"'])
    def test_bad_line(self, tmp_path, line):
        save_groups(groups_of(1, 1), tmp_path / "groups.jsonl")
        with (tmp_path / "groups.jsonl").open("a") as file:
            file.write(line + "\n")
        with pytest.raises(UsageError, match="groups.jsonl, line 2: not a group"):
            load_groups(tmp_path / "groups.jsonl")

    def test_line_separators_within_a_prompt(self, tmp_path):
        groups = make_groups(["a\u2028b", "c\x85d"], [["a\u2028b, e"], ["c\x0bd, é"]])
        save_groups(groups, tmp_path / "groups.jsonl")
        assert load_groups(tmp_path / "groups.jsonl") == groups
        # As an editor on Windows saves it.
        text = (tmp_path / "groups.jsonl").read_text(encoding="utf-8")
        (tmp_path / "groups.jsonl").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
        assert load_groups(tmp_path / "groups.jsonl") == groups

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt": 3}, "not a group: prompt must be a text, and expanded_prompts a list of texts"),
            ({"prompt": " "}, "not a group: prompt must be a text"),
            ({"prompt": "\ud83c"}, "not a group .half of a surrogate pair, U.D83C."),
            ({"expanded_prompts": "ab"}, "not a group: prompt must be a text, and expanded_prompts a list of texts"),
            ({"expanded_prompts": ["a", None]}, "not a group: prompt must be a text"),
            ({"seeds": ["1", "2", "3"]}, "not a group: group_id must be a whole number, and seeds a list of them"),
            ({"seeds": [1, 2, 2**63]}, "not a group: group_id must be a whole number"),
            ({"group_id": True}, "not a group: group_id must be a whole number"),
            ({"seeds": [5, 5]}, "2 seeds for 3 images, of the prompt and its variants"),
            (
                {"expanded_prompts": ["x"], "seeds": [5, 5]},
                "1 variants, but the group before has 2. All groups need as",
            ),
            ({"expanded_prompts": ["x", "x"]}, "two images of the same text and seed. Give one of them another seed"),
        ],
    )
    def test_wrong_values(self, tmp_path, change, message):
        first, second = map(dataclasses.asdict, groups_of(2, 2))
        text = "".join(json.dumps(row) + "\n" for row in (first, second | change))
        (tmp_path / "groups.jsonl").write_text(text)
        with pytest.raises(UsageError, match=f"groups.jsonl, line 2: {message}") as error:
            load_groups(tmp_path / "groups.jsonl")
        assert "\n" not in str(error.value)

    def test_a_number_or_a_key_that_is_there_twice(self, tmp_path):
        first, second = groups_of(2, 1)
        save_groups([first, dataclasses.replace(second, group_id=0)], tmp_path / "g.jsonl")
        with pytest.raises(UsageError, match="g.jsonl, lines 1 and 2: both have group_id 0"):
            load_groups(tmp_path / "g.jsonl")
        (tmp_path / "g.jsonl").write_text('{"group_id": 0, "group_id": 1}')
        with pytest.raises(UsageError, match="g.jsonl, line 1: not a group .the key 'group_id' is there twice."):
            load_groups(tmp_path / "g.jsonl")
        (tmp_path / "g.jsonl").write_text("\n")
        with pytest.raises(UsageError, match="g.jsonl holds no group"):
            load_groups(tmp_path / "g.jsonl")

    def test_an_image_in_two_groups(self, tmp_path):
        (group,) = groups_of(1, 1)
        save_groups([group, dataclasses.replace(group, group_id=1, expanded_prompts=("other",))], tmp_path / "g.jsonl")
        with pytest.raises(
            UsageError, match="lines 1 and 2: both have the image of 'prompt 0' for 'prompt 0' with seed 5"
        ):
            load_groups(tmp_path / "g.jsonl")

    def test_missing(self, tmp_path):
        with pytest.raises(UsageError, match="run `craft expand` first"):
            load_groups(tmp_path / "groups.jsonl")


class TestGenerateCandidates:
    def test_batches_are_full(self, tmp_path):
        draw = Draw()
        generate_candidates(CandidatePool(tmp_path, REWARDS), groups_of(10, 3), draw, SCORERS, 7)
        assert draw.batches == [7, 7, 7, 7, 7, 5]

    def test_nothing_is_made_twice(self, tmp_path):
        groups, draw = groups_of(6, 3), Draw()
        generate_candidates(CandidatePool(tmp_path, REWARDS), groups[:3], draw, SCORERS, 4)
        generate_candidates(CandidatePool(tmp_path, REWARDS), groups, draw, SCORERS, 4)
        assert sum(draw.batches) == 24
        generate_candidates(CandidatePool(tmp_path, REWARDS), groups_of(6, 4), draw, SCORERS, 4)
        assert sum(draw.batches) == 30

    @settings(max_examples=40)
    @given(
        n=st.integers(1, 12),
        variants=st.integers(1, 5),
        batch=st.integers(1, 9),
        levels=st.integers(2, 9),
        reject_on=st.sampled_from(["h", "p", "hp", "ha", "hpa"]),
        group_seeds=st.sampled_from(["same", "distinct"]),
        draw_ahead=st.booleans(),
    )
    def test_early_rejection_keeps_the_same_set(
        self, tmp_path_factory, n, variants, batch, levels, reject_on, group_seeds, draw_ahead
    ):
        scorers = {name: reward(f"{name}{n}{batch}", levels) for name in "hpa"}
        prompts = [f"prompt {i}" for i in range(n)]
        texts = [[f"{p}, v{j}" for j in range(variants)] for p in prompts]
        groups = make_groups(prompts, texts, seed=5, group_seeds=group_seeds)
        kept, pools = {}, {}
        for how, reject in (("all", None), ("early", list(reject_on))):
            pool, draw = CandidatePool(tmp_path_factory.mktemp(how), "hpa"), Draw()
            generate_candidates(pool, groups, draw, scorers, batch, reject, draw_ahead=draw_ahead)
            scores, generated = pool.matrices(groups)
            kept[how], pools[how] = composite_reward_filter(scores, list(reject_on), generated=generated), pool
            assert not any(needed(pool, group, reject) for group in groups)
            # Every image that was drawn is in the pool, but for those drawn in places that would have been empty.
            if not draw_ahead:
                assert sum(draw.batches) == generated.sum()
        assert (kept["all"] == kept["early"]).all()
        # Bit for bit: scores and images are those of brute force.
        every, early = pools["all"], pools["early"]
        assert all(early.scores[key].tobytes() == every.scores[key].tobytes() for key in early.scores)
        assert list(early.images(early.scores)) == list(every.images(early.scores))
        # No image beyond a group's first failure, but for the first variant, which is drawn with the original.
        passes = generated & np.logical_and.reduce([scores[r] > scores[r][:, :1] for r in reject_on])
        for row, made in zip(passes, generated, strict=True):
            failed = [j for j in range(1, variants + 1) if made[j] and not row[j]]
            assert len(failed) <= 1 and (not failed or not made[failed[0] + 1 :].any())

    def test_places_that_would_be_empty_are_drawn_ahead(self, tmp_path):
        always = {name: lambda images, prompts: np.array([i.getpixel((0, 0))[0] for i in images]) for name in REWARDS}

        class Brighter(Draw):
            """Each variant beats the one before, so that every group lives to its end."""

            def __call__(self, prompts, seeds):
                images = super().__call__(prompts, seeds)
                for image, prompt in zip(images, prompts, strict=True):
                    image.paste((int(prompt[-1]) + 1 if ", v" in prompt else 0,) * 3, (0, 0, 8, 8))
                return images

        groups = groups_of(2, 8)
        plain, ahead = Brighter(), Brighter()
        generate_candidates(CandidatePool(tmp_path / "a", REWARDS), groups, plain, always, 6, list(REWARDS))
        pool = CandidatePool(tmp_path / "b", REWARDS)
        generate_candidates(pool, groups, ahead, always, 6, list(REWARDS), draw_ahead=True)
        assert plain.batches == [4, 2, 2, 2, 2, 2, 2, 2] and ahead.batches == [6, 6, 6]
        other = CandidatePool(tmp_path / "a", REWARDS)
        assert pool.scores.keys() == other.scores.keys() and len(pool) == 18
        assert list(pool.images(pool.scores)) == list(other.images(pool.scores))

    @pytest.mark.parametrize("reject_on", [None, list(REWARDS)])
    def test_a_variant_that_is_the_original(self, tmp_path, reject_on):
        """It is one image, made once, that does not beat itself."""
        pool, groups, draw = (
            CandidatePool(tmp_path, REWARDS),
            make_groups(["a", "b"], [["a", "a1"], ["b1", "b"]]),
            Draw(),
        )
        generate_candidates(pool, groups, draw, SCORERS, 3, reject_on, draw_ahead=True)
        assert len(pool) == 4 if reject_on is None else len(pool) <= 4
        assert not any(needed(pool, group, reject_on) for group in groups)
        scores, generated = pool.matrices(groups)
        assert not composite_reward_filter(scores, generated=generated).any()

    def test_rejection_on_some_rewards_only(self, tmp_path):
        pool, groups = CandidatePool(tmp_path, REWARDS), groups_of(8, 4)
        generate_candidates(pool, groups, Draw(), SCORERS, 4, reject_on=["hpsv2"])
        scores, generated = pool.matrices(groups)
        passing = composite_reward_filter(scores, ["hpsv2"], generated=generated)
        assert generated[passing.any(1)].all()

    def test_groups_go_on_before_new_ones_begin(self, tmp_path):
        order = []

        def draw(prompts, seeds):
            order.extend(prompts)
            return Draw()(prompts, seeds)

        always = {name: lambda images, prompts: np.arange(len(images), dtype=float) for name in REWARDS}
        generate_candidates(CandidatePool(tmp_path, REWARDS), groups_of(5, 3), draw, always, 2, list(REWARDS))
        # A batch is drawn while the one before is scored, so there is one group in between.
        assert [text.split(",")[0] for text in order[:4]] == ["prompt 0"] * 2 + ["prompt 1"] * 2
        assert order[4] == "prompt 0, v1"

    def test_scoring_and_writing_go_on_while_the_next_batch_is_drawn(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Storing, "overlaps", True)  # as on a GPU
        second, scored = threading.Event(), []

        def draw(prompts, seeds):
            if "prompt 1" in prompts:
                second.set()
            return Draw()(prompts, seeds)

        def wait_for_it(images, prompts):
            scored.append(second.wait(timeout=60))
            return np.zeros(len(images))

        generate_candidates(CandidatePool(tmp_path, ["r"]), groups_of(2, 1), draw, {"r": wait_for_it}, 2)
        assert scored == [True, True]

    def test_equal_runs_write_equal_files(self, tmp_path):
        for name in "ab":
            pool = CandidatePool(tmp_path / name, REWARDS)
            generate_candidates(pool, groups_of(9, 3), Draw(), SCORERS, 4, list(REWARDS), draw_ahead=True)
        a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).glob("*.parquet")} for name in "ab")
        assert a == b and len(a) > 3

    @settings(max_examples=25)
    @given(n=st.integers(1, 20), variants=st.integers(1, 3), target=st.integers(1, 5), batch=st.integers(1, 9))
    def test_target_is_reached_in_the_order_of_the_groups(self, tmp_path_factory, n, variants, target, batch):
        groups = groups_of(n, variants)
        everything = CandidatePool(tmp_path_factory.mktemp("all"), REWARDS)
        generate_candidates(everything, groups, Draw(), SCORERS, 8)
        first = up_to_target(everything, groups, REWARDS, target)
        kept = composite_reward_filter(everything.matrices(groups)[0]).any(1)
        assert kept[: len(first)].sum() == min(target, kept.sum())
        assert len(first) == n if kept.sum() < target else kept[len(first) - 1]

        pool, draw = CandidatePool(tmp_path_factory.mktemp("some"), REWARDS), Draw()
        generate_candidates(pool, groups, draw, SCORERS, batch, REWARDS, target)
        assert up_to_target(pool, groups, REWARDS, target) == first
        assert not any(needed(pool, group, REWARDS) for group in first)
        # What was begun behind the last one fits into the batches that were under way.
        beyond = [key for group in groups[len(first) :] for key in group.keys if key in pool]
        assert len(beyond) <= 3 * batch + 2
        # A pool that holds more than that, in whatever order it came, leads to the same groups, and needs nothing more.
        assert up_to_target(everything, groups, REWARDS, target) == first
        generate_candidates(everything, groups, draw := Draw(), SCORERS, batch, REWARDS, target)
        assert not draw.batches

    @pytest.mark.parametrize("target", [None, 4])
    @pytest.mark.parametrize("tasks", [1, 2, 3, 5, 40])
    def test_tasks(self, tmp_path, tasks, target):
        """They make the rows that one process makes, each once; with a target, all that count."""
        names, scorers = ["hpsv2"], {"hpsv2": SCORERS["hpsv2"]}  # by one reward alone a quarter passes
        groups, one = groups_of(30, 3), CandidatePool(tmp_path / "one", names)
        scorers = {name: reward(name, 4) for name in names}  # so that some groups pass
        generate_candidates(one, groups, Draw(), scorers, 4, names, target)
        made = {}
        for task in reversed(range(tasks)):
            pool = CandidatePool(tmp_path / "tasks", names)
            before, draw = set(pool.scores), Draw()
            generate_candidates(pool, groups, draw, scorers, 4, names, target, task=(task, tasks))
            mine = {key for group in groups[task::tasks] for key in group.keys}
            made[task] = set(CandidatePool(tmp_path / "tasks", names).scores) - before
            assert made[task] <= mine and sum(draw.batches) == len(made[task])
        pool = CandidatePool(tmp_path / "tasks", names)
        if target is None:
            assert pool.scores.keys() == one.scores.keys()
        counted = up_to_target(pool, groups, names, target)
        assert counted == up_to_target(one, groups, names, target) and (target is None or len(counted) < 30)
        assert not any(needed(pool, group, names) for group in counted)
        assert all((pool.scores[key] == one.scores[key]).all() for key in pool.scores.keys() & one.scores.keys())
        assert not (tmp_path / "tasks" / "claims.lock").exists()

    def test_target_without_rejection(self, tmp_path):
        with pytest.raises(ValueError, match="target_groups counts the groups that pass"):
            generate_candidates(CandidatePool(tmp_path, REWARDS), [], Draw(), SCORERS, target_groups=1)

    @pytest.mark.parametrize(
        ("scorer", "message"),
        [
            (lambda images, prompts: np.full(len(images), np.nan), "Reward r is nan for the prompt 'prompt 0'"),
            (lambda images, prompts: np.zeros(len(images) + 1), r"Reward r returned shape \(3,\) for 2 images"),
            (lambda images, prompts: np.zeros((len(images), 1)), r"returned shape \(2, 1\) for 2 images"),
        ],
    )
    def test_a_broken_scorer_writes_nothing(self, tmp_path, scorer, message):
        with pytest.raises(ValueError, match=message):
            generate_candidates(CandidatePool(tmp_path, ["r"]), groups_of(1, 1), Draw(), {"r": scorer}, 2)
        assert not list(tmp_path.glob("*.parquet"))


def test_fill_pool_makes_what_is_missing_in_order(tmp_path):
    keys = [key for group in groups_of(3, 1) for key in group.keys]
    draw = Draw()
    fill_pool(CandidatePool(tmp_path, REWARDS), keys[::2], draw, SCORERS, 2)
    fill_pool(CandidatePool(tmp_path, REWARDS), keys, draw, SCORERS, 2)
    assert draw.batches == [2, 1, 2, 1]
    assert len(CandidatePool(tmp_path, REWARDS)) == 6
    assert json.loads(json.dumps(keys[0])) == list(keys[0])
