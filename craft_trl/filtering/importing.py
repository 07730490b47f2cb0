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


"""Images and pairs of others as a training set, pairs or a pool, with where they came from and under which licence."""

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from datasets import Dataset, Features, Value
from PIL import Image, ImageOps

from ..candidates.groups import Group, save_groups
from ..candidates.pool import CandidatePool
from ..errors import UsageError
from ..progress import progress_bar
from ..sources import looks_like_hub_id
from ..stages import Stage, write_atomically
from .collection import ImageCollection
from .dataset import PIECE, save_pieces
from .images import TrainingImages


SHARD = 64  # images of a shard of a pool


def check_images(images: Iterable[TrainingImages], one_size: bool) -> None:
    """
    Look at every image, and raise a [`UsageError`] unless all can be read and, if they are to, have one size in multiples of 8.
    """
    first: tuple[tuple[int, int], str] | None = None
    for part in images:
        for size, row in part.check().items():
            first = first or (size, part.names[row])
            if one_size and (size != first[0] or size[0] % 8 or size[1] % 8):
                said = "{}x{}".format(*size)
                other = "" if size == first[0] else f" and {first[1]} {'{}x{}'.format(*first[0])}"
                raise UsageError(
                    f"{part.names[row]} has {said}{other}: a model is trained on images of one size, in multiples of 8. Give "
                    "it with --height and --width; then they are scaled and cut."
                )


def stored(images: TrainingImages, row: int, size: tuple[int, int] | None) -> bytes:
    """The file of an image; of another size, scaled, cut in the middle and written as PNG."""
    if size is not None:
        buffer = io.BytesIO()
        ImageOps.fit(images[row], size, Image.Resampling.LANCZOS).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()
    kept = images.rows[row][images.column]
    return kept["bytes"] if kept["bytes"] is not None else Path(kept["path"]).read_bytes()


def save_training_set(
    folder: Path, columns: Mapping[str, list], pictures: Mapping[str, TrainingImages], size: tuple[int, int] | None
) -> int:
    """Write a `DatasetDict` with the split `train`, with one piece of the images in memory at a time; the number of rows."""
    kinds = {name: Value("string" if isinstance(values[0], str) else "float32") for name, values in columns.items()}
    features = Features({name: datasets.Image() for name in pictures} | kinds)
    count = len(next(iter(columns.values())))

    def pieces() -> Iterator[Dataset]:
        part: list[dict[str, Any]] = []
        held = 0
        for row in progress_bar(range(count), unit="row", desc="Copying images"):
            files = {name: stored(images, row, size) for name, images in pictures.items()}
            part.append(
                {name: {"bytes": data, "path": None} for name, data in files.items()}
                | {name: values[row] for name, values in columns.items()}
            )
            held += sum(map(len, files.values()))
            if held > PIECE:
                yield Dataset.from_list(part, features=features)
                part, held = [], 0
        if part:
            yield Dataset.from_list(part, features=features)

    temporary = folder / ".train.tmp"  # it gets its name when it is complete
    shutil.rmtree(temporary, ignore_errors=True)
    save_pieces(pieces(), temporary)
    temporary.replace(folder / "train")
    write_atomically(folder / datasets.config.DATASETDICT_JSON_FILENAME, json.dumps({"splits": ["train"]}))
    return count


def group_images(
    images: ImageCollection, drawn_from: str | None = None, group_size: int | None = None
) -> tuple[list[Group], list[list[int]], int]:
    """
    Groups of the images of each prompt, with the number of each image, and how many prompts were left out.

    What the others are compared with is the image that was drawn from the prompt itself, where a column says what each was
    drawn from, else the first.

    Args:
        images ([`ImageCollection`]):
            The images.
        drawn_from (`str`, *optional*):
            Column of the text that an image was drawn from.
        group_size (`int`, *optional*):
            Images of a group, the first ones; prompts with fewer are left out. Defaults to all, of which every prompt must
            have as many.
    """
    texts = images.prompts
    if drawn_from is not None:
        texts = [" ".join(str(text).split()) for text in images.columns[drawn_from]]
    rows_of: dict[str, list[int]] = {}
    for number, prompt in enumerate(images.prompts):
        rows_of.setdefault(prompt, []).append(number)
    kept = {prompt: rows for prompt, rows in rows_of.items() if len(rows) >= (group_size or 0)}
    if not kept:
        raise UsageError(f"group_size is {group_size}, and no prompt has so many images.")
    (first, first_rows), *others = kept.items()
    for prompt, rows in others if group_size is None else ():
        if len(rows) != len(first_rows):
            raise UsageError(
                f"{prompt!r} has {len(rows)} images ({images.names[rows[0]]}) and {first!r} {len(first_rows)} "
                f"({images.names[first_rows[0]]}): a pool needs as many of each. --group_size takes the first so many, and "
                "leaves out prompts with fewer."
            )
    groups, chosen = [], []
    for number, (prompt, rows) in enumerate(kept.items()):
        original = next((row for row in rows if texts[row] == prompt), None)
        if original is None:
            raise UsageError(
                f"No image of {prompt!r} was drawn from the prompt itself ({images.names[rows[0]]} was drawn from "
                f"{texts[rows[0]]!r}): the others are compared with that one."
            )
        rows = [original, *(row for row in rows if row != original)][:group_size]
        if len(rows) < 2:
            raise UsageError(
                f"{prompt!r} has one image ({images.names[rows[0]]}): in a pool an image is compared with others."
            )
        groups.append(Group(number, prompt, tuple(texts[row] for row in rows[1:]), tuple(range(len(rows)))))
        chosen.append(rows)
    return groups, chosen, len(rows_of) - len(kept)


