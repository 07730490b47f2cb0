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

"""A run that the version before the rooms made goes on working: see data/run_before_rooms."""

import json
import shutil

import numpy as np
import pytest

from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main

from .conftest import ROOT


OLD = ROOT / "tests" / "data" / "run_before_rooms"
STAGES = ("expand", "generate", "filter", "train", "evaluate")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the stages on a copy of the old run in `run/`, and returns what was printed."""
    shutil.copytree(OLD / "run", tmp_path / "run")

    def run() -> str:
        assert main(["run", str(OLD), "--output_dir", "run"]) == 0
        return capsys.readouterr().out

    return run


def content(folder):
    """Bytes of every file that is data: not the locks, and not the times."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != "timings.json"
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_nothing_is_done_again(run, tmp_path):
    before = content(OLD / "run")
    said = run()
    assert [f"[{stage}] done before" in said for stage in STAGES] == [True] * 5, said
    assert content(tmp_path / "run") == before
    assert "Verdict: craft is worse than the base model" in said


def test_filtering_again_makes_the_same_dataset(run, tmp_path):
    shutil.rmtree(tmp_path / "run" / "dataset")
    said = run()
    assert "[filter] 14 of 36 images kept, from 7 of 12 groups" in said
    # The training reads the same rows, so that it is not done again.
    assert [f"[{stage}] done before" in said for stage in STAGES] == [True, True, False, True, True], said
    old, new = content(OLD / "run" / "dataset"), content(tmp_path / "run" / "dataset")
    assert old == new


def scores(folder):
    """Scores by key of a pool."""
    pool = CandidatePool(folder, ["hpsv2", "pickscore", "aesthetic"])
    return {key: pool.scores[key] for key in sorted(pool.scores)}


@pytest.fixture
def unfinished(tmp_path, run):
    """The pool, which is to be gone on with, and its last shard."""
    pool = tmp_path / "run" / "pool"
    record = json.loads((pool / "stage.json").read_text())
    (pool / "stage.json").write_text(json.dumps(record | {"finished": False, "summary": {}}))
    (shard,) = pool.glob("shard-00000032-*")
    return pool, shard


def test_an_unfinished_pool_goes_on(run, unfinished, tmp_path):
    pool, shard = unfinished
    shard.unlink()
    said = run()
    assert "[generate] 4 images made and scored, 36 in run/pool" in said, said
    old, new = scores(OLD / "run" / "pool"), scores(pool)
    assert old.keys() == new.keys()
    # Another processor rounds otherwise; the others are as they were.
    differences = [np.abs(old[key] - new[key]).max() for key in old]
    assert max(differences) < 1e-3 and sum(map(bool, differences)) <= 4


def test_a_damaged_shard_is_set_aside_and_made_again(run, unfinished):
    pool, shard = unfinished
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    said = run()
    assert f"run/pool/{shard.stem}.damaged is damaged and set aside; its images are made again." in said, said
    assert "[generate] 4 images made and scored, 36 in run/pool" in said
    assert (pool / f"{shard.stem}.damaged").read_bytes() == content


def test_a_training_goes_on_from_its_checkpoint(run, tmp_path):
    model = tmp_path / "run" / "model"
    weights = (model / "pytorch_lora_weights.safetensors").read_bytes()
    record = json.loads((model / "stage.json").read_text())
    (model / "stage.json").write_text(json.dumps(record | {"finished": False, "summary": {}}))
    (model / "pytorch_lora_weights.safetensors").unlink()
    said = run()
    assert "[train] goes on from run/model/checkpoint-2" in said and "[evaluate] done before" in said, said
    assert (model / "pytorch_lora_weights.safetensors").read_bytes() == weights
