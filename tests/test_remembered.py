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


"""What is read once is remembered: by path, size and times of change, for all commands and processes."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from craft_trl import sources
from craft_trl.candidates.drawing import generate_candidates
from craft_trl.candidates.pool import CandidatePool
from craft_trl.errors import UsageError
from craft_trl.rewards import loading
from craft_trl.rewards.weights import Weights
from craft_trl.sources import content_hash, model_hash, sha256

from .helpers import REWARDS, SCORERS, Draw, groups_of


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """A memory of this test's own, in which small files are worth it as well, and nothing is too new."""
    monkeypatch.setattr(sources, "MEMORY", tmp_path / "home" / "hashes")
    monkeypatch.setattr(sources, "WORTH_REMEMBERING", 1)
    monkeypatch.setattr(sources, "SETTLED", 0.0)
    monkeypatch.setattr(sources, "_recalled", {})
    return tmp_path / "home" / "hashes"


def forget(monkeypatch):
    """As in another process: what is on the disk is still there."""
    monkeypatch.setattr(sources, "_recalled", {})


@pytest.fixture
def read(monkeypatch):
    """Bytes that were hashed."""
    hashed = []

    class Spy:
        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        def sha256(self, data=b""):
            digest, real = self.real.sha256(data), self.real

            class Digest:
                def update(self, block):
                    hashed.append(len(block))
                    digest.update(block)

                def hexdigest(self):
                    return digest.hexdigest()

            return Digest() if not data else real.sha256(data)

    monkeypatch.setattr(sources, "hashlib", Spy(sources.hashlib))
    return hashed


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(b"w" * 5000)
    return folder


def test_a_model_is_read_once(model, read, monkeypatch):
    before = sources.WORTH_REMEMBERING
    monkeypatch.setattr(sources, "WORTH_REMEMBERING", 1 << 30)
    plain = model_hash(str(model))  # what it was before anything was remembered
    monkeypatch.setattr(sources, "WORTH_REMEMBERING", before)
    read.clear()
    assert model_hash(str(model)) == plain and sum(read) > 5000
    read.clear()
    assert model_hash(str(model)) == plain == content_hash(model) and sum(read) == 0
    forget(monkeypatch)
    read.clear()
    assert model_hash(str(model)) == plain and sum(read) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"v" * 5000),  # as long as before
        lambda path: path.write_bytes(b"w" * 5001),
        lambda path: (path.write_bytes(b"v" * 5000), os.utime(path, ns=(OLD, OLD))),  # with the old date as well
        lambda path: (path.with_name("new").write_bytes(b"v" * 5000), os.replace(path.with_name("new"), path)),
    ],
    ids=["content", "size", "content, and the date put back", "replaced"],
)
def test_a_changed_file_is_read_again(model, change):
    path = model / "unet" / "weights.safetensors"
    os.utime(path, ns=(OLD, OLD))
    before = model_hash(str(model)), sha256(path)
    change(path)
    after = model_hash(str(model)), sha256(path)
    assert all(a != b for a, b in zip(after, before, strict=True))


OLD = 1_700_000_000_000_000_000


def test_other_names_are_another_hash(model, read):
    before = content_hash(model)
    (model / "unet" / "weights.safetensors").rename(model / "unet" / "renamed.safetensors")
    assert content_hash(model) != before
    (model / "unet" / "more.txt").write_text("")
    assert content_hash(model) != before


def test_what_was_just_written_is_not_trusted(model, read, monkeypatch):
    """A second change in the same tick of the file system's clock could not be told from the first."""
    monkeypatch.setattr(sources, "SETTLED", 60.0)
    path = model / "unet" / "weights.safetensors"
    sha256(path)
    read.clear()
    sha256(path)
    assert sum(read) == 5000


def test_a_file_that_changes_while_it_is_read(model, monkeypatch):
    path = model / "unet" / "weights.safetensors"

    def work():
        path.write_bytes(b"v" * 4000)
        return "0" * 64

    assert sources.remembered("file", [path], work) == "0" * 64
    assert sha256(path) != "0" * 64


def test_a_memory_that_cannot_be_written_or_read(model, memory, read, monkeypatch):
    path = model / "unet" / "weights.safetensors"
    expected = sha256(path)
    (entry,) = (file for file in memory.iterdir() if file.suffix != ".lock")
    entry.write_text("half")  # the machine went down
    forget(monkeypatch)
    assert sha256(path) == expected and entry.read_text() == expected
    monkeypatch.setattr(sources, "MEMORY", path / "a file is in the way")
    forget(monkeypatch)
    read.clear()
    assert sha256(path) == sha256(path) == expected and sum(read) == 5000  # within a process it is remembered still


