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


"""Rewards of which less is better: what is drawn, kept, weighted, paired and shown is what their negatives would make of it."""

import json
import re

import numpy as np
import pytest

from craft_trl.bakeoff.arms import METHODS, Material, make_seed_groups
from craft_trl.candidates.drawing import fill_pool, generate_candidates
from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.pool import CandidatePool
from craft_trl.candidates.rejection import needed, passes
from craft_trl.errors import UsageError
from craft_trl.filtering.dataset import build_dataset_dict, build_pairs
from craft_trl.filtering.sheet import write_sheet
from craft_trl.hub.release import undecided

from ..helpers import Draw, groups_of, number


NAMES = ["hpsv2", "defects"]
GROUPS = groups_of(60, 2)
SEEDS = make_seed_groups(GROUPS)


def hpsv2(images, prompts):
    return [number("hpsv2", i.getpixel((0, 0)), p) % 50 for i, p in zip(images, prompts, strict=True)]


class Defects:
    """As a class of a user's that says so of its instances only."""

    def __init__(self, sign=1):
        self.sign = sign
        if sign == 1:
            self.higher_is_better = False

    def __call__(self, images, prompts):
        return [self.sign * (number("d", i.getpixel((0, 0)), p) % 50) for i, p in zip(images, prompts, strict=True)]


def make(folder, defects, reject_on):
    """A pool of both rewards, with the images of the seeds besides, opened again as another process does."""
    rewards = {"hpsv2": hpsv2, "defects": defects}
    generate_candidates(CandidatePool(folder, NAMES), GROUPS, Draw(), rewards, 8, reject_on, show_progress=False)
    fill_pool(CandidatePool(folder, NAMES), [key for g in SEEDS for key in g.keys], Draw(), rewards, 8)
    return CandidatePool(folder, NAMES, verify=False)


@pytest.fixture(scope="module", params=[NAMES, ["defects"], None], ids=["rejected early", "by it alone", "all drawn"])
def pools(request, tmp_path_factory):
    """The pool whose second reward counts defects, one with their negatives, and what rejected."""
    folder = tmp_path_factory.mktemp("pools")
    return (*(make(folder / str(s), Defects(s), request.param) for s in (1, -1)), request.param)


def test_the_same_is_drawn(pools):
    lower, higher, reject_on = pools
    assert lower.scores.keys() == higher.scores.keys()
    assert lower.lower_is_better == {"defects"} and higher.lower_is_better == set()
    for group in GROUPS:
        assert needed(lower, group, reject_on) == needed(higher, group, reject_on) == []
        assert passes(lower, group, NAMES) == passes(higher, group, NAMES)


def test_scores_stay_what_the_reward_gave(pools):
    lower, higher, _ = pools
    assert all((lower.scores[key] == higher.scores[key] * [1, -1]).all() for key in lower.scores)
    assert min(scores[1] for scores in lower.scores.values()) >= 0


@pytest.mark.parametrize("level", ["group", "image"])
@pytest.mark.parametrize("scale", ["pool", "group", "none"])
def test_the_same_is_kept_with_the_same_advantages(pools, level, scale):
    datasets = [
        build_dataset_dict(GROUPS, pool, FilterConfig(filter_level=level, scale_rewards=scale)) for pool in pools[:2]
    ]
    lower, higher = (dataset["candidates"].remove_columns("image").to_list() for dataset in datasets)
    assert [row | {"defects": None} for row in lower] == [row | {"defects": None} for row in higher]
    originals = {row["group_id"]: row["defects"] for row in lower if row["variant"] == 0}
    kept = [row for row in lower if row["keep"]]
    assert kept and all(row["defects"] < originals[row["group_id"]] for row in kept)
    assert datasets[0]["train"]["expanded_prompt"][:] == datasets[1]["train"]["expanded_prompt"][:]


def test_pairs_and_arms(pools):
    lower, higher, _ = pools
    a, b = (build_pairs(GROUPS, pool, FilterConfig()) for pool in (lower, higher))
    assert len(a) and a["prompt"][:] == b["prompt"][:] and a["margin"][:] == b["margin"][:] and min(a["margin"]) > 0
    for column in ("chosen", "rejected"):
        assert [image.tobytes() for image in a[column]] == [image.tobytes() for image in b[column]]
    best = [METHODS["best_of_n"].build(Material(GROUPS, SEEDS, pool, FilterConfig())) for pool in (lower, higher)]
    assert best[0]["seed"][:] == best[1]["seed"][:] and best[0]["defects"][:] == [-x for x in best[1]["defects"]]


def test_undecided_groups_of_the_hubs_configurations(pools):
    lower, higher, reject_on = pools
    for names in (NAMES, ["defects"], ["hpsv2"]):
        counts = [undecided(GROUPS, pool, FilterConfig(filter_rewards=names)) for pool in (lower, higher)]
        assert counts[0] == counts[1] and (counts[0] == 0) == (reject_on is None or set(reject_on) <= set(names))


def test_sheet(pools, tmp_path):
    for pool, signs in zip(pools[:2], ([1, -1], [1, 1]), strict=True):
        write_sheet(tmp_path / "sheet.html", GROUPS, pool, FilterConfig())
        page = (tmp_path / "sheet.html").read_text()
        assert json.loads(re.search(r'"signs": (\[.*?\])', page)[1]) == signs


class TestPool:
    def pool(self, folder, *names):
        pool = CandidatePool(folder, NAMES)
        pool.orient(set(names))
        pool.append(
            GROUPS[0].keys,
            Draw()(*zip(*[key[1:] for key in GROUPS[0].keys], strict=True)),
            {n: [1, 2, 3] for n in NAMES},
        )
        return CandidatePool(folder, NAMES)

    def test_turned_where_it_is_decided(self, tmp_path):
        pool = self.pool(tmp_path, "defects", "another")
        assert pool.lower_is_better == {"defects"}
        assert pool.quality(GROUPS[0].keys[1]).tolist() == [2, -2]
        scores, _ = pool.matrices(GROUPS[:1])
        assert scores["defects"].tolist() == [[-1, -2, -3]] and scores["hpsv2"].dtype == np.float32

    def test_a_pool_that_does_not_say(self, tmp_path):
        """Pools of the time before this was noted, and their files, are what they were."""
        pool = self.pool(tmp_path)
        assert pool.quality(GROUPS[0].keys[1]).tolist() == [2, 2] and not pool.lower_is_better
        (shard,) = tmp_path.glob("*.parquet")
        assert b"lower_is_better" not in shard.read_bytes() and shard.name.split("-")[2] == "d9e6e8e4bff8d152"

    def test_a_reward_that_has_changed_its_mind(self, tmp_path):
        self.pool(tmp_path, "defects")
        with pytest.raises(UsageError, match="less of defects is better, and now more of it is to be: was higher_is_"):
            generate_candidates(
                CandidatePool(tmp_path, NAMES), GROUPS, Draw(), {"hpsv2": hpsv2, "defects": Defects(-1)}
            )

    def test_what_was_noted_wrong_is_found(self, tmp_path):
        self.pool(tmp_path, "defects")
        (shard,) = tmp_path.glob("*.parquet")
        data = shard.read_bytes()
        place = data.index(b"lower_is_better")
        for i in range(place, place + 40):
            shard.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
            pool = CandidatePool(tmp_path, NAMES, verify=False)
            assert pool.lower_is_better == {"defects"} if len(pool) else pool.damaged
