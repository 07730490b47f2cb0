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

"""Rows of prompts: read from a file, a folder, a dataset or the Hub, or an error that names the line."""

import glob
import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ..errors import UsageError
from ..parser import suggest
from ..quiet import quiet_logs
from ..sources import HubFiles, first_line, looks_like_hub_id
from ..texts import JSONError, find_flaw, parse_json_list, read_json_lines, read_table, read_text, split_lines


# HPDv2 is published as JSON files beside 32 GB of pictures, with a loading script that `datasets` no longer runs.
HPDV2 = "ymhao/HPDv2"
FILE_TYPES = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet")
WHAT = "the prompts"
ON_HUB = re.compile(r"([\w.-]+/[\w.-]+):(.+)")


def file_type(path: str | Path) -> str | None:
    """Which of `FILE_TYPES` a file is by its ending, in capitals or not."""
    ending = Path(path).suffix.lower()
    return ending if ending in FILE_TYPES else None


def load_prompt_rows(
    source: str,
    column: str = "prompt",
    split: str | None = "train",
    config: str | None = None,
    revision: str | None = None,
) -> list[dict]:
    """
    Rows of a source of prompts, as in [`PromptsConfig`], with all their columns except pictures. Every row has a prompt
    that is not empty; a row that has none is an error that names the file and the line. A `split` of `None` takes all
    splits of a dataset.
    """
    path = Path(source)
    if source == HPDV2:
        files = _hpdv2_files(split)
        return [row for file in files for row in load_prompt_rows(f"{HPDV2}:{file}", column, revision=revision)]
    if on_hub := ON_HUB.fullmatch(source):
        path = _from_hub(*on_hub.groups(), revision)
    kind = file_type(path)
    # Those of `os.path` say no, where a `Path` would raise an error, to what is no path but the text of a prompt.
    if os.path.isdir(path) or (kind == ".parquet" and os.path.isfile(path)):
        unit, rows = "row", _load_dataset(source, path, column, split, config, revision)
    elif kind is not None and kind != ".parquet":
        unit, rows = "element" if kind == ".json" else "line", _parse(path, column)
    elif os.path.exists(path) or kind is not None or not looks_like_hub_id(source):
        kinds = ", ".join(FILE_TYPES)
        raise UsageError(f"Prompts {source[:200]}: not a {kinds} file that exists, nor a dataset id like org/name.")
    else:
        unit, rows = "row", _load_dataset(source, None, column, split, config, revision)
    for number, row in rows:
        check_prompt(row.get(column), f"{source}, {unit} {number}")
    if not rows:
        raise UsageError(f"{source} holds no prompt.")
    return [row for _, row in rows]


def _hpdv2_files(split: str | None) -> list[str]:
    return ["train.json", "test.json"] if split is None else [f"{split}.json"]


def hub_files(source: str, split: str | None = "train", revision: str | None = None) -> list[HubFiles]:
    """What [`load_prompt_rows`] reads on the Hub. Of a dataset, `datasets` decides, see [`files_of_dataset`]."""
    if source == HPDV2:
        return [HubFiles(HPDV2, tuple(_hpdv2_files(split)), revision, "dataset")]
    if on_hub := ON_HUB.fullmatch(source):
        repo_id, file = on_hub.groups()
        return [HubFiles(repo_id, (file,), revision, "dataset")]
    if os.path.exists(source) or file_type(source) or not looks_like_hub_id(source):
        return []
    return [HubFiles(source, ("*",), revision, "dataset")]


def files_of_dataset(files: HubFiles, config: str | None = None) -> HubFiles:
    """Of a dataset as a whole the files that `datasets` reads; it downloads the head of its card, and where need be lists it."""
    import datasets

    if files.files != ("*",):
        return files
    try:
        builder = datasets.load_dataset_builder(files.repo_id, config, revision=files.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"Prompts {files.repo_id}: {first_line(error)}") from error
    urls = {url for part in (builder.config.data_files or {}).values() for url in part}
    names = sorted(url.partition("@")[2].partition("/")[2] for url in urls)  # hf://datasets/org/name@COMMIT/PATH
    return replace(files, files=tuple(names) or files.files)


