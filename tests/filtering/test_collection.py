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
import re

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from craft_trl.errors import UsageError
from craft_trl.filtering.collection import ImageCollection


@pytest.fixture
def folder(tmp_path):
    """Three pictures: one with a caption beside it, two in the metadata of the folder."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.jpg", "sub/c.webp")):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / name)
    (folder / "b.txt").write_text("a  bear\n\n")
    lines = [{"file_name": "a.jpg", "text": "an ape"}, {"file_name": "sub/c.webp", "text": "a cat", "more": 1}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_files_and_folders(folder):
    images = ImageCollection([str(folder)])
    assert images.names == [str(folder / name) for name in ("a.jpg", "b.png", "sub/c.webp")]
    assert images.prompts == ["an ape", "a bear", "a cat"]
    assert images.images[1].getpixel((0, 0)) == (0, 0, 0) and images.images[1].mode == "RGB"
    one = ImageCollection([str(folder / "b.png")])
    assert one.prompts == ["a bear"] and one.hash != images.hash
    (folder / "b.txt").unlink()
    assert ImageCollection([str(folder)], prompt="any").prompts == ["an ape", "any", "a cat"]
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text('file_name,prompt\na.jpg,"one, two"\nb.png,b\nsub/c.webp,c\n')
    assert ImageCollection([str(folder)]).prompts == ["one, two", "b", "c"]


def test_what_it_is_by(folder):
    """Content and order decide, not where it lies."""
    before = ImageCollection([str(folder)]).hash
    moved = folder.rename(folder.with_name("elsewhere"))
    assert ImageCollection([str(moved)]).hash == before
    Image.new("RGB", (8, 8), "white").save(moved / "b.png")
    assert ImageCollection([str(moved)]).hash != before


def test_datasets(tmp_path, folder):
    rows = {"picture": [{"path": str(folder / "b.png"), "bytes": None}] * 2, "caption": ["one", "two"]}
    dataset = Dataset.from_dict(rows)
    dataset.save_to_disk(str(tmp_path / "plain"))
    DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(str(tmp_path / "splits"))
    columns = {"image_column": "picture", "prompt_column": "caption"}
    plain = ImageCollection([str(tmp_path / "plain"), str(folder)], **columns)
    assert plain.prompts == ["one", "two", "an ape", "a bear", "a cat"] and len(plain.images) == 5
    assert plain.names[1] == f"{tmp_path / 'plain'}[1]"
    assert ImageCollection([str(tmp_path / "splits")], split="test", **columns).prompts == ["one"]
    with pytest.raises(UsageError, match="split 'validation' is not in .*, which has train, test"):
        ImageCollection([str(tmp_path / "splits")], split="validation", **columns)
    with pytest.raises(
        UsageError, match="has no column 'image'; it has picture, caption. Name it with --image_column"
    ):
        ImageCollection([str(tmp_path / "plain")])
    with pytest.raises(
        UsageError, match="no column 'prompt'.*--prompt_column, or give one prompt for all with --prompt"
    ):
        ImageCollection([str(tmp_path / "plain")], image_column="picture")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "b.txt").unlink(), r"b\.png has no prompt. Give it one, or one for all with --prompt"),
        (lambda f: (f / "b.txt").write_text(" \n"), r"b\.png has no prompt"),
        (lambda f: (f / "b.txt").write_text("a bear\na bee\n"), r"b\.png has 2 captions, a line each, in b\.txt: leave one"),
        (lambda f: (f / "b.caption").write_text("a bee"), r"b\.png has two captions, in b\.txt and b\.caption"),
        (lambda f: (f / "a.txt").write_text("an ant"), r"a\.jpg has two captions, in a\.txt and metadata\.jsonl, line 1"),
        (lambda f: (f / "a.jpg").unlink(), r"its metadata names .*a\.jpg, which is not there"),
        (lambda f: (f / "metadata.jsonl").write_text('{"file_name": "a.jpg"}'), "line 1: it needs file_name and one of"),
        (lambda f: (f / "metadata.jsonl").write_text("[1]"), "line 1: it needs file_name and one of"),
        (lambda f: (f / "metadata.jsonl").write_text("{"), "metadata.jsonl, line 1: not JSON"),
        (lambda f: (f / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "x"}\n' * 2), "line 2: a.jpg is named twice"),
        (lambda f: (f / "b.txt").write_bytes(b"\xff\xfe"), "not UTF-8"),
    ],
)  # fmt: skip
def test_mistakes_in_folders(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UsageError, match=message):
        ImageCollection([str(folder)])


def test_other_mistakes(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    for sources, message in (
        ([str(tmp_path / "empty")], "empty holds no images, which end in .png"),
        ([str(tmp_path / "none.png")], "none.png: there is no such file or folder"),
        ([str(folder / "b.txt")], "b.txt is no image: it must end in .png"),
        ([str(folder), str(folder / "b.png")], "b.png is named twice"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            ImageCollection(sources)
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"b\.png cannot be read: cannot identify image file"):
        ImageCollection([str(folder)]).images[1]


def test_pixels_are_those_that_a_viewer_shows(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0, 0]]], dtype=np.uint8)).save(tmp_path / "clear.png")
    assert ImageCollection([str(tmp_path)], prompt="x").images[0].getpixel((0, 0)) == (255, 255, 255)


def test_columns_and_parquet(tmp_path, folder):
    """A column that is named `image` already, files of parquet, and what else stands beside an image."""
    rows = {"image": [(folder / "b.png").read_bytes()] * 2, "prompt": ["one", "two"], "more": [5, 6]}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "plain"))
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "rows[0].parquet"))
    (folder / "b.txt").unlink()
    lines = [{"file_name": name, "text": name, "more": 1} for name in ("a.jpg", "b.png", "sub/c.webp")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = [str(tmp_path / "plain"), str(tmp_path / "rows[0].parquet"), str(folder)]
    images = ImageCollection(sources, columns=["more"])
    assert images.columns == {"more": [5, 6, 5, 6, 1, 1, 1]} and images.images[3].size == (8, 8)
    assert images.names[2] == f"{tmp_path / 'rows[0].parquet'}[0]"
    assert images.hash != ImageCollection(sources).hash == ImageCollection(sources, columns=[]).hash
    with pytest.raises(UsageError, match="plain has no column 'less'; it has image, prompt, more"):
        ImageCollection(sources[:1], columns=["less"])
    with pytest.raises(UsageError, match="a.jpg has no 'less': the metadata of its folder gives it none"):
        ImageCollection(sources[2:], columns=["less"])
