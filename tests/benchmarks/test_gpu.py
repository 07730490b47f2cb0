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

"""`benchmarks/gpu.py` with tiny models on a CPU: every part runs, is kept, and comes into the tables."""

import json
import sys

import pytest

from ..conftest import ROOT
from ..processes import Program


def gpu():
    """The script, as Python finds it with what stands beside it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu

    return gpu


def measure() -> None:
    """A program of its own, as its parts reset what libraries remember of processes."""
    gpu().main()


def cells(page: str) -> list[list[str]]:
    """Of the tables between the marks."""
    module = gpu()
    written = page.partition(module.BEGIN)[2].partition(module.END)[0]
    return [line.strip("| ").split("|") for line in written.splitlines() if line.startswith("|")]


def test_every_part(tmp_path):
    module, page, folder = gpu(), tmp_path / "RESULTS.md", tmp_path / "out"
    page.write_text(f"Before\n{module.BEGIN}\nold\n{module.END}\nAfter\n")
    options = ["--tiny", "--minutes", "30", "--output", folder, "--results", page]
    said = Program(measure, *options, "--only", "train_sd15").finish()
    assert "train_sd15: " in said and "== rewards" not in said
    first = (folder / "train_sd15.json").read_bytes()
    # As a kill leaves a part: it is measured again, and what is finished is not.
    unfinished = json.loads(first) | {"finished": False}
    (folder / "train_sdxl.json").write_text(json.dumps(unfinished))
    said = Program(measure, *options).finish()
    assert "failed" not in said and "out of time" not in said, said
    assert "== train_sdxl," in said and "== train_sd15" not in said
    assert (folder / "train_sd15.json").read_bytes() == first
    for part in module.PARTS:
        assert part.result(folder)["finished"], part.name

    text = page.read_text()
    assert text.startswith("Before\n") and text.endswith(f"{module.END}\nAfter\n") and "old" not in text
    assert "Tiny models, which say nothing of the models named." in text and "kept set the same" in text
    rows = [row for row in cells(text) if not set(row[0]) <= set("-")]
    trained = [row for row in rows if row[0].strip() in module.TRAININGS.values()]
    assert len(trained) == 4 + 2 + 2 + 2 + 2 and all(float(row[2]) > 0 for row in trained)
    assert len([row for row in rows if row[0].startswith("ImageGenerator")]) == 3
    assert not (folder / "sources").exists()  # which are gigabytes at full size

    # The same folder on another machine, and tiny figures on the page of the real ones.
    about = json.loads((folder / "machine.json").read_text())
    with pytest.raises(SystemExit, match="figures of tiny models"):
        module.main(["--tables", "--output", str(folder)])
    (folder / "machine.json").write_text(json.dumps(about | {"device": "another"}))
    with pytest.raises(SystemExit, match="choose another --output"):
        module.main([str(option) for option in options])


def test_in_time(tmp_path):
    said = Program(measure, "--tiny", "--minutes", "0.01", "--output", tmp_path).finish()
    assert "rewards: out of time. Run the same command again." in said
    assert said.count("no time left") == len(gpu().PARTS) - 1 and "== generate" not in said


def test_without_a_gpu(tmp_path):
    with pytest.raises(SystemExit, match="measures a GPU, and there is none"):
        gpu().main(["--output", str(tmp_path)])


def test_the_page():
    """It has the tables that the script writes, whatever is in their cells."""
    module = gpu()
    empty = [line for line in module.format_tables({}, {}).splitlines() if line.startswith("|")]
    heads = [empty[i - 1].strip("| ").split("|") for i, line in enumerate(empty) if line.startswith("|---")]
    page = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    assert len(heads) == 3 and all(head in cells(page) for head in heads)
    for title in (*module.TRAININGS.values(), *module.SCORING):
        assert any(row[0].strip() == title for row in cells(page)), title
