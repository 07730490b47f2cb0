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

"""One reader for each format of text: what comes out is what went in, or one line that names the file and the line."""

import ast
import csv
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import craft_trl
from craft_trl.errors import UsageError
from craft_trl.prompts.loading import load_prompt_rows
from craft_trl.texts import JSONError, find_flaw, mend, one_line, parse_json, read_text, read_yaml, split_lines


# All of Unicode, half of it what readers stumble over: line breaks that are none, marks, quotes, halves of pairs, NUL.
ODD = st.sampled_from(
    [*"\0\t\r\x0b\x0c\x1c\x1e\x85\xa0\u2028\u2029\ufeff\ud83c\udf4e🍎\"',;#:\\|{}[]~é\u0301\u202e\x7f \n"]
)
TEXTS = st.text(st.one_of(ODD, st.characters(exclude_categories=())), min_size=1, max_size=20)
PROMPTS = st.lists(TEXTS, min_size=1, max_size=6)
PLACE = r"p\.\w+(, (line|element|row) \d+|, lines \d+ and \d+| is not YAML: line \d+| holds no prompt)"


def written(text: str, newline: str, mark: bool) -> bytes:
    """Text as an editor saves it; half a pair as some programs do, which is not UTF-8."""
    mark = mark or text.startswith("\ufeff")  # its own first character would be taken for one
    return ("\ufeff" * mark + text.replace("\n", newline)).encode("utf-8", "surrogatepass")


def sound(text: str) -> bool:
    return bool(text.strip()) and not re.search("[\0\ud800-\udfff]", text)


def check(name: str, prompts: list[str], readable: bool) -> None:
    """`readable`: whether there is nothing in the prompts that the format cannot hold."""
    try:
        rows = load_prompt_rows(name)
    except UsageError as error:
        assert re.search(PLACE, str(error)) and "\n" not in str(error) and not readable, error
    else:
        assert [row["prompt"] for row in rows] == prompts


