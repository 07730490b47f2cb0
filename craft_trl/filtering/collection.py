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


"""Images that are there already, wherever they come from: files, folders with captions, datasets."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from ..errors import UsageError
from ..sources import WHAT_MAKES_DATASETS, first_line, looks_like_hub_id, sha256
from ..stages import fingerprint
from ..texts import read_json_lines, read_table, read_text
from .images import TrainingImages


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
CAPTIONS = (".txt", ".caption")  # beside an image, under its name
METADATA = ("metadata.jsonl", "metadata.csv")  # of a folder, as `datasets` has it: file_name, and what else there is
TEXT_COLUMNS = ("prompt", "text", "caption")


class ImageCollection:
    """
    Images with prompts, in the order in which they were named.

    Args:
        sources (`Sequence[str]`):
            Image files, folders of them, dataset folders of `save_to_disk`, `.parquet` files, or datasets on the Hub.
        prompt (`str`, *optional*):
            Prompt of the images that have none of their own.
        image_column (`str`, *optional*, defaults to `"image"`), prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Columns of datasets.
        split (`str`, *optional*, defaults to `"train"`):
            Split of datasets.
        columns (`Sequence[str]`, *optional*):
            Other columns that are kept, of datasets and of the metadata of folders.

    Attributes:
        names (`list[str]`):
            Path of each image, or of one in a dataset that and its row.
        prompts (`list[str]`):
            Prompt of each.
        images (`TrainingImages`):
            The images in RGB, see [`TrainingImages`].
        columns (`dict[str, list]`):
            The other columns, a value an image.
        hash (`str`):
            What identifies content and order.

    Raises:
        [`UsageError`]: for a source that is not there, an image without a prompt, or with two, or without another column.
    """

    def __init__(
        self,
        sources: Sequence[str],
        prompt: str | None = None,
        image_column: str = "image",
        prompt_column: str = "prompt",
        split: str = "train",
        columns: Sequence[str] = (),
    ):
        self.names: list[str] = []
        self.prompts: list[str] = []
        self.columns: dict[str, list] = {name: [] for name in columns}
        parts, hashes = [], []
        for source in sources:
            if is_files(source):
                files, prompts, others = read_files(Path(source), prompt)
                names = list(map(str, files))
                rows = Dataset.from_dict({"image": [{"bytes": None, "path": name} for name in names]})
                hashes += [sha256(file) for file in files]
                for column, values in self.columns.items():
                    for name, row in zip(names, others, strict=True):
                        if row.get(column) is None:
                            raise UsageError(f"{name} has no {column!r}: the metadata of its folder gives it none.")
                        values.append(row[column])
            else:
                rows = load_split(source, split, "split")
                asked = {"image": image_column} | ({} if prompt is not None else {"prompt": prompt_column})
                check_columns(source, rows, asked, columns)
                names = [f"{source}[{row}]" for row in range(len(rows))]
                prompts = rows[prompt_column][:] if prompt_column in rows.column_names else [prompt] * len(rows)
                hashes.append(sha256(Path(source)) if Path(source).is_file() else rows._fingerprint)
                for column, values in self.columns.items():
                    values += rows[column][:]
                rows = images_of(rows, image_column)
            check_prompts(names, prompts)
            self.names += names
            self.prompts += [" ".join(text.split()) for text in prompts]
            parts.append(images_of(rows, "image"))
        if not self.names:
            raise UsageError(f"{', '.join(sources)}: there are no images.")
        check_once(self.names)
        self.images = TrainingImages(datasets.concatenate_datasets(parts), names=self.names)
        self.hash = fingerprint([hashes, self.prompts, *([self.columns] if columns else [])])

    def __len__(self) -> int:
        return len(self.names)


def images_of(rows: Dataset, column: str) -> Dataset:
    """A column of images, of their files or of their paths, as the column `image` of a dataset, not decoded."""
    rows = rows.select_columns(column)
    rows = rows if column == "image" else rows.rename_column(column, "image")
    return rows.cast_column("image", datasets.Image(decode=False))


def check_columns(source: str, rows: Dataset, asked: dict[str, str], others: Sequence[str] = ()) -> None:
    """Raise a [`UsageError`] unless a dataset has the columns that options name, by option, and the other ones."""
    has = ", ".join(rows.column_names)
    for option, column in asked.items():
        if column not in rows.column_names:
            remedy = ", or give one prompt for all with --prompt" if option == "prompt" else ""
            raise UsageError(
                f"{source} has no column {column!r}; it has {has}. Name it with --{option}_column{remedy}."
            )
    for column in others:
        if column not in rows.column_names:
            raise UsageError(f"{source} has no column {column!r}; it has {has}.")


def check_prompts(names: Sequence[str], prompts: Sequence[str | None]) -> None:
    """Raise a [`UsageError`] that names the image unless each has a prompt that says something."""
    for name, text in zip(names, prompts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{name} has no prompt. Give it one, or one for all with --prompt.")


def check_once(names: Sequence[str]) -> None:
    """Raise a [`UsageError`] if an image is named twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{name} is named twice.")
        seen.add(name)


