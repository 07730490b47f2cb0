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
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from craft_trl.cli.main import main
from craft_trl.scripts import score as script


ROOT = Path(__file__).parents[2]


REWARD = """
import time
from pathlib import Path

import numpy as np

def red(images, prompts):
    time.sleep({seconds})
    return np.array([image.getpixel((0, 0))[0] + len(prompt) / 100 for image, prompt in zip(images, prompts)])

def green(images, prompts):
    return np.array([image.getpixel((0, 0))[1] for image in images])

green.higher_is_better = False
"""


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (8, 8), (5 * number, 200 - number, 0)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"picture {number}")
    return folder


@pytest.fixture
def reward(tmp_path):
    def write(seconds=0.0):
        (tmp_path / "reward.py").write_text(REWARD.format(seconds=seconds))
        return f"{tmp_path / 'reward.py'}"

    return write


def arguments(pictures, file, folder):
    rewards = ["--rewards", f"red={file}:red", f"green={file}:green"]
    return ["score", str(pictures), *rewards, "--output_dir", str(folder)]


def test_scores_and_page(tmp_path, pictures, reward, capsys):
    folder = tmp_path / "scores"
    assert main(arguments(pictures, reward(), folder)) == 0
    table = pq.read_table(folder / "scores.parquet").to_pydict()
    assert table["file"] == [str(pictures / f"{number:02d}.png") for number in range(40)]
    assert table["prompt"][7] == "picture 7"
    np.testing.assert_allclose(table["red"], [5 * i + (0.09 if i < 10 else 0.1) for i in range(40)], rtol=1e-6)
    page = (folder / "scores.html").read_text()
    green = page[page.index('id="green"') :]
    assert "(less is better)" in page and page.count('loading="lazy"') == 80
    # The best has the least green, which is the last picture; the worst is the first.
    assert green.index("picture 39") < green.index("picture 38") < green.index("Worst") < green.index("picture 0<")
    assert sorted(path.name for path in folder.iterdir()) == ["scores.html", "scores.parquet", "stage.json"]
    assert "40 images, mean red" in capsys.readouterr().out
    assert main(arguments(pictures, reward(), folder)) == 0
    assert "done before" in capsys.readouterr().out
    # Another picture is other work; what was there is set aside.
    Image.new("RGB", (8, 8), "white").save(pictures / "00.png")
    assert main(arguments(pictures, reward(), folder)) == 0
    assert "set aside" in capsys.readouterr().out and (tmp_path / "set_aside").is_dir()


def test_killed_and_resumed(tmp_path, pictures, reward, monkeypatch):
    """Parts that are scored are not scored again, and the files are those of an undisturbed run to the byte."""
    monkeypatch.setattr(script, "PART", 8)
    code = (
        "import sys; from craft_trl.scripts import score; score.PART = 8; from craft_trl.cli.main import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments(pictures, reward(0.7), tmp_path / "killed")]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    parts = tmp_path / "killed" / "parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("[!.]*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    there = {path.name: path.stat().st_mtime_ns for path in parts.glob("[!.]*.parquet")}
    assert 2 <= len(there) < 5
    seen = []
    write = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda table, path: seen.append(path.name) or write(table, path))
    assert main(arguments(pictures, tmp_path / "reward.py", tmp_path / "killed")) == 0
    assert not {f".{name}.tmp" for name in there} & set(seen) and len(seen) == 5 - len(there) + 1
    assert main(arguments(pictures, tmp_path / "reward.py", tmp_path / "whole")) == 0
    for name in ("scores.parquet", "scores.html", "stage.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "craft score needs images before its options"),
        (["x", "--output_dir", "o"], "rewards is missing: give it as --rewards"),
        (["x", "--rewards", "hpsv2"], "output_dir is missing: give it as --output_dir"),
        (["x", "--rewards", "hpsv3", "--output_dir", "o"], "There is no reward 'hpsv3'"),
        (["x", "--rewards", "geneval", "--output_dir", "o"], "geneval needs the prompts of GenEval"),
        (["x", "--rewards", "file=./a.py:b", "--output_dir", "o"], "there is no file ./a.py"),
        (["x.png", "--rewards", "pickscore", "--output_dir", "o"], "x.png: there is no such file or folder"),
    ],
)
def test_mistakes(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["score", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("craft: error: ") and err.count("\n") == 1 and message in err, err
    assert list(tmp_path.iterdir()) == []


def test_scores_are_those_of_the_pool(tmp_path, capsys):
    """A tiny reward in batches gives what it gives alone, to float32."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    reward = f"aesthetic={ROOT / 'recipes/tiny/rewards/aesthetic'}"
    assert (
        main(["score", str(folder), "--prompt", "noise", "--rewards", reward, "--output_dir", str(tmp_path / "s")])
        == 0
    )
    scores = pq.read_table(tmp_path / "s" / "scores.parquet")["aesthetic"].to_pylist()
    from craft_trl.rewards import RewardSpec

    alone = RewardSpec.parse(reward).load()
    expected = [alone([Image.open(folder / f"{number}.png")], ["noise"]).item() for number in range(3)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert json.loads((tmp_path / "s" / "stage.json").read_text())["summary"]["images"] == 3
