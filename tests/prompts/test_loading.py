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


import hashlib
import json
import threading
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from craft_trl.errors import UsageError
from craft_trl.prompts.benchmarks import BENCHMARKS, PublishedPrompts, download
from craft_trl.prompts.config import load_excluded, load_prompts, select_prompts
from craft_trl.prompts.duplicates import find_near_duplicates, normalise
from craft_trl.prompts.loading import load_prompt_rows


class TestLoadPrompts:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("p.txt", "a fox\n\n  a   red car \na fox\n"),
            ("p.csv", 'prompt,style\na fox,x\n" a   red car",y\na fox,z\n'),
            ("p.tsv", "Style\tprompt\nx\ta fox\ny\ta   red car\n"),
            ("p.jsonl", '{"prompt": "a fox"}\n\n{"prompt": "a   red car", "n": 1}\n'),
            ("p.json", '["a fox", {"prompt": "a   red car", "image_path": ["1.jpg"]}]'),
        ],
    )
    def test_files(self, tmp_path, name, text):
        (tmp_path / name).write_text(text)
        assert load_prompts(str(tmp_path / name)) == ["a fox", "a red car"]

    def test_list(self):
        assert load_prompts(["a", "b", "a"]) == ["a", "b"]

    def test_quotes_in_tsv_belong_to_the_prompt(self, tmp_path):
        (tmp_path / "p.tsv").write_text('prompt\n"Stop" painted on a wall\n')
        assert load_prompts(str(tmp_path / "p.tsv")) == ['"Stop" painted on a wall']

    def test_datasets_are_read_without_their_pictures(self, tmp_path):
        rows = {"caption": ["a fox", "a red car"], "image": [Image.new("RGB", (8, 8))] * 2, "kind": ["x", "y"]}
        dataset = Dataset.from_dict(rows).cast_column("image", datasets.Image())
        dataset.to_parquet(str(tmp_path / "p.parquet"))
        dataset.save_to_disk(str(tmp_path / "flat"))
        DatasetDict(train=dataset, test=dataset.select([1])).save_to_disk(str(tmp_path / "splits"))
        (tmp_path / "files").mkdir()
        dataset.remove_columns("image").to_json(str(tmp_path / "files" / "train.jsonl"))
        for name in ("p.parquet", "flat", "splits", "files"):
            rows = load_prompt_rows(str(tmp_path / name), "caption")
            assert rows == [{"caption": "a fox", "kind": "x"}, {"caption": "a red car", "kind": "y"}]
        assert load_prompts(str(tmp_path / "splits"), "caption", split="test") == ["a red car"]
        assert load_excluded("caption=" + str(tmp_path / "splits")) == ["a fox", "a red car", "a red car"]
        with pytest.raises(UsageError, match="there is no split 'dev', only train, test"):
            load_prompts(str(tmp_path / "splits"), "caption", split="dev")
        with pytest.raises(UsageError, match='Unknown split "dev"'):
            load_prompts(str(tmp_path / "files"), "caption", split="dev")
        with pytest.raises(UsageError, match="flat has no column 'prompt'. Known are caption, image, kind"):
            load_prompts(str(tmp_path / "flat"))

    def test_on_the_hub(self):
        with pytest.raises(UsageError, match="train.json of ymhao/HPDv2 is not to be had from the Hub or its cache"):
            load_prompts("ymhao/HPDv2")
        with pytest.raises(UsageError, match="test.json of ymhao/HPDv2 .* `hf download --repo-type dataset"):
            load_prompts("ymhao/HPDv2:test.json")
        with pytest.raises(UsageError, match="org/name:image.png is no .txt"):
            load_prompts("org/name:image.png")
        with pytest.raises(UsageError, match="Prompts org/name: "):
            load_prompts("org/name")

    def test_a_larger_sample_begins_with_the_smaller(self):
        prompts = [str(i) for i in range(100)]
        small, large = load_prompts(prompts, num_prompts=10, seed=3), load_prompts(prompts, num_prompts=100, seed=3)
        assert large[:10] == small and sorted(large) == sorted(prompts)
        assert small != load_prompts(prompts, num_prompts=10, seed=4)

    def test_rows_added_to_the_source_leave_most_of_a_sample(self):
        prompts = [str(i) for i in range(1000)]
        before = load_prompts(prompts, num_prompts=100)
        after = load_prompts([*prompts, *(str(i) for i in range(1000, 1100))], num_prompts=100)
        old = [prompt for prompt in after if int(prompt) < 1000]
        assert old == before[: len(old)] and 80 <= len(old) < 100

    @pytest.mark.parametrize("num_prompts", [0, 4])
    def test_sample_size(self, num_prompts):
        with pytest.raises(UsageError, match=f"from 1 to 3, the prompts in .*; got {num_prompts}"):
            load_prompts(["a", "b", "c"], num_prompts=num_prompts)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', r"p.jsonl, line 2: not JSON \(Expecting value"),
            ("p.jsonl", b'{"prompt": "a"}\n\n{"text": "b"}\n', "p.jsonl, line 3: no key 'prompt'"),
            ("p.jsonl", b'{"prompt": "  "}\n', 'p.jsonl, line 1: the prompt is "  "; it must be text'),
            ("p.jsonl", b'{"prompt": 3}\n', "p.jsonl, line 1: the prompt is 3"),
            ("p.jsonl", b"[1]\n", "p.jsonl, line 1: no key 'prompt'"),
            ("p.txt", b"a fox\n\xff\xfe\n", "p.txt, line 2: not UTF-8"),
            ("p.txt", b"\n \n", "holds no prompt"),
            ("p.jsonl", b"", "holds no prompt"),
            ("p.csv", b"promt\na\n", "p.csv, line 1: no column 'prompt'. Did you mean promt"),
            ("p.csv", b"prompt,x\na,1\n,2\n", 'p.csv, line 3: the prompt is ""'),
            ("p.json", b'[{"prompt": "a"}, "b"', "p.json, line 1: not JSON"),
            ("p.json", b'{"prompt": "a"}', "p.json must hold a list of prompts or of objects, got dict"),
            ("p.json", b'["a", 3]', "p.json, element 2: neither a text nor an object with a key 'prompt'"),
            ("p.json", b'["a", " "]', 'p.json, element 2: the prompt is " "'),
            ("p.json", b"[]", "holds no prompt"),
            ("p.parquet", b"PAR", "Prompts .*p.parquet: "),
            ("p.xml", b"<a/>", "not a .txt, .csv, .tsv, .jsonl, .json, .parquet file"),
        ],
    )
    def test_bad_files_name_file_and_line(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=message):
            load_prompts(str(tmp_path / name))

    @pytest.mark.parametrize("source", ["nothing.txt", "./org/name", "/nothing/at/all", "name"])
    def test_missing(self, source):
        with pytest.raises(UsageError, match="Cannot read the prompts|not a .txt"):
            load_prompts(source)

    def test_rows_keep_their_columns(self, tmp_path):
        row = {"prompt": "a fox", "tag": "single"}
        (tmp_path / "p.jsonl").write_text(json.dumps(row))
        assert load_prompt_rows(str(tmp_path / "p.jsonl")) == [row]