class TestRoundTrip:
    """A hundred files of each format."""

    @given(PROMPTS, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
    def test_txt(self, prompts, newline, mark, end):
        prompts = [p for p in (p.replace("\n", " ").removesuffix("\r") for p in prompts) if p.strip()]
        text = "\n".join(prompts) + "\n" * end
        Path("p.txt").write_bytes(written(text, newline, mark))
        check("p.txt", prompts, bool(prompts) and all(map(sound, prompts)))

    @given(PROMPTS, st.sampled_from(["\n", "\r\n"]), st.booleans())
    def test_csv(self, prompts, newline, mark):
        file = io.StringIO()
        writer = csv.writer(file, lineterminator=newline, quoting=csv.QUOTE_ALL)
        writer.writerows([("n", "prompt"), *enumerate(prompts)])
        Path("p.csv").write_bytes(written(file.getvalue(), "\n", mark))
        check("p.csv", prompts, all(map(sound, prompts)))

    @given(PROMPTS, st.booleans())
    def test_csv_without_quotes_where_they_are_not_needed(self, prompts, mark):
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([("prompt", "n"), *((p, i) for i, p in enumerate(prompts))])
        Path("p.csv").write_bytes(written(file.getvalue(), "\n", mark))
        # Python's writer leaves a lone carriage return without quotes, of which nobody can say what it is.
        check("p.csv", prompts, all(map(sound, prompts)) and "\r" not in "".join(prompts))

    @given(PROMPTS, st.sampled_from(["\n", "\r\n"]), st.booleans())
    def test_tsv(self, prompts, newline, mark):
        prompts = [re.sub(r"[\t\n]", " ", prompt) for prompt in prompts]
        text = "\n".join(["prompt\tn", *(f"{prompt}\t1" for prompt in prompts)])
        Path("p.tsv").write_bytes(written(text, newline, mark))
        check("p.tsv", prompts, all(map(sound, prompts)))

    @given(PROMPTS, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
    def test_jsonl(self, prompts, newline, mark, ascii):
        prompts = json.loads(json.dumps(prompts))  # which makes one character of two halves side by side
        lines = [json.dumps({"prompt": prompt, "n": [1]}, ensure_ascii=ascii) for prompt in prompts]
        Path("p.jsonl").write_bytes(written("\n".join(lines), newline, mark))
        check("p.jsonl", prompts, all(map(sound, prompts)))

    @given(PROMPTS, st.booleans(), st.booleans(), st.sampled_from([None, 1]))
    def test_json(self, prompts, mark, ascii, indent):
        prompts = json.loads(json.dumps(prompts))
        text = json.dumps(
            [prompts[0], *({"prompt": prompt} for prompt in prompts[1:])], ensure_ascii=ascii, indent=indent
        )
        Path("p.json").write_bytes(written(text, "\n", mark))
        check("p.json", prompts, all(map(sound, prompts)))

    @settings(max_examples=8)
    @given(st.lists(TEXTS, min_size=30, max_size=40))
    def test_parquet(self, prompts):
        prompts = [prompt.encode("utf-8", "replace").decode() for prompt in prompts]
        pq.write_table(pa.table({"prompt": prompts}), "p.parquet")
        check("p.parquet", prompts, all(map(sound, prompts)))

    @given(PROMPTS, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(), st.sampled_from([None, '"', "'"]))
    def test_recipe(self, prompts, newline, mark, ascii, style):
        text = yaml.safe_dump({"templates": prompts}, allow_unicode=not ascii, default_style=style, width=2**31)
        Path("p.yaml").write_bytes(written(text, newline, mark))
        try:
            assert read_yaml("p.yaml", "the recipe") == {"templates": prompts}
        except UsageError as error:
            assert re.search(PLACE, str(error)) and "\n" not in str(error), error
            assert find_flaw(prompts) or re.search("[\x85\u2028\u2029]", text), error


@given(st.sampled_from([".txt", ".csv", ".tsv", ".jsonl", ".json", ".yaml"]), st.data())
@settings(max_examples=250)
def test_no_file_is_a_traceback(ending, data):
    """Anything at all, and pieces of what belongs there in any order."""
    pieces = st.sampled_from(
        ["prompt", "a fox", '{"prompt": "a"}', '{"prompt": 1}', "\n", "\r\n", "\t", ",", '"', "[", "]", "{", "}", ": ", "- ", "&a", "*a",
         "<<: ", "\\ud83c", "9" * 5000, "[" * 500, "2024-13-45", "!!python/object:os.system", "1e999", "NaN"]
    )  # fmt: skip
    content = data.draw(
        st.one_of(st.binary(max_size=60), st.lists(pieces, max_size=12).map(lambda p: "".join(p).encode()))
    )
    Path(f"p{ending}").write_bytes(content)
    try:
        read_yaml("p.yaml", "the recipe") if ending == ".yaml" else load_prompt_rows(f"p{ending}")
    except UsageError as error:
        assert "\n" not in str(error) and f"p{ending}" in str(error)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("p.csv", "prompt,n\na fox,1\na bear\n", "p.csv, line 3: 1 fields, but the head has 2"),
            ("p.csv", "prompt\na fox, red\n", 'p.csv, line 2: 2 fields, but the head has 1. A field that holds a comma stands in'),
            ("p.csv", 'prompt\n"a\nfox"\n\n"b" c\n', "p.csv, line 5: not CSV \\(',' expected after '\"'\\)"),
            ("p.csv", 'prompt\n"a fox\nb\nc\n', "p.csv, line 2: not CSV \\(unexpected end of data\\)"),
            ("p.csv", "prompt\ra fox\r", r"p.csv, line 1: not CSV \(a lone carriage return; lines end in"),
            ("p.csv", "prompt,n,prompt\na,1,b\n", "p.csv, line 1: the column 'prompt' is there twice"),
            ("p.csv", "prompt;style\na fox, red;x\n", "line 1: no column 'prompt'. Its columns are separated by semicolons: save"),
            ("p.csv", "prompt\tstyle\na fox\tx\n", "Its columns are separated by tabs: name it .tsv"),
            ("p.tsv", "prompt,style\na fox,x\n", "Its columns are separated by commas: name it .csv"),
            ("p.tsv", "prompt\tn\na fox\t1\t2\n", "p.tsv, line 2: 3 fields, but the head has 2.$"),
            ("p.jsonl", '{"prompt": "a", "prompt": "b"}\n', r"p.jsonl, line 1: not JSON \(the key 'prompt' is there twice\)"),
            ("p.jsonl", '\n{"prompt": "a red apple \\ud83c"}\n', r"p.jsonl, line 2: not JSON \(half of a surrogate pair, U\+D83C\)"),
            ("p.jsonl", '{"prompt": "a", "n": ["\\u0000"]}\n', r"p.jsonl, line 1: not JSON \(a NUL character\)"),
            ("p.json", '{"prompt": "a"}\n{"prompt": "b"}\n', r"p.json, line 2: not JSON \(Extra data\). If each line .* name it .jsonl"),
            ("p.json", '[\n{"a": {"prompt": 1, "prompt": 2}}]', r"p.json, element 1: not JSON \(the key 'prompt' is there twice\)"),
            ("p.txt", "a fox\nb\0c\n", "p.txt, line 2: a NUL character"),
        ],
    )  # fmt: skip
    def test_mistakes(self, name, content, message):
        Path(name).write_text(content, encoding="utf-8", newline="")
        with pytest.raises(UsageError, match=message) as error:
            load_prompt_rows(name)
        assert "\n" not in str(error.value)

    def test_utf_16(self):
        """What Windows calls Unicode."""
        Path("p.txt").write_bytes("a fox\r\n".encode("utf-16"))
        with pytest.raises(UsageError, match="p.txt, line 1: not UTF-8 text but UTF-16. Save it as UTF-8"):
            load_prompt_rows("p.txt")

    @pytest.mark.parametrize("name", ["p.TXT", "p.Csv", "p.TSV", "p.JSONL", "p.JSON", "p.PARQUET"])
    def test_endings_in_capitals(self, name):
        content = {"p.JSONL": '{"prompt": "a fox"}', "p.JSON": '["a fox"]', "p.TXT": "a fox"}.get(
            name, "prompt\na fox\n"
        )
        Path(name).write_text(content, encoding="utf-8")
        if name == "p.PARQUET":
            pq.write_table(pa.table({"prompt": ["a fox"]}), name)
        assert load_prompt_rows(name) == [{"prompt": "a fox"}]

    def test_a_very_long_field(self):
        before = csv.field_size_limit()
        Path("p.csv").write_text(f"prompt,notes\na fox,{'long ' * 100_000}\n", encoding="utf-8")
        assert load_prompt_rows("p.csv")[0]["prompt"] == "a fox" and csv.field_size_limit() == before

    @pytest.mark.parametrize("folder", ["csv [a]", "dir [v1] a&b#1", "[!x]", "q?*"])
    def test_brackets_in_a_path(self, folder):
        (Path(folder) / "data").mkdir(parents=True)
        pq.write_table(pa.table({"prompt": ["a fox"]}), f"{folder}/p.parquet")
        assert load_prompt_rows(f"{folder}/p.parquet") == [{"prompt": "a fox"}]
        Path(folder, "p.parquet").rename(f"{folder}/data/train-00000-of-00001.parquet")
        pq.write_table(pa.table({"prompt": ["a bear"]}), f"{folder}/data/test-00000-of-00001.parquet")
        assert load_prompt_rows(folder) == [{"prompt": "a fox"}]
        assert load_prompt_rows(folder, split=None) == [{"prompt": "a fox"}, {"prompt": "a bear"}]

    def test_text_that_arrow_took_unseen(self):
        broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a fox", b"b\xff"], pa.binary()).buffers())
        pq.write_table(pa.table({"prompt": broken}), "p.parquet")
        with pytest.raises(UsageError, match="p.parquet, row 2: not UTF-8 text"):
            load_prompt_rows("p.parquet")

    def test_dates_for_prompts(self):
        pq.write_table(pa.table({"prompt": pa.array([0], pa.timestamp("s"))}), "p.parquet")
        with pytest.raises(UsageError, match='p.parquet, row 1: the prompt is "1970-01-01 00:00:00"; it must be text'):
            load_prompt_rows("p.parquet")

    def test_the_text_of_a_prompt_is_no_path(self):
        with pytest.raises(UsageError, match="^Prompts a fox under a tree, .*: not a .txt, "):
            load_prompt_rows("a fox under a tree, " * 50)