def is_files(source: str) -> bool:
    """Whether a source is an image file or a folder of them, and no dataset."""
    path = Path(source)
    if path.is_file():
        return path.suffix.lower() != ".parquet"
    return path.is_dir() and not (path / "dataset_dict.json").exists() and not is_dataset(path)


def is_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (folder / "state.json").exists() and (folder / "dataset_info.json").exists()


def read_files(source: Path, prompt: str | None) -> tuple[list[Path], list[str | None], list[dict[str, Any]]]:
    """
    An image file or those of a folder, sorted, with their captions, `prompt` for those without, and with what else the
    metadata of the folder says of each.
    """
    if source.is_file():
        files, table = [source], {}
        if source.suffix.lower() not in SUFFIXES:
            raise UsageError(f"{source} is no image: it must end in {', '.join(SUFFIXES)}.")
    else:
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not files:
            raise UsageError(f"{source} holds no images, which end in {', '.join(SUFFIXES)}.")
        table = read_metadata(source)
    prompts, others = [], []
    for file in files:
        beside = [file.with_suffix(suffix) for suffix in CAPTIONS if file.with_suffix(suffix).is_file()]
        said = [(path.name, read_text(path, "the caption")) for path in beside]
        for where, text in said:
            if (count := len(text.split("\n")) - text.split("\n").count("")) > 1:
                # Trainers take the first one, or one by chance, or all of them as one.
                raise UsageError(f"{file} has {count} captions, a line each, in {where}: leave one.")
        row: dict[str, Any] = {}
        if file in table:
            where, column, row = table.pop(file)
            said.append((where, row[column]))
        if len({" ".join(text.split()) for _, text in said}) > 1:
            raise UsageError(f"{file} has two captions, in {' and '.join(where for where, _ in said)}.")
        prompts.append(said[0][1] if said else prompt)
        others.append(row)
    if table:
        raise UsageError(f"{source}: its metadata names {next(iter(table))}, which is not there.")
    return files, prompts, others


def read_metadata(folder: Path) -> dict[Path, tuple[str, str, dict[str, Any]]]:
    """By image the place where a folder's metadata speaks of it, the column of its prompt, and the row."""
    rows_of: dict[Path, tuple[str, str, dict[str, Any]]] = {}
    for file in (folder / name for name in METADATA if (folder / name).is_file()):
        rows = read_table(file, "the metadata")[1] if file.suffix == ".csv" else read_json_lines(file, "the metadata")
        for line, row in rows:
            given = row if isinstance(row, dict) else {}
            column = next((name for name in TEXT_COLUMNS if isinstance(given.get(name), str)), None)
            if not isinstance(given.get("file_name"), str) or column is None:
                raise UsageError(f"{file}, line {line}: it needs file_name and one of {', '.join(TEXT_COLUMNS)}.")
            path = folder / row["file_name"]
            if path in rows_of:
                raise UsageError(f"{file}, line {line}: {row['file_name']} is named twice.")
            rows_of[path] = f"{file.name}, line {line}", column, row
    return rows_of


def load_split(name: str, split: str, option: str, config: str | None = None) -> Dataset:
    """
    A split of a dataset folder or of a dataset on the Hub, or a `.parquet` file.

    Args:
        name (`str`):
            Folder, file or Hub id.
        split (`str`):
            Its split; a folder may hold a dataset without splits.
        option (`str`):
            The option that names the split, for messages.
        config (`str`, *optional*):
            Configuration on the Hub.
    """
    if Path(name).is_dir():
        if not any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json")):
            raise UsageError(
                f"Dataset {name}: this folder holds no dataset that `datasets` saved. {WHAT_MAKES_DATASETS}"
            )
        try:
            dataset = load_from_disk(name)
        except IndexError as error:  # what datasets says to a split without rows (5.2)
            raise UsageError(f"Dataset {name}: it has no rows.") from error
        except Exception as error:  # datasets has another error for every file that is damaged or not there
            raise UsageError(
                f"Dataset {name}: it cannot be read ({first_line(error)}). `craft filter` makes one anew where its folder is "
                "moved away."
            ) from error
    elif Path(name).is_file() and Path(name).suffix.lower() == ".parquet":
        try:  # a bracket in a path is one, no pattern
            return load_dataset("parquet", data_files=glob.escape(name), split="train")
        except Exception as error:  # datasets and Arrow have errors of their own each
            raise UsageError(f"{name} cannot be read: {first_line(error)}") from error
    elif not looks_like_hub_id(name):
        raise UsageError(f"{name}: there is no such file or folder.")
    else:
        try:
            dataset = load_dataset(name, config)
        except (OSError, ValueError, DatasetNotFoundError) as error:
            raise UsageError(
                f"Dataset {name}: there is no such folder, and the Hub says: {first_line(error)}"
            ) from error
    if isinstance(dataset, Dataset):
        return dataset
    if split not in dataset:
        raise UsageError(f"{option} {split!r} is not in {name}, which has {', '.join(dataset)}.")
    return dataset[split]