def check_prompt(prompt: Any, place: str) -> None:
    """Raise a [`UsageError`] that names the place unless a prompt is a text that says something."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{place}: the prompt is {json.dumps(prompt, default=str)[:80]}; it must be text.")
    if flaw := find_flaw(prompt):
        raise UsageError(f"{place}: the prompt holds {flaw}.")


def _from_hub(repo_id: str, file: str, revision: str | None) -> Path:
    if file_type(file) is None:
        raise UsageError(f"{repo_id}:{file} is no {', '.join(FILE_TYPES)} file.")
    try:
        return Path(hf_hub_download(repo_id, file, repo_type="dataset", revision=revision))
    except (OSError, ValueError) as error:
        command = f"hf download --repo-type dataset {repo_id} {file}"
        raise UsageError(
            f"{file} of {repo_id} is not to be had from the Hub or its cache (with a network: `{command}`): "
            f"{first_line(error)}"
        ) from error


@quiet_logs(logging.ERROR)  # else it tells of every error in a line of its own beside ours
def _load_dataset(
    source: str, path: Path | None, column: str, split: str | None, config: str | None, revision: str | None
) -> list[tuple[int, dict]]:
    """Numbers and rows of a dataset of one split, or of all of them one after the other, without its pictures."""
    import datasets
    from datasets.features.features import require_decoding

    try:
        if path is not None and path.is_file():
            # A bracket in a path is one, no pattern.
            dataset = datasets.load_dataset("parquet", data_files=glob.escape(str(path)), split="train")
        elif path is not None and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
            dataset = datasets.load_from_disk(source)
            if isinstance(dataset, datasets.DatasetDict) and split is not None:
                if split not in dataset:
                    raise UsageError(f"Prompts {source}: there is no split {split!r}, only {', '.join(dataset)}.")
                dataset = dataset[split]
        else:
            files = _files_of_splits(path) if path is not None and glob.has_magic(str(path.resolve())) else None
            dataset = datasets.load_dataset(source, config, data_files=files, split=split, revision=revision)
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"Prompts {source}: {first_line(error)}") from error
    parts = list(dataset.values()) if isinstance(dataset, datasets.DatasetDict) else [dataset]
    for part in parts:
        if column not in part.column_names:
            raise UsageError(f"{source} has no column {column!r}. {suggest(column, part.column_names)}")
    if len(parts) > 1:
        dataset = datasets.concatenate_datasets([part.select_columns([column]) for part in parts])
    else:
        # Pictures would be decoded, row by row.
        dataset = parts[0].select_columns([c for c, f in parts[0].features.items() if not require_decoding(f)])
    rows = []
    try:
        for row in dataset:
            rows.append((len(rows) + 1, row))
    except UnicodeDecodeError as error:  # Arrow takes any bytes for text
        raise UsageError(f"{source}, row {len(rows) + 1}: not UTF-8 text.") from error
    return rows


def _files_of_splits(folder: Path) -> dict[str, list[str]]:
    """The files that `datasets` finds in a folder, by split. By itself it takes a bracket in the folder's path for a pattern."""
    from datasets.data_files import get_data_patterns

    base = Path(glob.escape(str(folder.resolve())))
    return {split: [str(base / p) for p in patterns] for split, patterns in get_data_patterns(str(base)).items()}


def _parse(path: Path, column: str) -> list[tuple[int, dict]]:
    """Pairs of line number (in a `.json` file, of element number) and row."""
    kind = file_type(path)
    if kind == ".txt":
        lines = enumerate(split_lines(read_text(path, WHAT)), 1)
        return [(number, {column: line}) for number, line in lines if line.strip()]
    if kind == ".json":
        return list(enumerate(_json_rows(path, column), 1))
    if kind == ".jsonl":
        rows = list(read_json_lines(path, WHAT))
        for number, row in rows:
            if not isinstance(row, dict) or column not in row:
                raise UsageError(f"{path}, line {number}: no key {column!r}.")
        return rows
    head, rows = read_table(path, WHAT)
    if column not in head:
        raise UsageError(f"{path}, line 1: no column {column!r}. {_separator(head) or suggest(column, head)}")
    return list(rows)


def _separator(head: list[str]) -> str | None:
    """What separates the columns of a table whose head was read as one field, and what to do then."""
    if len(head) == 1 and ";" in head[0]:
        return "Its columns are separated by semicolons: save it with commas, or with tabs as .tsv."
    if len(head) == 1 and "\t" in head[0]:
        return "Its columns are separated by tabs: name it .tsv."
    return "Its columns are separated by commas: name it .csv." if len(head) == 1 and "," in head[0] else None


def _json_rows(path: Path, column: str) -> list[dict]:
    """Rows of a JSON file: a list of texts, as HPDv2's benchmark is, or of objects, as its training set."""
    text = read_text(path, WHAT)
    try:
        content = parse_json_list(text)
    except JSONError as error:
        remedy = " If each line holds an object of its own, name it .jsonl." if str(error) == "Extra data" else ""
        raise UsageError(f"{path}{error.place}: not JSON ({error}).{remedy}") from error
    if not isinstance(content, list):
        raise UsageError(f"{path} must hold a list of prompts or of objects, got {type(content).__name__}.")
    for number, item in enumerate(content, 1):
        if not isinstance(item, str) and not (isinstance(item, dict) and column in item):
            raise UsageError(f"{path}, element {number}: neither a text nor an object with a key {column!r}.")
    return [{column: item} if isinstance(item, str) else item for item in content]
