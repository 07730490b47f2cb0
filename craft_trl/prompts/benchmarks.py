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
Published prompt sets by name: where they are, what they hold, and how they are read.

None is copied into this repository. They are fetched from their public homes at a pinned commit, for evaluation (`prompts:
geneval`, or `geneval=./copy.jsonl` for a copy in the published format) and to be kept out of training (`exclude_prompts`).
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from ..errors import UsageError
from ..parser import suggest
from ..sources import HubFiles, first_line
from .loading import HPDV2, file_type, hub_files, load_prompt_rows


@dataclass(frozen=True)
class WebFile:
    """
    A file behind a URL, kept in the cache of the Hub.

    Args:
        url (`str`):
            Where it is.
        sha256 (`str`):
            Its hash; git's own hash of it is written `git:HASH`.
    """

    url: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where it is kept."""
        name = self.url.rsplit("/", 1)[1]
        return Path(constants.HF_HOME) / "craft_trl" / f"{self.sha256.removeprefix('git:')[:16]}-{name}"


@dataclass(frozen=True)
class PublishedPrompts:
    """
    A benchmark's prompt lists at their public home.

    Args:
        sources (`tuple[str, ...]`):
            `org/name:file` on the Hub, or URLs.
        size (`int`, *optional*):
            Number of prompts. A source with another number is an error.
        column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompt.
        revision (`str`, *optional*):
            Commit on the Hub. A URL holds its own.
        sha256 (`str`, *optional*):
            Hash of the file behind a URL; git's own hash of it is written `git:HASH`.
        part (`str`, *optional*):
            Column of the style or category that results are broken down by.
        parts (`tuple[str, ...]`, *optional*):
            Values of that column for as many equal blocks of rows, where the files have no such column.
        fold (`Callable[[list[dict]], list[dict]]`, *optional*):
            From the rows of the files to those of the prompts, where a prompt has several.
    """

    sources: tuple[str, ...]
    size: int | None = None
    column: str = "prompt"
    revision: str | None = None
    sha256: str | None = None
    part: str | None = None
    parts: tuple[str, ...] = ()
    fold: Callable[[list[dict]], list[dict]] | None = None

    @property
    def files(self) -> "list[HubFiles | WebFile]":
        """Where it is published."""
        if self.sha256 is not None:
            return [WebFile(source, self.sha256) for source in self.sources]
        return [files for source in self.sources for files in hub_files(source, revision=self.revision)]

    def load(self) -> list[str]:
        """The prompts, downloaded once."""
        return [row["prompt"] for row in self.load_rows()]

    def load_rows(self, path: str | Path | None = None) -> list[dict]:
        """
        Rows with `prompt`, the column of the style or category, and what else the files have.

        Args:
            path (`str` or `Path`, *optional*):
                A copy in the published format: the file, or the folder of the files where there are several. Defaults
                to the public home, or its copy in the cache.
        """
        if path is None:
            sources = [
                source if self.sha256 is None else str(download(source, self.sha256)) for source in self.sources
            ]
        elif Path(path).is_dir():
            sources = [str(Path(path) / source.rpartition("/")[2]) for source in self.sources]
        elif len(self.sources) == 1:
            sources = [str(path)]
        else:
            names = ", ".join(source.rpartition("/")[2] for source in self.sources)
            raise UsageError(f"{path}: give the folder of {names}.")
        rows = [row for s in sources for row in load_prompt_rows(s, self.column, revision=self.revision)]
        if self.fold is not None:
            try:
                rows = self.fold(rows)
            except (LookupError, ValueError) as error:
                raise UsageError(
                    f"{path or sources[0]} is not in the published format: {first_line(error)}."
                ) from error
        if self.size not in (None, len(rows)):
            raise UsageError(f"{path or sources[0]} holds {len(rows)} prompts, expected {self.size}.")
        rows = [row if self.fold else {"prompt": row[self.column], **row} for row in rows]
        if self.parts:
            block = len(rows) // len(self.parts)
            rows = [{**row, self.part: self.parts[i // block]} for i, row in enumerate(rows)]
        return rows


def dpg_prompts(rows: Sequence[Mapping[str, Any]], skip_first: bool = False) -> list[dict[str, Any]]:
    """
    DPG-Bench's prompts out of the rows of its table, of which each is a question.

    Args:
        rows (`Sequence[Mapping]`):
            Rows with `item_id`, `text`, `proposition_id`, `dependency`, `tuple` and `question_natural_language`.
        skip_first (`bool`, *optional*, defaults to `False`):
            Whether to pass over the first row, as the published script does, and to leave out the prompt that lacks a
            question for that.

    Returns:
        `list[dict]`: of each prompt `prompt`, `item_id` and `questions`, a list of `id`, `parents`, `tuple` and `question`.
    """
    prompts: dict[str, dict[str, Any]] = {}
    for row in rows[1:] if skip_first else rows:
        item = prompts.setdefault(row["item_id"], {"prompt": row["text"], "item_id": row["item_id"], "questions": []})
        parents = [int(part) for part in str(row["dependency"]).split(",")]
        item["questions"].append(
            {
                "id": int(row["proposition_id"]),
                "parents": parents,
                "tuple": row["tuple"],
                "question": row["question_natural_language"],
            }
        )
    whole = []
    for item in prompts.values():
        ids = {0, *(question["id"] for question in item["questions"])}
        lacking = {parent for question in item["questions"] for parent in question["parents"]} - ids
        if lacking and not skip_first:
            raise ValueError(f"{item['item_id']} depends on question {min(lacking)}, which is not there")
        whole += [] if lacking else [item]
    return whole


HPD_STYLES = ("anime", "concept-art", "paintings", "photo")
HPDV2_REVISION = "bb0f2563e451e11c3f376b2ba93615db00e042e1"
GITHUB = "https://raw.githubusercontent.com"
BENCHMARKS = {
    # The file has no styles; its prompts come in four blocks.
    "hpdv2-test": PublishedPrompts(
        (f"{HPDV2}:test.json",), size=400, revision=HPDV2_REVISION, part="style", parts=HPD_STYLES
    ),
    "hpdv2-benchmark": PublishedPrompts(
        tuple(f"{HPDV2}:benchmark/{style}.json" for style in HPD_STYLES),
        size=3200,
        revision=HPDV2_REVISION,
        part="style",
        parts=HPD_STYLES,
    ),
    # 200 prompts of the Imagen paper, as the HPSv2 benchmark uses them, without their categories
    "drawbench": PublishedPrompts((f"{HPDV2}:benchmark/drawbench.json",), size=200, revision=HPDV2_REVISION),
    "partiprompts": PublishedPrompts(
        (f"{GITHUB}/google-research/parti/5a657978134374ce28973948331b319adef164bd/PartiPrompts.tsv",),
        size=1632,
        column="Prompt",
        sha256="fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
        part="Category",
    ),
    "geneval": PublishedPrompts(
        (f"{GITHUB}/djghosh13/geneval/af4902f24d3ca90ebbb446dd9891a59e0f82725f/prompts/evaluation_metadata.jsonl",),
        size=553,
        sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
        part="tag",
    ),
    # The distinct ones of the 500 test prompts of Pick-a-Pic v2, which is no longer on the Hub itself
    "pickapic-test": PublishedPrompts(
        (f"{GITHUB}/AIDC-AI/Diffusion-SDPO/84fb241c1b89705a247da8b0d6047798ca49830d/prompts/papv2.json",),
        size=487,
        sha256="531f3ca923035b5f17dbcbc60a7d7dfa476219e59b0e99617bb3f0afabf5663b",
    ),
    # CC BY-NC 4.0
    "geneval2": PublishedPrompts(
        (f"{GITHUB}/facebookresearch/GenEval2/a6e82d2289e8d418f27f0adee77908b07060eea3/geneval2_data.jsonl",),
        size=800,
        sha256="09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43",
        part="atom_count",
    ),
    "dpg": PublishedPrompts(
        (f"{GITHUB}/TencentQQGYLab/ELLA/3c228f1dc6c4d3cad0a47493816151a419f14db3/dpg_bench/dpg_bench.csv",),
        size=1065,
        column="text",
        sha256="git:98457fc9901943f51ff9a30367250fc292533bed",
        fold=dpg_prompts,
    ),
}


def published_files(source: str) -> "list[HubFiles | WebFile]":
    """What [`load_evaluation_prompts`] reads from a network."""
    name, _, path = source.partition("=")
    if name in BENCHMARKS:
        return [] if path else BENCHMARKS[name].files
    return [*hub_files(source)]


def load_evaluation_prompts(source: str, column: str = "prompt") -> tuple[list[dict], str, str | None]:
    """
    Prompts to evaluate on.

    Args:
        source (`str`):
            Name of a published set, or `NAME=PATH` for a copy of one, or what [`load_prompt_rows`] reads.
        column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompt, unless the set is a published one.

    Returns:
        `tuple[list[dict], str, str | None]`: rows, the column of the prompt, and that of the style or category, if the
        set has one.
    """
    name, _, path = source.partition("=")
    if name in BENCHMARKS:
        return BENCHMARKS[name].load_rows(path or None), "prompt", BENCHMARKS[name].part
    if not (file_type(source) or os.path.exists(source) or "/" in source):
        remedy = suggest(name, BENCHMARKS)
        raise UsageError(f"Prompts {source}: neither a file, a dataset id nor a published set. {remedy}")
    rows = load_prompt_rows(source, column)
    repeated = [key for key, n in Counter(json.dumps(row["id"]) for row in rows if "id" in row).items() if n > 1]
    if repeated:
        raise UsageError(f"{source}: the id {repeated[0]} is there more than once.")
    return rows, column, None


def download(url: str, sha256: str) -> Path:
    """A file from the network, kept in the cache of the Hub and checked by its hash, see [`PublishedPrompts`]."""
    path = WebFile(url, sha256).path
    if path.exists():
        return path
    remedy = f"Download it by hand, and give its path instead: {url}"
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"{path.name} is not in the cache, and HF_HUB_OFFLINE is set. {remedy}")
    from torch.hub import download_url_to_file

    path.parent.mkdir(parents=True, exist_ok=True)
    by_git = sha256.startswith("git:")
    target = path.with_name(f".{path.name}.{os.getpid()}") if by_git else path
    try:
        # Writes to a temporary name, and renames only what has the hash.
        download_url_to_file(url, str(target), hash_prefix=None if by_git else sha256, progress=False)
        if by_git:
            content = target.read_bytes()
            if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != sha256.removeprefix("git:"):
                raise RuntimeError("it is not the file that was pinned")
            target.replace(path)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{url} cannot be had: {first_line(error)}. {remedy}") from error
    finally:
        if by_git:
            target.unlink(missing_ok=True)
    return path
