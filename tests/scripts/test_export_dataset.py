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
import tomllib

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from craft_trl.candidates.groups import make_groups, save_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.filtering.collection import ImageCollection
from craft_trl.stages import Stage


SCORES = {"a  {fox}": [0.2, 0.3, 0.4], "é “owl”": [0.2, 0.1, 0.3], "a car": [0.5, 0.6, 0.9]}
GROUPS = make_groups(list(SCORES), [[f"{prompt}, sharp", f"{prompt}, clean"] for prompt in SCORES], seed=7)


@pytest.fixture
def run(tmp_path):
    """A run with a pool whose images are all of other colours, and a recipe that filters it."""
    stage = Stage("generate", tmp_path / "run" / "pool", {"rewards": {"hpsv2": "h"}})
    stage.begin()
    pool = CandidatePool(stage.folder, ["hpsv2"])
    for i, group in enumerate(GROUPS):
        images = [Image.new("RGB", (8, 8), (40 * i, 40 * j, 7)) for j in range(3)]
        pool.append(group.keys, images, {"hpsv2": np.array(SCORES[group.prompt])})
    stage.finish(images=len(pool))
    (tmp_path / "run" / "prompts").mkdir()
    save_groups(GROUPS, tmp_path / "run" / "prompts" / "groups.jsonl")
    recipe = {"prompts": "none.txt", "templates": ["{prompt}"], "model_name_or_path": "org/base", "num_variants": 2}
    recipe |= {"rewards": ["hpsv2"], "output_dir": str(tmp_path / "run")}
    (tmp_path / "candidates.yaml").write_text(yaml.safe_dump(recipe))

    def export(*arguments):
        return main(["export-dataset", "--config", str(tmp_path / "candidates.yaml"), *map(str, arguments)])

    export.folder = tmp_path / "out"
    return export


def test_images(run, capsys):
    folder = run.folder
    assert run("--export_dir", folder, "--repeats", 3) == 0
    assert "[export_dataset] 4 images in" in capsys.readouterr().out
    part = folder / "3_craft"
    names = [f"{number:06d}" for number in (1, 2, 3, 4)]
    assert sorted(path.name for path in part.iterdir()) == sorted(f"{n}{s}" for n in names for s in (".png", ".txt"))
    # As our own reader, and that of datasets, have it. Blanks are one each.
    images = ImageCollection([str(part)])
    assert images.prompts == ["a {fox}", "a {fox}", "a car", "a car"]
    assert [images.images[i].getpixel((0, 0)) for i in range(4)] == [(0, 40, 7), (0, 80, 7), (80, 40, 7), (80, 80, 7)]
    loaded = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder.parent / "cache"))
    assert loaded["text"][:] == images.prompts and loaded[3]["image"].getpixel((0, 0)) == (80, 80, 7)
    assert loaded["hpsv2"][:] == pytest.approx([0.3, 0.4, 0.6, 0.9]) and loaded["advantage"][3] > 1
    # The settings of the trainers.
    (dataset,) = tomllib.loads((folder / "kohya.toml").read_text())["datasets"]
    assert dataset["subsets"] == [{"image_dir": str(part), "caption_extension": ".txt", "num_repeats": 3}]
    (concept,) = json.loads((folder / "concepts.json").read_text())
    assert (concept["path"], concept["balancing"], concept["text"]) == (str(part), 3.0, {"prompt_source": "sample"})
    local, text = json.loads((folder / "multidatabackend.json").read_text())
    assert (local["instance_data_dir"], local["repeats"], text["default"]) == (str(part), 2, True)
    card = (folder / "README.md").read_text()
    assert "Drawn by `org/base` from the prompts of `none.txt`, and chosen by craft_trl out of 9 candidates." in card
    assert "those that beat the image of the original prompt on hpsv2, in a group where every variant does." in card
    # Done is done; another choice sets it aside.
    assert run("--export_dir", folder, "--repeats", 3) == 0
    assert "done before" in capsys.readouterr().out
    assert run("--export_dir", folder, "--captions", "expanded", "--filter_rewards", "hpsv2>0.35") == 0
    assert "set aside" in capsys.readouterr().out
    assert ImageCollection([str(folder / "1_craft")]).prompts == ["a car, sharp", "a car, clean"]


def test_pairs(run):
    folder = run.folder
    assert run("--export_dir", folder, "--what", "pairs") == 0
    rows = pq.read_table(folder / "pairs.parquet").to_pylist()
    assert [row["caption"] for row in rows] == ["a {fox}", "é “owl”", "a car"]
    assert all((row["label_0"], row["label_1"]) == (1.0, 0.0) and row["margin"] > 0 for row in rows)
    win, lose = (ImageCollection([str(folder / side)]) for side in ("win", "lose"))
    assert win.prompts == lose.prompts == [row["caption"] for row in rows]
    assert [win.images[i].getpixel((0, 0))[1] for i in range(3)] == [80, 80, 80]
    assert [lose.images[i].getpixel((0, 0))[1] for i in range(3)] == [0, 40, 0]
    assert (folder / "win" / "000002.png").read_bytes() == rows[1]["jpg_0"]
    better, worse, _ = json.loads((folder / "multidatabackend.json").read_text())
    assert better["conditioning_data"] == [worse["id"]] and worse["source_dataset_id"] == better["id"]
    assert worse["conditioning_type"] == "reference_strict"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "export_dir is missing: give it as --export_dir"),
        (["--export_dir", "o", "--repeats", "0"], "repeats must be at least 1, got 0"),
        (
            ["--export_dir", "o", "--what", "pairs", "--captions", "expanded"],
            "have their original prompt in common only",
        ),
        (["--export_dir", "o", "--filter_rewards", "hpsv2>2"], "No group passed the filter"),
        (["--export_dir", "o", "--output_dir", "none"], "none/prompts/groups.jsonl"),
    ],
)
def test_mistakes(run, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err, err
    assert not (tmp_path / "o").exists()


def test_a_folder_of_the_users_own(run, capsys):
    run.folder.mkdir()
    (run.folder / "mine.png").touch()
    assert run("--export_dir", run.folder) == 2
    assert "is not empty and no stage made it" in capsys.readouterr().err
