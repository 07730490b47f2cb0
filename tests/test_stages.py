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


import json

import pytest

from craft_trl.errors import UsageError
from craft_trl.sources import content_hash, source_hash
from craft_trl.stages import Stage, check_writable, read_record, read_timings, stopwatch, write_atomically


def make(tmp_path, **settings):
    return Stage("filter", tmp_path / "dataset", settings)


class TestStage:
    def test_finished_work_is_recognised(self, tmp_path):
        stage = make(tmp_path, level="group")
        assert not stage.finished
        assert stage.begin() is None
        assert not stage.finished
        stage.finish(kept=3)
        assert make(tmp_path, level="group").finished
        assert stage.record["summary"] == {"kept": 3}
        assert not make(tmp_path, level="image").finished

    def test_unfinished_work_goes_on(self, tmp_path):
        make(tmp_path, level="group").begin()
        (tmp_path / "dataset" / "half").write_text("x")
        assert make(tmp_path, level="group").begin() is None
        assert (tmp_path / "dataset" / "half").exists()

    def test_a_key_in_old_records_is_not_told(self, tmp_path):
        make(tmp_path, body={"api_key": "hunter2", "n": 1}).begin()
        difference = make(tmp_path, body={"api_key": "***", "n": 2}).difference()
        assert difference == 'body.api_key was "***", is now "***", body.n was 1, is now 2'

    def test_other_settings_are_set_aside_and_taken_back(self, tmp_path):
        first, second = make(tmp_path, level="group", eps=1.0), make(tmp_path, level="image", eps=1.0)
        first.begin()
        (tmp_path / "dataset" / "data").write_text("first")
        first.finish()
        assert first.difference() is None
        assert second.difference() == 'level was "group", is now "image"'

        message = second.begin()
        assert 'level was "group", is now "image"' in message and "set_aside" in message
        assert not (tmp_path / "dataset" / "data").exists()
        second.finish()

        assert "taken back" in first.begin()
        assert first.finished
        assert (tmp_path / "dataset" / "data").read_text() == "first"
        assert len(list((tmp_path / "set_aside").iterdir())) == 1

    def test_a_cache_stays(self, tmp_path):
        first, second = (Stage("evaluate", tmp_path / "out", {"models": n}, cache="images") for n in (1, 2))
        for stage in (first, second, first):
            stage.begin()
            (tmp_path / "out" / "results").write_text("x")
            (tmp_path / "out" / "images").mkdir(exist_ok=True)
            (tmp_path / "out" / "images" / str(stage.settings["models"])).touch()
        assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["1", "2"]
        (aside,) = (tmp_path / "set_aside").iterdir()
        assert [path.name for path in sorted(aside.iterdir())] == ["results", "stage.json"]

    def test_foreign_files_are_never_touched(self, tmp_path):
        (tmp_path / "dataset").mkdir()
        (tmp_path / "dataset" / "thesis.tex").write_text("years of work")
        with pytest.raises(UsageError, match="no stage made it: choose another output_dir"):
            make(tmp_path).begin()
        assert (tmp_path / "dataset" / "thesis.tex").exists()

    def test_another_stage_made_it(self, tmp_path):
        make(tmp_path).begin()
        assert Stage("train", tmp_path / "dataset", {}).difference() == "it was made by the stage 'filter'"

    def test_equal_work_makes_equal_records(self, tmp_path):
        records = []
        for name in "ab":
            stage = make(tmp_path / name, level="group")
            stage.begin()
            with stopwatch(stage):
                pass
            stage.finish(kept=1)
            records.append((tmp_path / name / "dataset" / "stage.json").read_bytes())
        assert records[0] == records[1]

    def test_time_adds_up_over_restarts(self, tmp_path):
        stage = make(tmp_path)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt), stopwatch(stage) as watch:
                raise KeyboardInterrupt
            watch.seconds = 0
        timings = json.loads((tmp_path / "timings.json").read_text())
        assert list(timings) == ["filter"]
        timings["filter"]["seconds"] = 100.0
        (tmp_path / "timings.json").write_text(json.dumps(timings))
        with stopwatch(stage):
            pass
        assert json.loads((tmp_path / "timings.json").read_text())["filter"]["seconds"] >= 100
        with stopwatch(make(tmp_path, level="other")):
            pass
        assert json.loads((tmp_path / "timings.json").read_text())["filter"]["seconds"] < 100


def test_read_record_of_nothing(tmp_path):
    assert read_record(tmp_path) is None


def test_content_hash(tmp_path):
    for name in "ab":
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x").write_text("1")
        (tmp_path / name / "y").write_text("2")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    (tmp_path / "b" / "y").write_text("3")
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "b")
    (tmp_path / "b" / "y").rename(tmp_path / "b" / "z")
    (tmp_path / "b" / "z").write_text("2")
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "b")
    assert source_hash("org/name") == "org/name@main"
    assert source_hash(str(tmp_path / "a")) == content_hash(tmp_path / "a")


def test_write_atomically_leaves_no_trace(tmp_path):
    write_atomically(tmp_path / "f", "one")
    write_atomically(tmp_path / "f", b"two")
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_text() == "two"


class TestCheckWritable:
    def test_folder_that_is_to_be_made(self, tmp_path):
        check_writable(tmp_path / "a" / "b")
        assert not list(tmp_path.iterdir())

    def test_file_in_the_way(self, tmp_path):
        (tmp_path / "a").write_text("")
        with pytest.raises(UsageError, match="is a file"):
            check_writable(tmp_path / "a" / "b")

    def test_no_permission(self):
        # Even the superuser cannot write here.
        with pytest.raises(UsageError, match="Cannot write to /proc/craft"):
            check_writable(__import__("pathlib").Path("/proc/craft"))

    def test_disk_too_small(self, tmp_path):
        with pytest.raises(UsageError, match="needs about 1000000000.0 GB and its disk has .* GB free: free some, or"):
            check_writable(tmp_path, needed_bytes=10**18)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b'{"stage": "x", "fingerprint": 1}', b"\xff", None]
)
def test_a_damaged_record(tmp_path, content):
    """It is not known what a folder was made from, and it is neither taken for finished work nor written over."""
    stage = Stage("x", tmp_path / "a", {"b": 1})
    stage.begin()
    (tmp_path / "a" / "work").touch()
    if content is None:
        (tmp_path / "a" / "stage.json").unlink()
        (tmp_path / "a" / "stage.json").mkdir()
    else:
        (tmp_path / "a" / "stage.json").write_bytes(content)
    for use in (lambda: stage.finished, stage.begin, stage.difference, lambda: read_record(tmp_path / "a")):
        with pytest.raises(UsageError, match=r"stage.json is damaged, the record of what .*a was made from: .* move"):
            use()
    assert (tmp_path / "a" / "work").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"x": {"seconds": "much"}, "y": {"seconds": 2.0}}'])
def test_damaged_timings_are_begun_anew(tmp_path, content):
    (tmp_path / "timings.json").write_bytes(content)
    stage = Stage("x", tmp_path / "a", {"b": 1})
    with stopwatch(stage):
        pass
    assert read_timings(tmp_path)["x"]["seconds"] >= 0
