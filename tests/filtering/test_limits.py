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


import pytest
from datasets import Image

from craft_trl.candidates.drawing import generate_candidates
from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.pool import CandidatePool
from craft_trl.candidates.rejection import needed, passes
from craft_trl.errors import UsageError
from craft_trl.filtering.dataset import build_pairs
from craft_trl.filtering.filter import filter_candidates

from ..helpers import REWARDS, SCORERS, Draw, groups_of


FILTER = ["hpsv2", "pickscore<35"]


def drawn(folder, groups, reject_on=None):
    pool, draw = CandidatePool(folder, REWARDS), Draw()
    generate_candidates(pool, groups, draw, SCORERS, 4, reject_on)
    return pool, sum(draw.batches)


def test_early_rejection_keeps_the_same_groups(tmp_path):
    groups, config = groups_of(60, 2), FilterConfig(filter_rewards=FILTER)
    every, _ = drawn(tmp_path / "all", groups)
    early, images = drawn(tmp_path / "early", groups, FILTER)
    kept = [[row["keep"] for row in filter_candidates(groups, pool, config)] for pool in (every, early)]
    assert kept[0] == kept[1] and 0 < sum(kept[0]) < 60
    assert images < 170 and not any(needed(early, group, FILTER) for group in groups)
    assert sum(passes(early, group, FILTER) for group in groups) == sum(kept[0]) / 2
    # By hand, in the units of the reward.
    for group, (first, second) in zip(groups, zip(kept[0][1::3], kept[0][2::3], strict=True), strict=True):
        original, *variants = (every.scores[key] for key in group.keys)
        assert first == second == all(hps > original[0] and pick < 35 for hps, pick in variants)


def test_what_is_chosen_is_within_the_limits(tmp_path):
    groups = groups_of(30, 2)
    pool, _ = drawn(tmp_path, groups)
    pairs = build_pairs(groups, pool, FilterConfig(filter_rewards=FILTER)).cast_column("chosen", Image(decode=False))
    scores = dict(zip(pool.images(pool.scores), pool.scores.values(), strict=True))
    assert len(scores) == 90 and 0 < len(pairs) < 30
    assert all(scores[pair["chosen"]["bytes"]][1] < 35 for pair in pairs)
    unlimited = build_pairs(groups, pool, FilterConfig(filter_rewards=["hpsv2"])).cast_column(
        "chosen", Image(decode=False)
    )
    assert len(unlimited) > len(pairs) and any(scores[pair["chosen"]["bytes"]][1] >= 35 for pair in unlimited)


def test_pairs_by_a_reward_that_the_pool_has_not(tmp_path):
    groups = groups_of(2, 2)
    pool, _ = drawn(tmp_path, groups)
    with pytest.raises(UsageError, match=r"among the rewards hpsv2, pickscore; got \['pick'\]"):
        build_pairs(groups, pool, FilterConfig(filter_rewards=["pick"]))
