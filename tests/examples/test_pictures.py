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


"""The pictures of the documentation can be made again from a run, and come out the same."""

import importlib.util
import io
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from craft_trl.cli.main import main

from ..conftest import ROOT


IMAGES = ROOT / "docs" / "source" / "images"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_svg(text):
    """A well-formed drawing of which nothing lies outside of it: no file, no font, no script."""
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and root.find(f"{SVG}title").text
    _, _, width, height = map(float, root.get("viewBox").split())
    assert width <= 900
    for element in root.iter():
        assert element.tag != f"{SVG}script"
        if (href := element.get("href")) is not None:
            assert href.startswith("data:image/png;base64,")
        if element.tag == f"{SVG}text":
            assert 0 <= float(element.get("x")) <= width and 0 <= float(element.get("y")) <= height
    return root


def test_pictures_of_a_run(pictures, recipes, tmp_path):
    recipes("evaluate", num_prompts=10)
    assert main(["run", str(recipes.folder)]) == 0
    run = pictures.Run(Path("runs/tiny"))
    strip = pictures.before_after(run)
    for i in range(8):
        for j, model in enumerate(("base", "craft")):
            shown = strip.crop((66 + i * 206, 26 + j * 206, 66 + i * 206 + 192, 26 + j * 206 + 192))
            prompt = run.prompts[pictures.evenly_spaced(10, 8)[i]]
            expected = run.evaluated(model, prompt).resize((192, 192), Image.Resampling.NEAREST)
            assert shown.convert("RGB").tobytes() == expected.tobytes()

    drawing = check_svg(pictures.flow(run))
    words = [text.text for text in drawing.iter(f"{SVG}text")]
    for word in (
        "Prompts",
        "Expansion",
        "Candidates",
        "Rewards",
        "Dataset",
        "Trainer",
        "Evaluation",
        "kept",
        "dropped",
    ):
        assert word in words
    curve = check_svg(pictures.loss(run))
    thin, bold = curve.iter(f"{SVG}polyline")
    assert len(thin.get("points").split()) == len(bold.get("points").split()) == 2

    again = pictures.Run(Path("runs/tiny"))
    assert pictures.flow(again) == pictures.flow(run) and pictures.loss(again) == pictures.loss(run)
    assert pictures.before_after(again).tobytes() == strip.tobytes()

    if not any(map(shutil.which, pictures.BROWSERS)):
        pytest.skip("the screenshots need chromium: apt-get install chromium")
    made = pictures.make_pictures(Path("runs/tiny"), tmp_path / "out", recipes.folder)
    # The frontier's is what an evaluation with `--frontier` writes.
    assert {path.name for path in made} == {path.name for path in IMAGES.iterdir()} - {"frontier.svg"}
    for path in made:
        if path.suffix == ".webp":
            with Image.open(path) as image:
                below = image.convert("RGB").crop(
                    (0, image.height * 2 // 5, image.width, image.height * 3 // 5)
                )  # a page's head
                assert image.width > 900 and len(below.getcolors(10_000_000)) > 100, path.name


def test_committed_pictures():
    sizes = {path.name: path.stat().st_size for path in IMAGES.iterdir()}
    limits = {
        "before_after.webp": 300,
        "flow.svg": 300,
        "loss.svg": 100,
        "sheet.webp": 250,
        "report.webp": 250,
        "frontier.svg": 60,
    }
    assert sizes.keys() == limits.keys()
    for name, limit in limits.items():
        assert sizes[name] < limit * 1000, name
        if name.endswith(".svg"):
            check_svg((IMAGES / name).read_text())
        else:
            with Image.open(io.BytesIO((IMAGES / name).read_bytes())) as image:
                image.load()


def test_a_run_that_is_not_whole(pictures, recipes, tmp_path):
    (tmp_path / "run" / "pool").mkdir(parents=True)
    with pytest.raises(SystemExit, match="has no dataset, model, evaluation: craft run"):
        pictures.make_pictures(tmp_path / "run", tmp_path / "out", recipes.folder)
    assert not (tmp_path / "out").exists()


def test_no_browser(pictures, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="apt-get install chromium"):
        pictures.screenshot(tmp_path / "page.html", 100, 100)


def test_evenly_spaced(pictures):
    assert pictures.evenly_spaced(200, 3) == [0, 100, 199]
    assert pictures.evenly_spaced(2, 8) == [0, 1]


def test_ticks(pictures):
    assert pictures.ticks(0, 60) == [0, 20, 40, 60]
    assert pictures.ticks(0.037, 0.121) == [0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14]
    assert pictures.ticks(3, 3) == [3, 4]


def test_wrapping(pictures):
    font = ImageFont.load_default(20)
    lines = pictures._wrap("a shiny 3d render of a bathtub", font, 120)
    assert " ".join(lines) == "a shiny 3d render of a bathtub" and len(lines) > 1
    assert all(font.getlength(line) <= 120 for line in lines)
    assert pictures._wrap("hippopotamuses", font, 10) == ["hippopotamuses"]
