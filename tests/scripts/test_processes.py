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


"""Work in several processes of this machine: how many at a time, on which of its devices, and what becomes of one that fails."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from craft_trl.errors import UsageError
from craft_trl.scripts.launch import describe_end, run_in_processes, threads_of


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.001)


def work(folder: Path, number: int) -> None:
    """The first one goes on until the last one has ended, so that all others come one after another beside it."""
    place, threads = os.environ["CRAFT_TRL_PLACE"], os.environ["OMP_NUM_THREADS"]
    assert "LOCAL_RANK" not in os.environ
    (folder / f"begun-{number}").write_text(f"{place} {threads}")
    if number == 0:
        wait_for(folder / "ended-4")
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 2:
        raise UsageError("as wrong as can be")
    if number == 3:  # as the data loader of a training does
        process = multiprocessing.get_context("spawn").Process(target=Path(folder / "from within").touch)
        process.start()
        process.join()
    (folder / f"ended-{number}").touch()


def test_some_at_a_time(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    told = []
    failed = run_in_processes(work, [(tmp_path, number) for number in range(5)], 2, lambda *said: told.append(said))
    assert failed == {1: -9, 2: 2}
    assert [describe_end(failed[number]) for number in (1, 2)] == ["by signal 9", "with exit code 2"]
    assert capfd.readouterr().err == "craft: error: as wrong as can be\n"
    begun = {number: (tmp_path / f"begun-{number}").read_text().split() for number in range(5)}
    # The place that one leaves is that of the next one. Each has its share of the cores.
    assert [begun[number][0] for number in range(5)] == ["0", "1", "1", "1", "1"]
    assert {threads for _, threads in begun.values()} == {threads_of(2)}
    assert (tmp_path / "from within").exists()
    one_by_one = [(1, None), (1, -9), (2, None), (2, 2), (3, None), (3, 0), (4, None)]
    assert told[:-2] == [(0, None), *one_by_one]
    assert {*told[-2:]} == {
        (4, 0),
        (0, 0),
    }  # the first one goes when the last one has done its work: either ends first
    assert not multiprocessing.active_children() and "OMP_NUM_THREADS" not in os.environ


def test_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(12), raising=False)
    assert [threads_of(number) for number in (1, 2, 5, 24)] == ["12", "6", "2", "1"]


def stay(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def test_all_end_when_one_cannot_be_told_of(tmp_path):
    """As by Ctrl-C, also those that have yet to begin."""

    def tell(number, code):
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_processes(stay, [(tmp_path,)] * 4, 3, tell)
    assert not multiprocessing.active_children() and len(list(tmp_path.iterdir())) <= 2