def save_pool(
    folder: Path,
    images: ImageCollection,
    groups: Sequence[Group],
    rows: Sequence[Sequence[int]],
    scores: Mapping[str, list[float]],
    lower_is_better: set[str],
    model: str,
    size: tuple[int, int] | None,
) -> int:
    """Write the folder of a run: its groups, its pool, and a recipe for the commands that need no model; the number of images."""
    stage = Stage("import", folder / "pool", {"images": images.hash, "rewards": dict.fromkeys(scores, "imported")})
    stage.begin()
    pool = CandidatePool(stage.folder, list(scores))
    pool.lower_is_better = set(lower_is_better)
    work = [pair for group, taken in zip(groups, rows, strict=True) for pair in zip(group.keys, taken, strict=True)]
    missing = [(key, row) for key, row in work if key not in pool]
    with progress_bar(total=len(missing), unit="image", desc="Copying images") as bar:
        for start in range(0, len(missing), SHARD):
            keys, taken = zip(*missing[start : start + SHARD], strict=True)
            pictures = [images.images[row] for row in taken]
            if size is not None:
                pictures = [ImageOps.fit(picture, size, Image.Resampling.LANCZOS) for picture in pictures]
            pool.append(
                keys, pictures, {name: np.array([values[row] for row in taken]) for name, values in scores.items()}
            )
            bar.update(len(keys))
    stage.finish(images=len(pool))
    (folder / "prompts").mkdir(exist_ok=True)
    save_groups(groups, folder / "prompts" / "groups.jsonl")
    recipe = {
        "model_name_or_path": model,
        "prompts": "./prompts/groups.jsonl",
        "templates": ["{prompt}"],
        "num_variants": len(groups[0].expanded_prompts),
        "rewards": [f"{name}=craft_trl.rewards.imported:given" for name in scores],
        "output_dir": "./",
    }
    note = "# Written by `craft import`: for `craft filter`, `craft sheet` and `craft export-dataset`.\n"
    write_atomically(folder / "candidates.yaml", note + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    return len(pool)


@dataclass(frozen=True)
class Origin:
    """
    Where images came from.

    Args:
        source (`str`):
            As it was named; of the Hub, with its commit.
        licence (`str`, *optional*):
            Licence by its card.
        files (`tuple[Path, ...]`, *optional*):
            Files with the text of a licence.
    """

    source: str
    licence: str | None = None
    files: tuple[Path, ...] = ()


def find_origin(source: str) -> Origin:
    """The licence that a source states: in the card of a dataset on the Hub, or in the README of a folder, and its LICENSE."""
    path = Path(source)
    if path.exists():
        folder = path if path.is_dir() else path.parent
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        files = sorted(
            file for file in folder.iterdir() if file.is_file() and file.stem.upper() in ("LICENSE", "LICENCE")
        )
        return Origin(source, _licence(text), tuple(files))
    if not looks_like_hub_id(source):
        return Origin(source)
    from huggingface_hub import DatasetCard, HfApi

    try:
        card, sha = DatasetCard.load(source).content, HfApi().dataset_info(source).sha
    except Exception:  # there is no card, or no network: it says nothing
        return Origin(f"{source} (https://huggingface.co/datasets/{source})")
    return Origin(f"{source}@{sha} (https://huggingface.co/datasets/{source})", _licence(card))


def _licence(card: str) -> str | None:
    _, front, text = (card.split("---\n", 2) + ["", ""])[:3] if card.startswith("---\n") else ("", "", "")
    try:
        stated = (yaml.safe_load(front) or {}).get("license") if text or front else None
    except (yaml.YAMLError, AttributeError):
        return None
    return ", ".join(map(str, stated)) if isinstance(stated, list) else stated and str(stated)


def write_card(folder: Path, what: str, origins: Sequence[Origin], licence: str | None, notes: Sequence[str]) -> None:
    """A README that says what there is, where it came from and under which licence; texts of licences are copied beside it."""
    stated = dict.fromkeys(origin.licence for origin in origins if origin.licence)
    front = licence or (next(iter(stated)) if len(stated) == 1 and all(o.licence for o in origins) else None)
    lines = [f"---\nlicense: {json.dumps(front)}\n---\n"] if front else []
    lines += [f"# {what}\n", "Imported by craft_trl from:\n"]
    for number, origin in enumerate(origins, 1):
        said = f"licence: {origin.licence}" if origin.licence else "it states no licence"
        for file in origin.files:
            name = f"{file.stem}-{number}{file.suffix}" if len(origins) > 1 else file.name
            shutil.copyfile(file, folder / name)
            said += f", its text in {name}"
        lines.append(f"- {origin.source}; {said}")
    if licence:
        lines.append(f"\nWho imported them says: {licence}.")
    elif not stated:
        lines.append("\nUnder which licence they may be used is not known here: find out before you pass them on.")
    else:
        lines.append("\nThese licences hold for the copies too.")
    lines += [f"\n{note}" for note in notes]
    write_atomically(folder / "README.md", "\n".join(lines) + "\n")
