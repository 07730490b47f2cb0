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

"""Published prompt sets: files written here in the published formats, a cache of the Hub, and the real files where they are."""

import hashlib
import json
import os
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from craft_trl.errors import UsageError
from craft_trl.prompts.benchmarks import BENCHMARKS, HPD_STYLES, download, load_evaluation_prompts


def write(folder: Path, name: str) -> Path:
    """A file or folder like the published ones, with other prompts."""
    size = BENCHMARKS[name].size
    if name == "hpdv2-test":
        rows = [{"prompt": f"prompt {i}", "image_path": ["a.jpg"], "rank": [1]} for i in range(size)]
        (folder / "test.json").write_text(json.dumps(rows))
        return folder / "test.json"
    if name == "hpdv2-benchmark":
        for style in HPD_STYLES:
            # Distinct prompts are fewer than prompts, as in the real one.
            (folder / f"{style}.json").write_text(json.dumps([f"{style} {i // 2}" for i in range(size // 4)]))
        return folder
    if name == "partiprompts":
        lines = [f'the "word" {i}\tAnimals\tBasic\t' for i in range(size)]
        (folder / "a.tsv").write_text("\n".join(["Prompt\tCategory\tChallenge\tNote", *lines]))
        return folder / "a.tsv"
    if name == "drawbench":
        (folder / "a.json").write_text(json.dumps([f"prompt {i}" for i in range(size)]))
        return folder / "a.json"
    if name == "pickapic-test":
        (folder / "a.json").write_text(json.dumps([{"prompt": f"prompt {i}", "metadata": {}} for i in range(size)]))
        return folder / "a.json"
    if name == "geneval2":
        rows = [
            {"prompt": f"prompt {i}", "atom_count": 3 + i % 8, "vqa_list": [["Is it?", "Yes"]], "skills": ["object"]}
            for i in range(size)
        ]
        (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder / "a.jsonl"
    if name == "dpg":
        head = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
        lines = [
            f'item{i},"prompt {i}, of ""DPG""",,{number},"{dependency}",entity,whole,"entity - whole (it, {number})",Is it {number}?'
            for i in range(size)
            for number, dependency in ((1, "0"), (2, "0, 1"))
        ]
        (folder / "a.csv").write_text("\n".join([head, *lines]) + "\n")
        return folder / "a.csv"
    rows = [
        {"tag": "counting", "include": [{"class": "cow", "count": 2}], "prompt": f"prompt {i}"} for i in range(size)
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "a.jsonl"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_formats(name, tmp_path):
    benchmark = BENCHMARKS[name]
    rows = benchmark.load_rows(write(tmp_path, name))
    assert len(rows) == benchmark.size and all(row["prompt"] for row in rows)
    if benchmark.part:
        parts = Counter(row[benchmark.part] for row in rows)
        expected = {"partiprompts": {"Animals": 1632}, "geneval": {"counting": 553}}
        expected["geneval2"] = dict.fromkeys(range(3, 11), 100)
        assert parts == expected.get(name, dict.fromkeys(HPD_STYLES, benchmark.size // 4))
    if name == "partiprompts":
        assert rows[0]["prompt"] == 'the "word" 0'
    if name == "dpg":
        assert rows[7]["prompt"] == 'prompt 7, of "DPG"' and rows[7]["item_id"] == "item7"
        assert [question["parents"] for question in rows[7]["questions"]] == [[0], [0, 1]]
        assert rows[7]["questions"][1]["tuple"] == "entity - whole (it, 2)"
    if name == "hpdv2-benchmark":
        assert rows[800] == {"prompt": "concept-art 0", "style": "concept-art"}


def test_as_a_recipe_names_it(tmp_path):
    path = write(tmp_path, "geneval")
    rows, column, part = load_evaluation_prompts(f"geneval={path}")
    assert (len(rows), column, part) == (553, "prompt", "tag")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("geneval=a.jsonl", "a.jsonl holds 1 prompts, expected 553"),
        ("hpdv2-benchmark=a.jsonl", "give the folder of anime.json, concept-art.json"),
        ("hpdv2-test=a.json", "a.json, line 1: not JSON"),
        ("pickapic-test=b.json", "b.json, element 1: neither a text nor an object with a key 'prompt'"),
        ("drawbench=nothing.json", "Cannot read the prompts nothing.json"),
        ("genevl", "neither a file, a dataset id nor a published set. Did you mean geneval"),
        ("geneval", "evaluation_metadata.jsonl is not in the cache, and HF_HUB_OFFLINE is set"),
        ("hpdv2-test", "test.json of ymhao/HPDv2 is not to be had from the Hub or its cache"),
        ("dpg=d.csv", "d.csv is not in the published format: a depends on question 7, which is not there"),
        ("dpg", "dpg_bench.csv is not in the cache, and HF_HUB_OFFLINE is set"),
        ("twice.jsonl", 'twice.jsonl: the id "x" is there more than once'),
    ],
)
def test_mistakes(source, message, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "empty"))
    Path("a.jsonl").write_text('{"prompt": "a cow", "tag": "counting"}\n')
    Path("a.json").write_text("nonsense")
    Path("b.json").write_text("[3]")
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    Path("d.csv").write_text(head + "a,A,1,7,entity - whole (a),Is it?\n")
    Path("twice.jsonl").write_text('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n')
    with pytest.raises(UsageError, match=message) as error:
        load_evaluation_prompts(source)
    assert "\n" not in str(error.value)


def test_from_the_hub_at_the_pinned_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    published = BENCHMARKS["hpdv2-benchmark"]
    folder = tmp_path / "datasets--ymhao--HPDv2" / "snapshots" / published.revision / "benchmark"
    folder.mkdir(parents=True)
    write(folder, "hpdv2-benchmark")
    rows, _, part = load_evaluation_prompts("hpdv2-benchmark")
    assert len(rows) == 3200 and part == "style" and rows[-1]["style"] == "photo"


def test_downloaded_and_checked(tmp_path, monkeypatch):
    """By SHA-256 or by git's own hash; what is not the pinned file is not kept."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "cache"))
    content = b"prompt\na fox\n"
    (tmp_path / "a.csv").write_bytes(content)
    by_git = "git:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # `git hash-object a.csv`
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/a.csv"
    try:
        for pinned in (by_git, hashlib.sha256(content).hexdigest()):
            assert download(url, pinned).read_bytes() == content
        for wrong in ("git:" + "0" * 40, "0" * 64):
            with pytest.raises(UsageError, match="a.csv cannot be had: .*Download it by hand"):
                download(url, wrong)
    finally:
        server.shutdown()
        server.server_close()
    assert len(list((tmp_path / "cache" / "craft_trl").iterdir())) == 2
    assert download(url, by_git).read_bytes() == content  # of a server that is gone


@pytest.mark.skipif(
    "CRAFT_TRL_PROMPTS" not in os.environ, reason="CRAFT_TRL_PROMPTS names no folder of the published files"
)
def test_the_real_files():
    """A folder with the published files of PartiPrompts and GenEval, and others."""
    folder = Path(os.environ["CRAFT_TRL_PROMPTS"])
    for name, file, parts in (
        ("partiprompts", "PartiPrompts.tsv", 12),
        ("geneval", "geneval_evaluation_metadata.jsonl", 6),
    ):
        rows = BENCHMARKS[name].load_rows(folder / file)
        assert len({row[BENCHMARKS[name].part] for row in rows}) == parts
    assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == BENCHMARKS["geneval"].sha256
