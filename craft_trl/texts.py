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

"""
Text from outside: files that people and other programs write, and what servers and language models answer.

There is one reader of each format, so that a file means the same everywhere: UTF-8 with or without a byte order mark,
whatever the locale; a line ends at `\n` or `\r\n` and nowhere else, not at U+2028, U+0085 or a form feed; keys and columns
are named once. What cannot be text, a NUL character or half of a surrogate pair, is an error that names file and line, as is
everything else that does not fit the format.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from .errors import UsageError


def read_text(path: str | Path, what: str) -> str:
    """
    Text of a UTF-8 file, without its byte order mark.

    Args:
        path (`str` or `Path`):
            The file.
        what (`str`):
            What it is, for the error message: `"the prompts"`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {what} {path}: {error.strerror}.") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"{path}, line 1: not UTF-8 text but UTF-16. Save it as UTF-8.")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {line}: not UTF-8 text.") from error
    if (nul := text.find("\0")) >= 0:
        raise UsageError(f"{path}, line {text.count(chr(10), 0, nul) + 1}: a NUL character. Save it as UTF-8 text.")
    return text


def split_lines(text: str) -> list[str]:
    """Lines of a text, without their ends. `str.splitlines` would also cut at U+2028, U+0085, a form feed and others."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in lines[:-1]] + lines[-1:]


def find_flaw(value: Any) -> str | None:
    """What keeps a text, or one anywhere in a JSON value, from being text: it could be neither written nor tokenized."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and (found := _FLAW.search(value)):
            return "a NUL character" if found[0] == "\0" else f"half of a surrogate pair, U+{ord(found[0]):04X}"
    return None


def mend(text: str) -> str:
    """A text with U+FFFD for what [`find_flaw`] would find, such as half an emoji where a server has cut its answer off."""
    if not _FLAW.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")


_FLAW = re.compile("[\0\ud800-\udfff]")
_FLAW_IN_JSON = re.compile(_FLAW.pattern + r"|\\u(?:0000|d[89a-f])", re.IGNORECASE)


class JSONError(ValueError):
    """What is wrong with a JSON text, in a few words, and where in it, if that is known: its `line`, or the `element`."""

    def __init__(self, message: str, line: int | None = None, element: int | None = None):
        super().__init__(message)
        self.line, self.element = line, element

    @property
    def place(self) -> str:
        """`", line 3"` or `", element 3"`, or nothing."""
        return f", line {self.line}" if self.line else f", element {self.element}" if self.element else ""


def parse_json(text: str) -> Any:
    """The value that a JSON text holds; a [`JSONError`] if it holds none, or more, a key twice, or what is no text."""
    value, end = scan_json(text)
    end = _BLANK.match(text, end).end()
    if end < len(text):
        raise JSONError("Extra data", text.count("\n", 0, end) + 1)
    # Through all of a large value only if there may be one.
    if _FLAW_IN_JSON.search(text) and (flaw := find_flaw(value)):
        raise JSONError(flaw)
    return value


def parse_json_list(text: str) -> Any:
    """As [`parse_json`]; of a list, an error that knows no line knows the `element`."""
    try:
        return parse_json(text)
    except JSONError as error:
        start = re.match(rf"{_BLANK.pattern}\[", text)
        if error.line is not None or start is None:
            raise
        # Up to there it is a list.
        number, place = 1, start.end()
        with suppress(JSONError):
            while True:
                value, end = scan_json(text, place)
                if find_flaw(value):
                    break
                number, place = number + 1, text.index(",", end) + 1
        raise JSONError(str(error), element=number) from error