class TestSelectPrompts:
    TEXTS = ["A fox!", "a  FOX", "a fox", "two red cars", "🦊", "🐻", "!!!", "a photo of a bench"]

    def test_equal_prompts(self):
        prompts, counts = select_prompts(self.TEXTS, {})
        assert prompts == ["A fox!", "two red cars", "🦊", "🐻", "!!!", "a photo of a bench"]
        assert counts == {"read": 8, "repeated": 2, "excluded": {}, "left": 6}

    def test_excluded_prompts(self):
        exclude = {"benchmark": ["A photo of a bench.", "unknown"], "other": ["a photo of a bench", "A Fox"]}
        prompts, counts = select_prompts(self.TEXTS, exclude)
        assert prompts == ["two red cars", "🦊", "🐻", "!!!"]
        assert counts == {"read": 8, "repeated": 2, "excluded": {"benchmark": 1, "other": 1}, "left": 4}
        with pytest.raises(UsageError, match="No prompt of mine.txt is left: all are repeated or in benchmark"):
            select_prompts(["A fox", "a fox"], {"benchmark": ["a fox"]}, source="mine.txt")

    def test_near_duplicates(self):
        texts = ["an old ship in a storm, oil on canvas", "an old ship in a storm, oil on canvas, 4k"]
        texts += ["a dog bites a man", "a man bites a dog", "a tall photo of a bench in the park at noon"]
        prompts, counts = select_prompts(texts, {"b": ["tall photo of a bench in the park at noon"]}, 0.8)
        assert prompts == [texts[0], texts[2], texts[3]]
        assert counts == {"read": 5, "repeated": 0, "excluded": {"b": 1}, "near_duplicates": 1, "left": 3}

    def test_files_and_benchmarks_by_name(self, tmp_path, tiny):
        source, held_out = str(tiny / "prompts" / "tiny-hpd-train.jsonl"), str(tiny / "prompts" / "tiny-geneval.jsonl")
        everything = load_prompts(source)
        left = load_prompts(source, exclude=[held_out])
        assert not set(left) & set(load_prompts(held_out)) and set(left) <= set(everything)
        (tmp_path / "PartiPrompts.tsv").write_text("Prompt\tCategory\n" + everything[7].upper() + "\tx\n")
        assert everything[7] not in load_prompts(source, exclude=["Prompt=PartiPrompts.tsv"])
        copy = [{"prompt": text, "rank": [1]} for text in (everything[8], *"abcdefghi" * 44, "j", "k", "l")]
        (tmp_path / "test.json").write_text(json.dumps(copy))
        assert everything[8] not in load_prompts(source, exclude=["hpdv2-test=test.json"])
        with pytest.raises(UsageError, match="no benchmark or file 'hpdv2-tset'. Did you mean hpdv2-test"):
            load_prompts(source, exclude=["hpdv2-tset"])
        with pytest.raises(UsageError, match="PartiPrompts.tsv, line 1: no column 'prompt'"):
            load_prompts(source, exclude=["PartiPrompts.tsv"])

    @pytest.mark.parametrize("name", BENCHMARKS)
    def test_every_benchmark_has_a_home(self, name, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        published = BENCHMARKS[name]
        assert (published.revision is None) != (published.sha256 is None)
        with pytest.raises(UsageError, match="is not to be had from the Hub|is not in the cache, and HF_HUB_OFFLINE"):
            load_excluded(name)


class TestDownload:
    def test_once_and_checked(self, tmp_path, monkeypatch):
        content = b'{"prompt": "a fox"}\n'

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/p.jsonl" else 404)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        sha256 = hashlib.sha256(content).hexdigest()
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            for wrong, digest in (("/p.jsonl", "0" * 64), ("/none.jsonl", sha256)):
                with pytest.raises(
                    UsageError, match="cannot be had: .* Download it by hand, and give its path instead"
                ):
                    download(url + wrong, digest)
            path = download(url + "/p.jsonl", sha256)
            assert [file.name for file in path.parent.iterdir()] == [path.name] and path.read_bytes() == content
            assert PublishedPrompts((url + "/p.jsonl",), sha256=sha256).load() == ["a fox"]
            server.shutdown()
        assert download(url + "/p.jsonl", sha256) == path


class TestFindNearDuplicates:
    words = st.lists(st.sampled_from("a b c d e f".split()), min_size=1, max_size=9).map(" ".join)

    @given(st.lists(words, max_size=12), st.lists(words, max_size=4), st.sampled_from([0.3, 0.5, 0.7, 0.8, 0.9, 1.0]))
    def test_equals_all_pairs(self, prompts, against, threshold):
        def elements(text):
            words = text.split()
            return {*words, *zip(words, words[1:], strict=False)}

        def similarity(a, b):
            a, b = elements(a), elements(b)
            return Fraction(len(a & b), len(a | b))

        limit, kept, expected = Fraction(str(threshold)), [], []
        for number, prompt in enumerate(prompts):
            before = [(i, True) for i, text in enumerate(against) if similarity(prompt, text) >= limit]
            before += [(i, False) for i in kept if similarity(prompt, prompts[i]) >= limit]
            expected.append(before[0] if before else None)
            if not before:
                kept.append(number)
        assert find_near_duplicates(prompts, threshold, against) == expected

    def test_normalise(self):
        assert normalise("  “Café”: the  ﬁrst—ONE, 4K ") == "café the first one 4k"
        assert normalise("🦊!") == "🦊" and normalise("...") == "..."
