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

"""`craft filter` on a stored pool: what it reads, and what it does with a pool that is damaged."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import load_from_disk
from PIL import Image

from craft_trl.candidates.groups import make_groups, save_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.stages import Stage, read_record


GROUPS = make_groups([f"prompt {i}" for i in range(8)], [[f"prompt {i}, sharp"] for i in range(8)])
KEPT = GROUPS[5]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with a shard for each group, of which one passes, and a recipe that filters it."""
    folder = tmp_path_factory.mktemp("filter")
    stage = Stage("generate", folder / "run" / "pool", {"rewards": {"hpsv2": "h"}})
    stage.begin()
    pool, rng = CandidatePool(stage.folder, ["hpsv2"]), np.random.default_rng(0)
    for group in GROUPS:
        images = [Image.fromarray(rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)) for _ in group.keys]
        pool.append(group.keys, images, {"hpsv2": np.array([0.5, 0.6 if group == KEPT else 0.4])})
    stage.finish(images=len(pool))
    (folder / "run" / "prompts").mkdir()
    save_groups(GROUPS, folder / "run" / "prompts" / "groups.jsonl")
    recipe = {"prompts": "none.txt", "templates": ["{prompt}"], "model_name_or_path": "none", "num_variants": 1}
    recipe |= {"rewards": ["hpsv2"], "output_dir": "run"}
    (folder / "candidates.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def pool(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path, dirs_exist_ok=True)
    return CandidatePool(tmp_path / "run" / "pool", ["hpsv2"])


def craft_filter(capsys, *arguments):
    code = main(["filter", "--config", "candidates.yaml", *arguments])
    return code, *capsys.readouterr()


def bytes_read() -> int:
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def short(shard: Path) -> Path:
    """As the recipe names it."""
    return Path("run", "pool", shard.name)


def flip(shard: Path, *, image: bool) -> None:
    """Flip a byte of an image, or of a prompt."""
    data = bytearray(shard.read_bytes())
    data[data.index(b"\x89PNG") + 1000 if image else data.index(b"prompt ") + 1] ^= 1
    shard.write_bytes(data)


def test_only_shards_of_kept_images_are_read_whole(pool, capsys, tmp_path):
    craft_filter(capsys, "--filter_level", "image")  # what is imported late is read now
    sizes = {shard: shard.stat().st_size for shard in pool.folder.glob("*.parquet")}
    before = bytes_read()
    code, out, err = craft_filter(capsys)
    read = bytes_read() - before
    assert code == 0 and "1 of 16 images kept, from 1 of 8 groups" in out, err
    whole = sizes[pool.shard_of[KEPT.keys[1]]]
    # Of the others the end, where parquet says what lies where: 64 kB and the columns without the images.
    assert whole < read < whole + 8 * 100_000 < sum(sizes.values()) / 4
    (row,) = load_from_disk(str(tmp_path / "run" / "dataset"))["train"].with_format("arrow")["image"].to_pylist()
    assert row["bytes"] == next(pool.images([KEPT.keys[1]]))


def test_damage_where_no_image_is_read(pool, capsys):
    """The images that are damaged are not in the training set, and `craft generate` finds them."""
    flip(pool.shard_of[GROUPS[0].keys[0]], image=True)
    code, out, err = craft_filter(capsys)
    assert code == 0 and "1 of 16 images kept" in out and "damaged" not in out, err
    assert len(CandidatePool(pool.folder, ["hpsv2"]).damaged) == 1


def test_damaged_scores(pool, capsys):
    shard = pool.shard_of[GROUPS[0].keys[0]]
    flip(shard, image=False)
    code, out, err = craft_filter(capsys)
    assert f"{short(shard).with_suffix('.damaged')} is damaged and set aside: `craft generate` makes its" in out
    assert code == 2 and "has no image for 'prompt 0': run `craft generate` first" in err


def test_damaged_image_of_the_kept(pool, capsys, tmp_path):
    shard = pool.shard_of[KEPT.keys[1]]
    flip(shard, image=True)
    code, out, err = craft_filter(capsys)
    assert (
        code == 2
        and err.count("\n") == 1
        and f"{short(shard)} was damaged and is set aside as {shard.stem}.damaged: run the" in err
    )
    assert not (tmp_path / "run" / "dataset" / "dataset_dict.json").exists()
    assert shard.with_suffix(".damaged").exists() and not shard.exists()
    code, out, err = craft_filter(capsys)
    assert code == 2 and "has no image for 'prompt 5': run `craft generate` first" in err


def test_worse_images_too(pool, capsys, tmp_path):
    """`train_images` says so in its line and in its record, and is another dataset; without it nothing is another one."""
    assert craft_filter(capsys)[0] == 0
    before = read_record(tmp_path / "run" / "dataset")
    assert "train_images" not in before["settings"] and "train" not in before["summary"]
    code, out, err = craft_filter(capsys, "--train_images", "all")
    said = (
        "1 of 16 images kept, from 1 of 8 groups; 16 images to train on, 8 of them below the mean of their group, in "
    )
    assert code == 0 and said.replace(" images to train", " to train") in out and "set aside" in out, err
    record = read_record(tmp_path / "run" / "dataset")
    assert record["settings"] == before["settings"] | {"train_images": "all"}
    train = load_from_disk(str(tmp_path / "run" / "dataset"))["train"]
    assert sum(train["keep"][:]) == 1 and [round(a) for a in train["advantage"][:4]] == [1, -1, 1, -1]
    assert (
        train["advantage"][10:12] == [-train["advantage"][11], train["advantage"][11]] and train["advantage"][11] > 0
    )
    code, out, err = craft_filter(capsys, "--train_images", "some")
    assert code == 2 and "train_images" in err and "kept_groups" in err and err.count("\n") == 1
    arguments = ["export-dataset", "--config", "candidates.yaml", "--export_dir", "x", "--train_images", "all"]
    assert main(arguments) == 2 and "train_images all has worse images among them" in capsys.readouterr().err


def test_killed_while_it_puts_the_dataset_in_its_place(pool, capsys, tmp_path):
    """Of the two splits one is there already, and the record says that it is not finished."""
    assert craft_filter(capsys)[0] == 0
    dataset = tmp_path / "run" / "dataset"
    before = {path.name: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    shutil.rmtree(dataset / "candidates")
    record = json.loads((dataset / "stage.json").read_text())
    (dataset / "stage.json").write_text(json.dumps(record | {"finished": False, "summary": {}}))
    code, out, err = craft_filter(capsys)
    assert code == 0 and "1 of 16 images kept" in out, err
    assert {path.name: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before
