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

"""Several processes fill one pool: the same rows as one process makes, whoever is killed, and nobody waits for another."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main

from .. import fork_workers
from ..processes import Program, launch


NAMES = ["hpsv2", "pickscore", "aesthetic"]


def test_killed_at_random_moments(tmp_path):
    result = json.loads(Program(fork_workers.main, tmp_path / "pools").finish().splitlines()[-1])
    for name, pool in result["pools"].items():
        expected = {"same_rows": True, "same_scores": True, "same_images": True, "doubles": 0, "damaged": 0}
        assert {key: pool[key] for key in expected} == expected, name
    codes = result["codes"]
    assert codes["one"] == [0] and codes["two"] == [0, 0] and codes["three"] == [0, 0, 0]
    assert codes["taken over"] == [-9, 0] and codes["stopped"] == [0]
    assert codes["beside one that stands still"] == [0] and 0 < result["rows_beside"] < result["rows"]
    assert codes["tasks"] == [0, 0] and not result["tasks_lock"]
    # The kills fell where there was work under way: most of them between the first shard and the last.
    killed = [code for name, pair in codes.items() if name.startswith("moment") for code in pair]
    assert len(result["seen"]) == 20 and killed.count(-9) >= 15 and len(set(result["seen"])) > 5


@pytest.fixture
def recipe(recipes):
    path = recipes("candidates", num_prompts=10, num_inference_steps=1, batch_size=2)
    assert main(["expand", "--config", str(path)]) == 0
    return str(path)


def when(moment, action) -> threading.Thread:
    """Do something, on a thread, as soon as its moment has come."""

    def watch():
        while not moment():
            time.sleep(0.001)
        action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def interruptible():
    """A shell starts what runs in its background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_craft_generate(recipe, tmp_path, capsys, interruptible):
    pool = tmp_path / "runs" / "tiny" / "pool"
    begun = lambda: list(pool.glob("shard-*.parquet"))  # noqa: E731

    # Ctrl-C: what has been drawn is written, and the next run goes on.
    when(begun, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert main(["generate", "--config", recipe]) == 130
    assert capsys.readouterr().err.endswith("craft: stopped. Run the same command again to go on from here.\n")
    made = len(CandidatePool(pool, NAMES))
    assert made and not list(pool.glob(".*")) and not json.loads((pool / "stage.json").read_text())["finished"]
    assert main(["generate", "--config", recipe]) == 0
    assert f"{len(CandidatePool(pool, NAMES)) - made} images made and scored" in capsys.readouterr().out
    pool.rename(tmp_path / "alone")

    # With two processes it ends both, even while they are starting.
    when(multiprocessing.active_children, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert main(["generate", "--config", recipe, "--num_processes", "2"]) == 130
    assert not multiprocessing.active_children()

    # When one of them is killed, the other one does its work too.
    when(begun, lambda: multiprocessing.active_children()[0].kill())
    assert main(["generate", "--config", recipe, "--num_processes", "2"]) == 0
    assert "ended by signal 9" in capsys.readouterr().out
    assert_same(tmp_path / "alone", pool)
    pool.rename(tmp_path / "two")

    # Each process of accelerate is a whole `craft generate`, as are two that are started by hand. `--multi_gpu` takes the
    # launcher for several GPUs; without it, accelerate 1.15 starts one process on a CPU, however many it is told.
    output = launch("--multi_gpu", "generate", "--config", recipe).finish()
    assert f"[generate] {len(CandidatePool(pool, NAMES))} images made and scored" in output or (
        "[generate] process 1 has finished the last group" in output
    )
    assert all(f"rank {rank} of 2 has ended" in output for rank in range(2))
    assert_same(tmp_path / "alone", pool)


def assert_same(folder: Path, other: Path) -> None:
    """Two finished pools have the same rows, scores and images, bit for bit."""
    one, two = CandidatePool(folder, NAMES), CandidatePool(other, NAMES)
    assert one.scores.keys() == two.scores.keys()
    assert all(one.scores[key].tobytes() == two.scores[key].tobytes() for key in one.scores)
    assert list(one.images(one.scores)) == list(two.images(one.scores))
    assert json.loads((other / "stage.json").read_text())["finished"]


def test_processes_of_accelerate(recipe, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["generate", "--config", recipe, "--num_processes", "2"]) == 2
    assert "num_processes is 2, but accelerate has started the processes: leave it out" in capsys.readouterr().err
