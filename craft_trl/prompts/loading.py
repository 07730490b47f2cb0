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

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import hf_hub_download

from ..errors import UsageError
from ..parser import suggest
from ..sources import first_line, looks_like_hub_id


if TYPE_CHECKING:
    import datasets

# HPDv2 is published as JSON files beside 32 GB of pictures, with a loading script that `datasets` no longer runs.
HPDV2 = "ymhao/HPDv2"
FILE_TYPES = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet")


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
        files = ["train.json", "test.json"] if split is None else [f"{split}.json"]
        return [row for file in files for row in load_prompt_rows(f"{HPDV2}:{file}", column, revision=revision)]
    if on_hub := re.fullmatch(r"([\w.-]+/[\w.-]+):(.+)", source):
        path = _from_hub(*on_hub.groups(), revision)
    if path.is_dir() or path.suffix == ".parquet":
        unit, rows = "row", list(enumerate(_load_dataset(source, path, column, split, config, revision), 1))
    elif path.suffix in FILE_TYPES:
        unit, rows = "element" if path.suffix == ".json" else "line", list(_parse(path, column))
    elif path.exists() or not looks_like_hub_id(source):
        kinds = ", ".join(FILE_TYPES)
        raise UsageError(f"Prompts {source}: not a {kinds} file that exists, nor a dataset id like org/name.")
    else:
        unit, rows = "row", list(enumerate(_load_dataset(source, None, column, split, config, revision), 1))
    for number, row in rows:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise UsageError(
                f"{source}, {unit} {number}: the prompt is {json.dumps(row.get(column))}; it must be text."
            )
    if not rows:
        raise UsageError(f"{source} holds no prompt.")
    return [row for _, row in rows]


def _from_hub(repo_id: str, file: str, revision: str | None) -> Path:
    if not file.endswith(FILE_TYPES):
        raise UsageError(f"{repo_id}:{file} is no {', '.join(FILE_TYPES)} file.")
    try:
        return Path(hf_hub_download(repo_id, file, repo_type="dataset", revision=revision))
    except (OSError, ValueError) as error:
        command = f"hf download --repo-type dataset {repo_id} {file}"
        raise UsageError(
            f"{file} of {repo_id} is not to be had from the Hub or its cache (with a network: `{command}`): "
            f"{first_line(error)}"
        ) from error


def _load_dataset(
    source: str, path: Path | None, column: str, split: str | None, config: str | None, revision: str | None
) -> "datasets.Dataset":
    """A dataset of one split, or of all of them one after the other, without its pictures."""
    import datasets
    from datasets.features.features import require_decoding

    try:
        if path is not None and path.is_file():
            dataset = datasets.load_dataset("parquet", data_files=str(path), split="train")
        elif path is not None and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
            dataset = datasets.load_from_disk(source)
            if isinstance(dataset, datasets.DatasetDict) and split is not None:
                if split not in dataset:
                    raise UsageError(f"Prompts {source}: there is no split {split!r}, only {', '.join(dataset)}.")
                dataset = dataset[split]
        else:
            dataset = datasets.load_dataset(source, config, split=split, revision=revision)
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"Prompts {source}: {first_line(error)}") from error
    parts = list(dataset.values()) if isinstance(dataset, datasets.DatasetDict) else [dataset]
    for part in parts:
        if column not in part.column_names:
            raise UsageError(f"{source} has no column {column!r}. {suggest(column, part.column_names)}")
    if len(parts) > 1:
        return datasets.concatenate_datasets([part.select_columns([column]) for part in parts])
    # Pictures would be decoded, row by row.
    return parts[0].select_columns([c for c, f in parts[0].features.items() if not require_decoding(f)])


def _parse(path: Path, column: str) -> Iterable[tuple[int, dict]]:
    """Pairs of line number (in a `.json` file, of element number) and row."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot read the prompts {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {line}: not UTF-8 text.") from error
    if path.suffix == ".txt":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, {column: line}
    elif path.suffix == ".json":
        yield from enumerate(_json_rows(path, text, column), 1)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UsageError(f"{path}, line {number}: not JSON ({error.msg}).") from error
                if not isinstance(row, dict) or column not in row:
                    raise UsageError(f"{path}, line {number}: no key {column!r}.")
                yield number, row
    else:
        # Tab-separated prompt lists, such as PartiPrompts, hold quotes that belong to the prompts.
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
        reader = csv.DictReader(text.splitlines(keepends=True), **dialect)
        if column not in (reader.fieldnames or ()):
            raise UsageError(f"{path}, line 1: no column {column!r}. {suggest(column, reader.fieldnames or ())}")
        for row in reader:
            yield reader.line_num, row


def _json_rows(path: Path, text: str, column: str) -> list[dict]:
    """Rows of a JSON file: a list of texts, as HPDv2's benchmark is, or of objects, as its training set."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
    if not isinstance(content, list):
        raise UsageError(f"{path} must hold a list of prompts or of objects, got {type(content).__name__}.")
    for number, item in enumerate(content, 1):
        if not isinstance(item, str) and not (isinstance(item, dict) and column in item):
            raise UsageError(f"{path}, element {number}: neither a text nor an object with a key {column!r}.")
    return [{column: item} if isinstance(item, str) else item for item in content]