class TestYAML:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: 1\nb: 2\na: 3\n", "r.yaml, line 3: the key 'a' is there twice, first in line 1"),
            ("{a: 1, a: 2}", "r.yaml, line 1: the key 'a' is there twice"),
            ("a:\n  b: 1\n  'b': 2\n", "r.yaml, line 3: the key 'b' is there twice, first in line 2"),
            ("a: x\nb: a\u2028c\n", 'r.yaml, line 2: a U\\+2028, of which YAML makes a line break: write "\\\\u2028"'),
            ('a: "\\ud83c"\n', "r.yaml, line 1: half of a surrogate pair, U\\+D83C"),
            ('a: "b\\0"\n', "r.yaml, line 1: a NUL character"),
            ("a: b\nc: \x07\n", "r.yaml is not YAML: line 2 holds the character U\\+0007"),
            ("a: 2024-13-45\n", "r.yaml is not YAML: month must be in 1..12"),
            ("a: " + "[" * 900, "r.yaml is not YAML: it is nested too deeply"),
        ],
    )
    def test_mistakes(self, text, message):
        Path("r.yaml").write_bytes(text.encode())
        with pytest.raises(UsageError, match=message):
            read_yaml("r.yaml", "the recipe")

    def test_a_key_may_replace_what_it_inherits(self):
        Path("r.yaml").write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, x: 4}\n", encoding="utf-8")
        assert read_yaml("r.yaml", "the recipe")["c"] == {"x": 4, "y": 2}


