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


"""The arithmetic of `benchmarks/variety.py`, on images whose distances are known."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from ..conftest import ROOT


@pytest.fixture(scope="module")
def variety():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        spec = importlib.util.spec_from_file_location("variety", ROOT / "benchmarks" / "variety.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def images():
    """One prompt with four images: three are alike, the fourth, the worst, is orthogonal to them and black."""
    values = np.array([[3.0, 2.0, 1.0, -6.0]])
    features = np.array([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    pixels = np.array([[[0.5] * 12, [0.5] * 12, [0.5] * 12, [0.0] * 12]])
    return dict.fromkeys(("hpsv2", "pickscore", "aesthetic"), values), features, pixels


def test_best_of(variety, images):
    # One of one: any two of the four, half of them with the fourth.
    chance = variety.best_of(1, *images)
    assert chance["diversity_hpsv2"] == pytest.approx(0.5, abs=0.2) and abs(chance["hpsv2"]) < 1.5
    assert chance["diversity_pixels"] == pytest.approx(chance["diversity_hpsv2"] / 2)
    # The better of two and of the other two: 3, and 2 in two of three ways to split, else 1; never the worst.
    best = variety.best_of(2, *images)
    assert best["diversity_hpsv2"] == best["diversity_pixels"] == 0
    assert best["hpsv2"] == best["pickscore"] == pytest.approx((2.5 + 2.5 + 2) / 3, abs=0.1)


def test_only(variety, images):
    scores, features, pixels = (
        {name: np.concatenate([values, values]) for name, values in images[0].items()},
        *(np.concatenate([array, array]) for array in images[1:]),
    )
    kept = np.array([[True, True, False, False], [False, False, False, True]])  # of the second prompt, one: no pair
    figures = variety.only(kept, scores, features, pixels)
    assert figures["prompts"] == 1 and figures["share"] == 3 / 8 and figures["hpsv2"] == 2.5
    assert figures["diversity_hpsv2"] == figures["diversity_pixels"] == 0
    # Of the six pairs three have the fourth image.
    assert figures["all_diversity_hpsv2"] == pytest.approx(0.5) and figures["all_diversity_pixels"] == pytest.approx(
        0.25
    )


def test_of_kept(variety):
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(2)]
    plain = [Image.new("RGB", (64, 64), color) for color in ("black", "white")]
    alike = [{"image": noise[0], "hpsv2": value} for value in (0.1, 0.2, 0.3)]
    figures = variety.of_kept([alike])
    assert figures["hpsv2"] == pytest.approx(0.2)
    assert figures["diversity_hpsv2"] == pytest.approx(0, abs=1e-6) and figures["diversity_pixels"] == 0
    # A mean over groups, however many images they have: black against white is 1, three alike are 0.
    apart = [{"image": image, "hpsv2": 0.8} for image in plain]
    figures = variety.of_kept([alike, apart])
    assert figures["hpsv2"] == pytest.approx(0.5) and figures["diversity_pixels"] == pytest.approx(0.5)
    assert figures["diversity_hpsv2"] > 1e-3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--run", "nowhere"], "--run nowhere has no folder dataset"),
        (["--run", "nowhere", "--images", "4"], "remove --prompts and --images"),
        (["--run", "nowhere", "--prompts", "mine.jsonl"], "remove --prompts and --images"),
        (["--images", "1"], "--images must be at least 2, got 1"),
    ],
)
def test_wrong_arguments(variety, tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["variety.py", *arguments, "--output-dir", "out"])
    with pytest.raises(SystemExit) as stopped:
        variety.main()
    assert stopped.value.code == 2 and complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
