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


"""Originals of another pool: copied to the byte, and only where they can be compared with."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from craft_trl.candidates.originals import adopt_originals, check_originals, with_originals
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.stages import Stage

from ..helpers import groups_of


GROUPS = groups_of(4, 1)
REWARDS = {"hpsv2": "h", "defects": "d"}
SAMPLING = {"height": 8, "width": 8}


@pytest.fixture
def run(tmp_path):
    """A run whose pool has the originals of all groups but the third, two shards, and one in another precision."""
    stage = Stage("generate", tmp_path / "run" / "pool", {"rewards": REWARDS, "sampling": SAMPLING, "model": "m"})
    stage.begin()
    pool = CandidatePool(stage.folder, [*REWARDS])
    pool.lower_is_better = {"defects"}
    for number, chosen in enumerate(([0, 1], [3])):
        keys = [key for i in chosen for key in GROUPS[i].keys]
        images = [Image.new("RGB", (8, 8), (40 * number, 20 * j, 7)) for j in range(len(keys))]
        images[0].info["dtype"] = "float32"
        pool.append(keys, images, {name: np.arange(len(keys)) + 10 * number + len(name) for name in REWARDS})
    stage.finish(images=len(pool))
    return tmp_path / "run"


def test_copied_to_the_byte_and_once(run, tmp_path):
    source, pool = CandidatePool(run / "pool", [*REWARDS]), CandidatePool(tmp_path / "other", ["defects", "hpsv2"])
    assert adopt_originals(str(run), GROUPS[:2], pool) == 2
    assert adopt_originals(str(run), GROUPS, pool) == 1 and adopt_originals(str(run), GROUPS, pool) == 0
    originals = [GROUPS[i].keys[0] for i in (0, 1, 3)]
    for opened in (pool, CandidatePool(tmp_path / "other", ["defects", "hpsv2"])):
        assert sorted(opened.scores) == sorted(originals) and not opened.damaged
        assert opened.lower_is_better == {"defects"}
        assert list(opened.images(originals)) == list(source.images(originals))
        assert all((opened.scores[key] == source.scores[key][::-1]).all() for key in originals)
    shards = [pq.read_table(path) for path in (tmp_path / "other").glob("shard-*.parquet")]
    precisions = {row["prompt"]: row["dtype"] for shard in shards for row in shard.to_pylist()}
    assert precisions == {"prompt 0": "float32", "prompt 1": None, "prompt 3": "float32"}
    # Groups behind the first one without an original are not looked at: a target ended the other run there.
    assert with_originals(GROUPS, pool) == GROUPS[:2]
    with pytest.raises(
        UsageError, match="its pool has no image for 'prompt 2', seed 7: it must be of a run of the same"
    ):
        with_originals(GROUPS[2:], pool)


def test_a_damaged_shard(run, tmp_path):
    shard = sorted((run / "pool").glob("shard-*.parquet"))[0]
    data = bytearray(shard.read_bytes())
    data[data.index(b"\x89PNG") + 30] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        UsageError, match=r"was damaged and is set aside as .*: run the command that filled .*run/pool"
    ):
        adopt_originals(str(run), GROUPS, CandidatePool(tmp_path / "other", [*REWARDS]))


@pytest.mark.parametrize(
    ("rewards", "sampling", "message"),
    [
        ({"hpsv2": "h"}, SAMPLING, r"was scored by other rewards \(defects, hpsv2, or other weights of these\)"),
        ({"hpsv2": "h", "defects": "x"}, SAMPLING, "was scored by other rewards"),
        (REWARDS, {"height": 16, "width": 8}, "height of the images in .*run is 8, and here 16"),
    ],
)
def test_what_cannot_be_compared(run, rewards, sampling, message):
    check_originals(str(run), REWARDS, SAMPLING)
    with pytest.raises(UsageError, match=message):
        check_originals(str(run), rewards, sampling)


def test_mistakes_in_a_recipe(recipes, capsys):
    config = ["generate", "--config", str(recipes("candidates"))]
    assert main([*config, "--originals_from", "nowhere"]) == 2
    assert (
        "originals_from: there is no pool in nowhere/pool: run `craft generate` there first."
        in capsys.readouterr().err
    )
    assert main([*config, "--originals_from", "runs/tiny"]) == 2
    assert "originals_from runs/tiny is output_dir itself: leave it out." in capsys.readouterr().err
    assert main(["evaluate", "--config", str(recipes("evaluate")), "--images_dir", "nowhere"]) == 2
    assert "images_dir: there is no folder nowhere." in capsys.readouterr().err
