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
Folders of images with captions as other trainers read them.

An image `N_craft/000001.png` has its caption, one line, in `000001.txt` beside it, which kohya's sd-scripts (with
`caption_extension = ".txt"`), OneTrainer, SimpleTuner and ai-toolkit read; `metadata.jsonl` is what `datasets` reads.
Three files with the settings of the first three point there. Of repeats, SimpleTuner's 0 is once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Image

from ..candidates.pool import CandidatePool
from ..conditions import describe
from ..progress import progress_bar


def write_images(
    folder: Path,
    rows: Sequence[dict],
    pool: CandidatePool,
    captions: str,
    repeats: int,
    origin: dict[str, Any],
) -> None:
    """
    Write the images of rows of [`filter_candidates`].

    Args:
        folder (`Path`):
            Where to.
        rows (`Sequence[dict]`):
            The rows.
        pool ([`CandidatePool`]):
            Their images.
        captions (`"original"` or `"expanded"`):
            Which prompt is the caption.
        repeats (`int`):
            How often an image is shown in an epoch.
        origin (`dict`):
            For the card: `model`, `prompts`, `conditions`, `level` and `candidates`.
    """
    part = folder / f"{repeats}_craft"
    part.mkdir(parents=True, exist_ok=True)
    keys = [(row["prompt"], row["expanded_prompt"], row["seed"]) for row in rows]
    column, lines = "prompt" if captions == "original" else "expanded_prompt", []
    bar = progress_bar(zip(rows, pool.images(keys), strict=True), total=len(rows), unit="image", desc="Writing images")
    for number, (row, png) in enumerate(bar, 1):
        name, caption = f"{number:06d}", " ".join(row[column].split())
        (part / f"{name}.png").write_bytes(png)
        (part / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
        scores = {reward: row[reward] for reward in pool.rewards}
        lines.append(
            {"file_name": f"{part.name}/{name}.png", "text": caption, "prompt": row["prompt"], "seed": row["seed"]}
            | {"advantage": row["advantage"], **scores}
        )
    write_lines(folder / "metadata.jsonl", lines)
    write_settings(folder, part, repeats)
    level = ", in a group where every variant does" if origin["level"] == "group" else ""
    write_card(
        folder,
        f"{len(rows)} images with captions",
        f"Chosen are those that {describe(origin['conditions'])}{level}. `advantage` in metadata.jsonl is the weight that CRAFT "
        "gives an image; a trainer that shows each equally often leaves it out.",
        origin,
    )


def write_pairs(folder: Path, pairs: Dataset, repeats: int, origin: dict[str, Any]) -> None:
    """
    Write preference pairs of [`build_pairs`] twice: as `win/` and `lose/` with equal names, which SimpleTuner's Flow-DPO reads,
    and as `pairs.parquet` with the columns of Pick-a-Pic, which DiffusionDPO and its kin read.
    """
    rows: dict[str, list] = {name: [] for name in ("caption", "jpg_0", "jpg_1", "label_0", "label_1", "margin")}
    pairs = pairs.cast_column("chosen", Image(decode=False)).cast_column("rejected", Image(decode=False))
    for number, pair in enumerate(progress_bar(pairs, unit="pair", desc="Writing pairs"), 1):
        caption = " ".join(pair["prompt"].split())
        for side, column in (("win", "chosen"), ("lose", "rejected")):
            part = folder / side
            part.mkdir(parents=True, exist_ok=True)
            (part / f"{number:06d}.png").write_bytes(pair[column]["bytes"])
            (part / f"{number:06d}.txt").write_text(caption + "\n", encoding="utf-8")
        values = caption, pair["chosen"]["bytes"], pair["rejected"]["bytes"], 1.0, 0.0, pair["margin"]
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    pq.write_table(pa.table(rows), folder / "pairs.parquet")
    backends = [backend("craft-win", folder / "win", repeats) | {"conditioning_data": ["craft-lose"]}]
    lose = backend("craft-lose", folder / "lose", repeats)
    lose |= {"dataset_type": "conditioning", "conditioning_type": "reference_strict", "source_dataset_id": "craft-win"}
    write_json(folder / "multidatabackend.json", [*backends, lose, text_embeds(folder)])
    write_card(
        folder,
        f"{len(pairs)} preference pairs",
        f"A pair is two candidates of one prompt, of which one is better by {', '.join(origin['conditions'])}: `jpg_0`, in `win/`. "
        "`margin` is the difference of their advantages.",
        origin,
    )


def write_settings(folder: Path, part: Path, repeats: int) -> None:
    """Settings of three trainers that name the folder of images. Resolutions and batches are the trainer's own to choose."""
    path = json.dumps(str(part.absolute()))  # a basic string of TOML is one of JSON
    toml = f'[[datasets]]\n\n[[datasets.subsets]]\nimage_dir = {path}\ncaption_extension = ".txt"\nnum_repeats = {repeats}\n'
    (folder / "kohya.toml").write_text(toml, encoding="utf-8")
    concept = {"__version": 2, "name": "craft", "path": str(part.absolute()), "enabled": True, "type": "STANDARD"}
    concept |= {"balancing": float(repeats), "balancing_strategy": "REPEATS", "text": {"prompt_source": "sample"}}
    write_json(folder / "concepts.json", [concept])
    write_json(folder / "multidatabackend.json", [backend("craft", part, repeats), text_embeds(folder)])


def backend(name: str, part: Path, repeats: int) -> dict[str, Any]:
    """A folder of images as SimpleTuner's dataloader names it."""
    return {
        "id": name,
        "type": "local",
        "instance_data_dir": str(part.absolute()),
        "caption_strategy": "textfile",
        "cache_dir_vae": str(part.absolute().parent / "cache" / name),
        "repeats": repeats - 1,
    }


def text_embeds(folder: Path) -> dict[str, Any]:
    """Where SimpleTuner keeps the prompts' embeddings, which it asks for."""
    cache = str(folder.absolute() / "cache" / "text")
    return {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": cache}


def write_card(folder: Path, what: str, note: str, origin: dict[str, Any]) -> None:
    """A README that says what there is and where it came from."""
    (folder / "README.md").write_text(
        f"# {what}\n\n"
        f"Drawn by `{origin['model']}` from the prompts of `{origin['prompts']}`, and chosen by craft_trl out of {origin['candidates']} "
        f"candidates. {note}\n\n"
        "The licences of that model and of those prompts hold for these images too.\n",
        encoding="utf-8",
    )


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
