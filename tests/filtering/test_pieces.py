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


"""Training sets that are too large for the memory are written and read piece by piece, and are the same."""

import numpy as np
import pytest
from datasets import load_dataset, load_from_disk
from PIL import Image

from craft_trl.bakeoff.arms import METHODS, Material, make_seed_groups
from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.errors import UsageError
from craft_trl.filtering import dataset as module
from craft_trl.filtering.dataset import (
    build_dataset_dict,
    build_pairs,
    in_pieces,
    save_dataset_dict,
    with_images,
)
from craft_trl.filtering.filter import filter_candidates


NAMES = ["hpsv2", "pickscore", "aesthetic"]
PROMPTS = [f"prompt {i}" for i in range(12)]
GROUPS = make_groups(PROMPTS, [[f"{prompt}, v{j}" for j in (1, 2)] for prompt in PROMPTS])
CONFIG = FilterConfig(filter_level="image")


def fill(folder, size):
    """Noise of several sizes, of which most of the variants pass, in shards of `size` images, as they were drawn: in waves."""
    pool = CandidatePool(folder, NAMES)
    keys = [group.keys[wave] for wave in range(3) for group in GROUPS]
    keys += [key for group in make_seed_groups(GROUPS) for key in group.keys[1:]]
    for start in range(0, len(keys), size):
        part = keys[start : start + size]
        rngs = [np.random.default_rng([ord(c) for c in str(key)]) for key in part]
        sides = [8 * int(rng.integers(1, 6)) for rng in rngs]
        images = [
            Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8))
            for rng, n in zip(rngs, sides, strict=True)
        ]
        pool.append(
            part,
            images,
            {name: [rng.random() + (k[0] != k[1]) * 0.7 for rng, k in zip(rngs, part, strict=True)] for name in NAMES},
        )
    return CandidatePool(folder, NAMES)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("pool"), 5)


@pytest.fixture
def small(monkeypatch):
    """Pieces of about two images."""
    monkeypatch.setattr(module, "PIECE", 8000)


def rows_of(dataset):
    """Rows with the bytes of their images."""
    return dataset.with_format("arrow")[:].to_pylist()


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_piece_is_what_save_to_disk_writes(pool, tmp_path):
    build_dataset_dict(GROUPS, pool, CONFIG).save_to_disk(str(tmp_path / "whole"))
    train = save_dataset_dict(GROUPS, pool, CONFIG, tmp_path / "pieces")
    assert content(tmp_path / "pieces") == content(tmp_path / "whole") and len(content(tmp_path / "whole")) == 7
    assert len(train) == len(load_from_disk(str(tmp_path / "pieces"))["train"])


def test_many_pieces(pool, tmp_path, monkeypatch):
    expected = build_dataset_dict(GROUPS, pool, CONFIG)
    monkeypatch.setattr(module, "PIECE", 8000)
    save_dataset_dict(GROUPS, pool, CONFIG, tmp_path / "dataset")
    dataset = load_from_disk(str(tmp_path / "dataset"))
    assert dataset["train"].features == expected["train"].features
    assert rows_of(dataset["train"]) == rows_of(expected["train"])
    assert rows_of(dataset["candidates"]) == rows_of(expected["candidates"])
    files = sorted(path.name for path in (tmp_path / "dataset" / "train").iterdir())
    assert len(files) > 6 and files[0] == f"data-00000-of-{len(files) - 2:05d}.arrow"
    assert files[-2:] == ["dataset_info.json", "state.json"]
    # No piece is larger than it may be, unless one image alone is.
    for path in (tmp_path / "dataset" / "train").glob("*.arrow"):
        images = rows_of(dataset["train"].from_file(str(path)))
        assert sum(len(row["image"]["bytes"]) for row in images) <= 8000 or len(images) == 1
    again = build_dataset_dict(GROUPS, pool, CONFIG)["train"]
    assert rows_of(again) == rows_of(expected["train"]) and again._fingerprint == dataset["train"]._fingerprint
    # A dataset like any other: transformed, and read again after it was.
    assert again.map(lambda row: {"twice": 2 * row["advantage"]})["twice"][3] == pytest.approx(
        2 * again[3]["advantage"]
    )


