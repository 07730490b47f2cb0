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


"""Preference pairs of others: in folders, in datasets, or made of scored images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset

from ..errors import UsageError
from ..sources import content_hash
from ..stages import fingerprint
from .collection import ImageCollection, check_columns, check_prompts, images_of, is_files, load_split, read_files
from .images import TrainingImages


# Names of the two folders of a pair, in ours, SimpleTuner's and sd-scripts' ways.
SIDES = (("chosen", "rejected"), ("win", "lose"), ("w", "l"))
PICK_A_PIC = ("jpg_0", "jpg_1", "label_0")


@dataclass
class Pairs:
    """
    Preference pairs.

    Args:
        prompts (`list[str]`):
            Prompt of each.
        chosen, rejected ([`TrainingImages`]):
            The better and the worse image of each.
        hash (`str`):
            What identifies content and order.
        left_out (`dict[str, int]`, *optional*):
            How many were left out, by reason.
    """

    prompts: list[str]
    chosen: TrainingImages
    rejected: TrainingImages
    hash: str
    left_out: dict[str, int] = field(default_factory=dict)


def read_pairs(
    source: str,
    rejected: str | None = None,
    prompt: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
) -> Pairs:
    """
    Pairs of a folder or a dataset.

    Args:
        source (`str`):
            A folder with `chosen/` and `rejected/`, `win/` and `lose/` or `w/` and `l/` in it or below it; or a dataset with two
            columns of images, or with those of Pick-a-Pic.
        rejected (`str`, *optional*):
            Folder of the worse images; then `source` is that of the better ones.
        prompt (`str`, *optional*):
            Prompt of the pairs that have none.
        columns (`Mapping[str, str]`, *optional*):
            Names of the columns `prompt`, `chosen` and `rejected` of a dataset.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset.
    """
    if rejected is not None:
        for folder in (source, rejected):
            if not Path(folder).is_dir():
                raise UsageError(f"{folder} is no folder of images.")
        return _pairs_of_folders([(Path(source), Path(rejected))], prompt)
    if is_files(source):
        return _pairs_of_folders(find_sides(Path(source)), prompt)
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", **(columns or {})}
    rows, left_out = load_split(source, split, "split"), {}
    if set(PICK_A_PIC) <= set(rows.column_names) and columns["chosen"] not in rows.column_names:
        columns["prompt"] = columns["prompt"] if columns["prompt"] in rows.column_names else "caption"
        labels = np.array([np.nan if label is None else label for label in rows["label_0"][:]], dtype=float)
        decided = np.flatnonzero((labels == 0) | (labels == 1))
        left_out = {"ties": len(rows) - len(decided)}
        sides = {"chosen": ("jpg_1", "jpg_0"), "rejected": ("jpg_0", "jpg_1")}
        check_columns(source, rows, {"prompt": columns["prompt"]} if prompt is None else {})
        names = [f"{source}[{row}]" for row in decided]
        both = datasets.concatenate_datasets([images_of(rows, name) for name in PICK_A_PIC[:2]])
        place = {"jpg_0": 0, "jpg_1": len(rows)}
        taken = {
            side: TrainingImages(both.select([place[of[int(labels[row])]] + row for row in decided]), names=names)
            for side, of in sides.items()
        }
    else:
        asked = columns if prompt is None else {side: columns[side] for side in ("chosen", "rejected")}
        check_columns(source, rows, dict(asked))
        decided, names = np.arange(len(rows)), [f"{source}[{row}]" for row in range(len(rows))]
        taken = {side: TrainingImages(images_of(rows, columns[side]), names=names) for side in ("chosen", "rejected")}
    column = columns["prompt"]
    prompts = rows[column][:] if column in rows.column_names else [prompt] * len(rows)
    prompts = [prompts[row] for row in decided]
    check_prompts(names, prompts)
    digest = content_hash(source) if Path(source).is_file() else rows._fingerprint
    return Pairs([" ".join(text.split()) for text in prompts], **taken, hash=digest, left_out=left_out)


def find_sides(source: Path) -> list[tuple[Path, Path]]:
    """The folders of better and of worse images in a folder or below it."""
    found = []
    for folder in (source, *sorted(path for path in source.rglob("*") if path.is_dir())):
        for sides in SIDES:
            chosen, rejected = (folder / side for side in sides)
            if chosen.is_dir() != rejected.is_dir():
                there, missing = (chosen, rejected) if chosen.is_dir() else (rejected, chosen)
                raise UsageError(f"{there} has no {missing.name} beside it.")
            if chosen.is_dir():
                found.append((chosen, rejected))
    if not found:
        named = ", or ".join(f"{chosen}/ and {rejected}/" for chosen, rejected in SIDES)
        raise UsageError(f"{source} holds no pairs: they are in {named}. Two other folders are named with --rejected.")
    return found


def _pairs_of_folders(folders: Sequence[tuple[Path, Path]], prompt: str | None) -> Pairs:
    prompts, hashes, files = [], [], {"chosen": [], "rejected": []}
    for chosen, rejected in folders:
        better, worse = (_by_stem(side) for side in (chosen, rejected))
        for there, other, missing in ((better, worse, rejected), (worse, better, chosen)):
            if alone := next((stem for stem in there if stem not in other), None):
                raise UsageError(f"{there[alone][0]} has no partner in {missing}.")
        for stem, (file, caption) in better.items():
            partner, other = worse[stem]
            if caption and other and caption != other:
                raise UsageError(f"{file} and {partner} have two captions, and are to be a pair: give them one.")
            prompts.append(caption or other or prompt)
            files["chosen"].append(str(file))
            files["rejected"].append(str(partner))
            hashes += [content_hash(file), content_hash(partner)]
    check_prompts(files["chosen"], prompts)
    taken = {
        side: TrainingImages(Dataset.from_dict({"image": names}).cast_column("image", datasets.Image()), names=names)
        for side, names in files.items()
    }
    prompts = [" ".join(text.split()) for text in prompts]
    return Pairs(prompts, **taken, hash=fingerprint([hashes, prompts]))


def _by_stem(folder: Path) -> dict[str, tuple[Path, str | None]]:
    """Images of a folder and their captions, by path in it without the ending."""
    files, captions, _ = read_files(folder, None)
    found: dict[str, tuple[Path, str | None]] = {}
    for file, caption in zip(files, captions, strict=True):
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise UsageError(f"{file} and {found[stem][0].name} have one name: of which is the pair?")
        found[stem] = file, " ".join(caption.split()) if caption else None
    return found


def best_and_worst(images: ImageCollection, score: str, lower_is_better: bool) -> Pairs:
    """Of each prompt the image with the best and that with the worst score, where these differ."""
    sign = -1.0 if lower_is_better else 1.0
    ends: dict[str, list[int]] = {}
    values = [sign * value for value in numbers(images, score)]
    for number, prompt in enumerate(images.prompts):
        best, worst = ends.setdefault(prompt, [number, number])
        ends[prompt] = [
            number if values[number] > values[best] else best,
            number if values[number] < values[worst] else worst,
        ]
    apart = {prompt: rows for prompt, rows in ends.items() if values[rows[0]] > values[rows[1]]}
    if not apart:
        raise UsageError(f"No prompt has two images that differ in {score}.")
    sides = [[rows[side] for rows in apart.values()] for side in (0, 1)]
    taken = [
        TrainingImages(images.images.rows.select(rows), names=[images.names[row] for row in rows]) for rows in sides
    ]
    return Pairs(
        list(apart), *taken, hash=images.hash, left_out={"prompts without a difference": len(ends) - len(apart)}
    )


def numbers(images: ImageCollection, column: str) -> list[float]:
    """A column of finite numbers, or an error that names the image."""
    found = []
    for name, value in zip(images.names, images.columns[column], strict=True):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = np.nan
        if not abs(number) <= float(np.finfo(np.float32).max):
            raise UsageError(f"{name}: {column} is {value!r}; it must be a finite number.")
        found.append(number)
    return found