def test_processes_that_ask_at_once(model, memory, tmp_path):
    """The others wait for the first, which is this one here."""
    path = model / "unet" / "weights.safetensors"
    script = """
        import hashlib, pathlib, sys
        from craft_trl import sources
        sources.MEMORY, sources.WORTH_REMEMBERING, sources.SETTLED = pathlib.Path(sys.argv[1]), 1, 0
        path = pathlib.Path(sys.argv[2])
        print("asks", flush=True)
        print(sources.remembered("file", [path], lambda: sys.exit("read it again")))
    """
    name = sources._name("file", [sources.stamp(path)])
    with sources._alone(name):
        command = [sys.executable, "-c", textwrap.dedent(script), str(memory), str(path)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for process in processes:
            assert process.stdout.readline() == "asks\n"
        time.sleep(0.3)
        assert all(process.poll() is None for process in processes)
        sources.remember("file", [sources.stamp(path)], "a" * 64)
    assert [process.communicate()[0] for process in processes] == ["a" * 64 + "\n"] * 2


def test_weights_of_a_reward(tmp_path, read, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"w" * 5000)
    published = Weights("org/reward", ("weights.pt",), "c" * 40, sha256(path))
    monkeypatch.setattr(loading, "hf_hub_download", lambda repo_id, file, revision: str(path))
    read.clear()
    assert loading.find(None, published) == tmp_path and sum(read) == 0
    path.write_bytes(b"w" * 4999 + b"v")
    with pytest.raises(UsageError, match="The download is damaged"):
        loading.find(None, published)


class TestPool:
    @pytest.fixture
    def shards(self, tmp_path):
        pool = CandidatePool(tmp_path / "pool", REWARDS)
        generate_candidates(pool, groups_of(4, 2), Draw(), SCORERS, batch_size=4)
        return sorted((tmp_path / "pool").glob("*.parquet"))

    def test_is_read_whole_once(self, shards, tmp_path, read, monkeypatch):
        total = sum(shard.stat().st_size for shard in shards)
        first = CandidatePool(tmp_path / "pool", REWARDS)
        assert sum(read) == total
        forget(monkeypatch)
        read.clear()
        second = CandidatePool(tmp_path / "pool", REWARDS)
        assert sum(read) == 0 and second.scores.keys() == first.scores.keys()
        # Its scores were compared with their hash all the same, and its images are when they are read.
        assert not second._whole and len(list(second.images(second.by_shard(second.scores)))) == 12
        assert second._whole == set(shards)

    def test_of_what_was_written_nothing_is_read(self, tmp_path, read):
        pool = CandidatePool(tmp_path / "pool", REWARDS)
        generate_candidates(pool, groups_of(4, 2), Draw(), SCORERS, batch_size=4)
        pool.remember()
        read.clear()
        assert len(CandidatePool(tmp_path / "pool", REWARDS)) == 12 and sum(read) == 0

    def test_damage(self, shards, tmp_path):
        CandidatePool(tmp_path / "pool", REWARDS)
        data = bytearray(shards[1].read_bytes())
        data[data.index(b"\x89PNG") + 30] ^= 1
        shards[1].write_bytes(data)
        pool = CandidatePool(tmp_path / "pool", REWARDS)
        assert pool.damaged == [shards[1].with_suffix(".damaged")] and len(pool) == 8

    def test_damage_without_a_trace(self, shards, tmp_path, monkeypatch):
        """What no time of change shows is found at the latest when an image of it is read: never is one taken."""
        monkeypatch.setattr(sources, "stamp", lambda path: (str(path), 0, path.stat().st_size, OLD, OLD))
        CandidatePool(tmp_path / "pool", REWARDS)
        data = bytearray(shards[1].read_bytes())
        data[data.index(b"\x89PNG") + 30] ^= 1
        shards[1].write_bytes(data)
        pool = CandidatePool(tmp_path / "pool", REWARDS)
        assert len(pool) == 12
        with pytest.raises(UsageError, match="was damaged and is set aside as .*: run the command that filled"):
            list(pool.images(pool.scores))
        assert len(CandidatePool(tmp_path / "pool", REWARDS)) == 8


def test_small_files_leave_nothing(model, memory, monkeypatch):
    monkeypatch.setattr(sources, "WORTH_REMEMBERING", 1 << 24)
    model_hash(str(model))
    assert not memory.exists()