def test_pieces_of_few_rows(pool, tmp_path, monkeypatch):
    """Rows without pictures are many before they are many bytes."""
    expected = build_dataset_dict(GROUPS, pool, CONFIG)
    monkeypatch.setattr(module, "ROWS", 5)
    save_dataset_dict(GROUPS, pool, CONFIG, tmp_path / "dataset")
    dataset = load_from_disk(str(tmp_path / "dataset"))
    for name in ("train", "candidates"):
        assert rows_of(dataset[name]) == rows_of(expected[name]), name
    lengths = [len(piece) for piece in in_pieces(filter_candidates(GROUPS, pool, CONFIG), pool, pictured=())]
    assert lengths == [5] * 7 + [1]


def test_files_do_not_depend_on_how_images_lie_in_shards(pool, small, tmp_path):
    save_dataset_dict(GROUPS, pool, CONFIG, tmp_path / "a")
    save_dataset_dict(GROUPS, fill(tmp_path / "pool", 7), CONFIG, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_no_shard_is_read_twice_within_a_piece(pool, monkeypatch):
    read = []
    monkeypatch.setattr(
        CandidatePool,
        "_read_whole",
        lambda self, shard, columns, real=CandidatePool._read_whole: (read.append(shard), real(self, shard, columns))[
            1
        ],
    )
    with_images([row for row in filter_candidates(GROUPS, pool, CONFIG) if row["keep"]], pool)
    assert len(read) == len(set(read)) > 3


def test_pairs(pool, monkeypatch):
    expected = build_pairs(GROUPS, pool)
    monkeypatch.setattr(module, "PIECE", 8000)
    pairs = build_pairs(GROUPS, pool)
    assert pairs.features == expected.features and rows_of(pairs) == rows_of(expected) and len(pairs) > 4


@pytest.mark.parametrize("arm", ["sft", "sft_filtered", "image_filter", "best_of_n", "diffusion_dpo"])
def test_arms_of_a_bakeoff(pool, monkeypatch, tmp_path, arm):
    """What does not fit lies where it was told to, and can go once the training set is saved."""
    seeds = make_seed_groups(GROUPS)
    expected = rows_of(METHODS[arm].build(Material(GROUPS, seeds, pool, CONFIG)))
    monkeypatch.setattr(module, "PIECE", 8000)
    (tmp_path / "scratch").mkdir()
    dataset = METHODS[arm].build(Material(GROUPS, seeds, pool, CONFIG, tmp_path / "scratch"))
    assert any((tmp_path / "scratch").iterdir())
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert rows_of(load_from_disk(str(tmp_path / "saved"))) == expected


def test_some_without_a_picture(pool, monkeypatch, tmp_path):
    """As in the Hub's `candidates`, where most have none."""
    rows = filter_candidates(GROUPS, pool, CONFIG)
    pictured = {(row["prompt"], row["expanded_prompt"], row["seed"]) for row in rows[6:30]}
    expected = rows_of(with_images(rows, pool, pictured))
    assert [row["image"] is not None for row in expected] == [6 <= i < 30 for i in range(36)]
    monkeypatch.setattr(module, "PIECE", 8000)
    dataset = with_images(rows, pool, pictured, tmp_path)
    assert rows_of(dataset) == expected
    dataset.to_parquet(str(tmp_path / "train.parquet"))
    back = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), cache_dir=str(tmp_path), split="train")
    assert rows_of(back) == expected and back[7]["image"].size == back.with_format(None)[7]["image"].size


def test_a_damaged_image_in_a_later_piece(pool, small, tmp_path):
    damaged = fill(tmp_path / "pool", 5)
    shard = damaged.shard_of[GROUPS[-1].keys[1]]
    data = bytearray(shard.read_bytes())
    data[data.index(b"\x89PNG") + 30] ^= 1
    shard.write_bytes(data)
    damaged = CandidatePool(tmp_path / "pool", NAMES, verify=False)
    with pytest.raises(UsageError, match="was damaged and is set aside as .*damaged: run the command"):
        save_dataset_dict(GROUPS, damaged, CONFIG, tmp_path / "dataset")


def test_a_disk_that_is_too_small(pool, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UsageError, match=r"dataset needs about 0.0 GB and its disk has 0.0 GB free"):
        save_dataset_dict(GROUPS, pool, CONFIG, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()
