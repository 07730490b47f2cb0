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

"""`target_groups`: the same groups and advantages however the work was spread, cut short and taken up again."""

import sys
import time

import numpy as np
import pytest
import yaml
from datasets import load_from_disk

from craft_trl.candidates.drawing import generate_candidates
from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.groups import save_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.candidates.rejection import needed, up_to_target
from craft_trl.cli.main import main
from craft_trl.filtering.filter import filter_candidates
from craft_trl.stages import Stage

from ..helpers import REWARDS, SCORERS, Draw, groups_of
from ..processes import Program


GROUPS, TARGET = groups_of(120, 2), 6


class Killed(Draw):
    """Draws some batches and then dies."""

    def __init__(self, batches: int):
        super().__init__()
        self.left = batches

    def __call__(self, prompts, seeds):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__call__(prompts, seeds)


class Slow(Draw):
    """Slow enough that two processes work at the same time."""

    def __call__(self, prompts, seeds):
        time.sleep(0.005)
        return super().__call__(prompts, seeds)


def fill(folder, draw, batch_size=4):
    pool = CandidatePool(folder, REWARDS)
    generate_candidates(pool, GROUPS, draw, SCORERS, batch_size, list(REWARDS), TARGET, show_progress=False)
    return pool


def worker() -> None:
    fill(sys.argv[1], Slow())


def kept(folder) -> list[tuple]:
    """The training set that the filter makes of a pool with the target, with its advantages, bit for bit."""
    pool = CandidatePool(folder, REWARDS)
    groups = up_to_target(pool, GROUPS, REWARDS, TARGET)
    assert not any(needed(pool, group, REWARDS) for group in groups)
    rows = filter_candidates(groups, pool, FilterConfig())
    assert len({row["group_id"] for row in rows if row["keep"]}) == TARGET
    return [(row["group_id"], row["variant"], row["advantage"]) for row in rows if row["keep"]]


def test_the_same_however_it_was_drawn(tmp_path):
    everything = CandidatePool(tmp_path / "all", REWARDS)
    generate_candidates(everything, GROUPS, Draw(), SCORERS, 16, show_progress=False)
    passing = [row["group_id"] for row in filter_candidates(GROUPS, everything, FilterConfig()) if row["keep"]]
    expected = kept(tmp_path / "all")
    # The shortest beginning of the list that holds so many, and nothing from behind it.
    assert expected[-1][0] == list(dict.fromkeys(passing))[TARGET - 1] and len(set(passing)) > TARGET

    for batch_size in (1, 5, 16):
        fill(tmp_path / f"batch-{batch_size}", Draw(), batch_size)
        assert kept(tmp_path / f"batch-{batch_size}") == expected
    for batches in (1, 3, 2, 7, 1000):
        try:
            fill(tmp_path / "killed", Killed(batches))
        except KeyboardInterrupt:
            continue
        assert kept(tmp_path / "killed") == expected
    assert batches == 1000 and len(CandidatePool(tmp_path / "killed", REWARDS)) < len(everything)
    workers = [Program(worker, tmp_path / "two") for _ in range(2)]
    for program in workers:
        program.finish()
    assert kept(tmp_path / "two") == expected


@pytest.fixture
def recipe(tmp_path, tiny):
    """A finished pool of all groups, and its recipe."""
    stage = Stage("generate", tmp_path / "run" / "pool", {"rewards": dict.fromkeys(REWARDS, "h")})
    stage.begin()
    generate_candidates(CandidatePool(stage.folder, REWARDS), GROUPS, Draw(), SCORERS, 16, show_progress=False)
    stage.finish()
    (tmp_path / "run" / "prompts").mkdir()
    save_groups(GROUPS, tmp_path / "run" / "prompts" / "groups.jsonl")
    recipe = {"prompts": "none.txt", "templates": ["{prompt}"], "model_name_or_path": "none", "num_variants": 2}
    recipe |= {"rewards": list(REWARDS), "output_dir": "run"}
    (tmp_path / "candidates.yaml").write_text(yaml.safe_dump(recipe))
    return ["--config", "candidates.yaml"]


def test_filter_and_sheet(recipe, capsys, tmp_path):
    """Both look at the same groups, and the scale of the rewards is that of their originals."""
    pool = CandidatePool(tmp_path / "run" / "pool", REWARDS)
    groups = up_to_target(pool, GROUPS, REWARDS, TARGET)
    assert main(["filter", *recipe, "--target_groups", str(TARGET)]) == 0
    assert f"from {TARGET} of {len(groups)} groups" in capsys.readouterr().out
    train = load_from_disk("run/dataset")["train"]
    scores = {name: values[:, :1] for name, values in pool.matrices(groups)[0].items()}
    row = train[0]
    values = np.array([pool.quality(key) for key in groups[row["group_id"]].keys], dtype=np.float64)
    total = sum((values[:, i] - s.mean()) / s.astype(np.float64).std() for i, s in enumerate(scores.values()))
    expected = (total[row["variant"]] - total.mean()) / (total.std() + 1e-4)
    assert row["advantage"] == pytest.approx(expected, abs=1e-6)

    assert main(["sheet", *recipe, "--target_groups", str(TARGET)]) == 0
    assert f"of {len(groups)} groups" in capsys.readouterr().out


def test_fewer_than_wanted(recipe, capsys):
    assert main(["filter", *recipe, "--target_groups", str(len(GROUPS))]) == 0
    out = capsys.readouterr().out
    assert f"of 120 groups (target_groups asks for {len(GROUPS)})" in out
    assert main(["filter", *recipe, "--target_groups", "121"]) == 2
    said = "target_groups is 121, but there are 120 groups: lower it, or expand more prompts.\n"
    assert capsys.readouterr().err == f"craft: error: {said}"