def scan_json(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at a place of a text, and where it ends; its texts may have flaws."""
    start = _BLANK.match(text, start).end()
    try:
        return _DECODER.raw_decode(text, start)
    except JSONError:
        raise
    except json.JSONDecodeError as error:
        raise JSONError(error.msg, error.lineno) from error
    except RecursionError as error:
        raise JSONError("nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise JSONError(str(error).partition(";")[0]) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        repeated = _first_repeated(key for key, _ in pairs)
        raise JSONError(f"the key {repeated!r} is there twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
_BLANK = re.compile(r"[ \t\r\n]*")  # of JSON; `str.strip` would take more


def read_json_lines(path: str | Path, what: str, item: str = "JSON") -> Iterator[tuple[int, Any]]:
    """
    Line numbers and values of a JSON Lines file. Blank lines are passed over.

    Args:
        path (`str` or `Path`):
            The file.
        what (`str`):
            What it is, for the error message: `"the vetoes"`.
        item (`str`, *optional*, defaults to `"JSON"`):
            What a line is, for the error message: `"a veto"`.
    """
    for number, line in enumerate(split_lines(read_text(path, what)), 1):
        if not _BLANK.fullmatch(line):
            try:
                yield number, parse_json(line)
            except JSONError as error:
                raise UsageError(f"{path}, line {number}: not {item} ({error}).") from error


def read_table(path: Path, what: str) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """
    Columns of a `.csv` or `.tsv` file, and its rows with the lines that they begin in. Blank lines are passed over.

    Fields of a `.csv` are separated by commas and may stand in double quotes (RFC 4180). In a `.tsv` a tab separates and
    quotes belong to the text, as in PartiPrompts.
    """
    text, tabs = read_text(path, what), path.suffix.lower() == ".tsv"
    if tabs:
        records = [(number, line.split("\t")) for number, line in enumerate(split_lines(text), 1) if line]
    else:
        records = _read_csv(path, text)
    if not records:
        return [], iter(())
    first, head = records[0]
    if (repeated := _first_repeated(head)) is not None:
        raise UsageError(f"{path}, line {first}: the column {repeated!r} is there twice.")

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        for line, record in records[1:]:
            if len(record) != len(head):
                remedy = "" if tabs else ' A field that holds a comma stands in quotes, "so, or so".'
                raise UsageError(f"{path}, line {line}: {len(record)} fields, but the head has {len(head)}.{remedy}")
            yield line, dict(zip(head, record, strict=True))

    return head, rows()


def _read_csv(path: Path, text: str) -> list[tuple[int, list[str]]]:
    records, line = [], 1
    # Strict: otherwise a quote that is never closed makes one field of all that follows.
    reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    limit = csv.field_size_limit(max(len(text), 131072))
    try:
        for record in reader:
            if record:
                records.append((line, record))
            line = reader.line_num + 1
    except csv.Error as error:
        reason = str(error)
        if "new-line character" in reason:
            reason = r"a lone carriage return; lines end in \n or \r\n, and other line breaks stand in quotes"
        raise UsageError(f"{path}, line {line}: not CSV ({reason}).") from error
    finally:
        csv.field_size_limit(limit)
    return records


def read_yaml(path: str | Path, what: str) -> Any:
    """Content of a YAML file; a key that is there twice is an error, where YAML libraries take the last one."""
    text = read_text(path, what)
    for number, line in enumerate(split_lines(text), 1):
        # YAML 1.1 takes them for line breaks, and folds them into a space.
        if found := re.search("[\x85\u2028\u2029]", line):
            code = f"{ord(found[0]):04X}"
            raise UsageError(
                f'{path}, line {number}: a U+{code}, of which YAML makes a line break: write "\\u{code}".'
            )
    try:
        return yaml.load(text, _Loader)
    except _YAMLError as error:
        raise UsageError(f"{path}, line {error.problem_mark.line + 1}: {error.problem}.") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"{path} is not YAML: line {line} holds the character U+{error.character:04X}.") from error
    except RecursionError as error:
        raise UsageError(f"{path} is not YAML: it is nested too deeply.") from error
    except (yaml.YAMLError, ValueError) as error:  # such as a date that there is not
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error


class _YAMLError(yaml.MarkedYAMLError):
    """What YAML allows and a recipe does not."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        keys: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (first := keys.get((key.tag, key.value))) is not None:
                problem = f"the key {key.value!r} is there twice, first in line {first + 1}"
                raise _YAMLError(problem=problem, problem_mark=key.start_mark)
            keys[key.tag, key.value] = key.start_mark.line
        return node

    def compose_scalar_node(self, anchor):
        node = super().compose_scalar_node(anchor)
        if flaw := find_flaw(node.value):
            raise _YAMLError(problem=flaw, problem_mark=node.start_mark)
        return node


def one_line(text: str, most: int = 300) -> str:
    """What a server or a library says, for an error message: one line of characters that can be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]


def _first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)