def test_lines():
    assert split_lines("a\r\nb\u2028c\x85d\x0be\x0cf\n\ng\rh\r\r\ni\r") == [
        "a",
        "b\u2028c\x85d\x0be\x0cf",
        "",
        "g\rh\r",
        "i\r",
    ]
    assert split_lines("") == [""] and split_lines("a\n") == ["a", ""]


def test_json():
    assert parse_json(' {"a": ["\\ud83c\\udf4e", 1e5]}\n') == {"a": ["🍎", 1e5]}
    for text, line in (('{"a": 1,\n}', 2), ("1\n\n2", 3), ("[" * 5000, None), ("9" * 5000, None), ("\u2028[]", 1)):
        with pytest.raises(JSONError) as error:
            parse_json(text)
        assert error.value.line == line


def test_mended_text_can_be_written():
    assert mend("a \ud83c") == "a \ufffd" and mend("\ud83c\udf4e\0") == "🍎\ufffd" and mend("é🍎") == "é🍎"


def test_one_line():
    assert one_line("a\n\tb\x1b[31m\u2028c\ud83c", 8) == "a b [31m"


def test_no_file_is_read_as_the_locale_has_it():
    """Where a file of text is opened, its encoding stands beside it."""
    missing = []
    for file in Path(craft_trl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            binary = any("b" in mode and len(mode) <= 3 for mode in modes)
            opened = ast.unparse(node.func).endswith(("Image.open", "opener.open"))
            if (name in ("open", "fdopen") and not binary and not opened) or (
                name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
            ):
                missing.append(f"{file}:{node.lineno}")
    assert not missing


def test_missing_files_name_what_they_are():
    with pytest.raises(UsageError, match="Cannot read the vetoes none.jsonl: No such file or directory"):
        read_text("none.jsonl", "the vetoes")
