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

"""Which prompts: read from their source, without repetitions and benchmark prompts, and sampled."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from ..errors import UsageError
from ..parser import suggest
from ..ranges import Count, Range, check_ranges
from ..sources import HubFiles
from .benchmarks import BENCHMARKS, WebFile, published_files
from .duplicates import find_near_duplicates, normalise
from .loading import check_prompt, file_type, hub_files, load_prompt_rows


@dataclass
class PromptsConfig:
    """
    Configuration of the prompts that candidates are drawn for.

    Parameters:
        prompts (`str`):
            A `.txt`, `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet` file, a folder with a dataset, a dataset on the
            Hub (`org/name`), or one file of it (`org/name:path/in/it.json`). `ymhao/HPDv2` is read by its metadata,
            without its pictures.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompt.
        prompt_split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset.
        prompt_config (`str`, *optional*):
            Configuration of a dataset that has several.
        prompt_revision (`str`, *optional*):
            Revision on the Hub.
        num_prompts (`int`, *optional*):
            Size of a seeded sample of the prompts. Defaults to all of them.
        near_duplicate_threshold (`float`, *optional*):
            Drop prompts whose similarity with an earlier one, or with one of `exclude_prompts`, reaches this share of
            words and word pairs in common, see [`find_near_duplicates`]. Defaults to dropping equal prompts only.
        exclude_prompts (`list[str]`, *optional*):
            Prompts that must not be among them: names of benchmarks (`hpdv2-test`, `hpdv2-benchmark`, `drawbench`,
            `partiprompts`, `geneval`, `geneval2`, `dpg`, `pickapic-test`; `NAME=PATH` for a copy of its files), or sources as
            in `prompts`, with all their splits. A source whose column has another name is written `COLUMN=SOURCE`.
    """

    prompts: str = field(
        default=None,
        metadata={"help": "A file or folder of prompts, a dataset on the Hub, or one file of it, org/name:file."},
    )
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompt."})
    prompt_split: str = field(default="train", metadata={"help": "Split of a dataset."})
    prompt_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset that has several."})
    prompt_revision: str | None = field(default=None, metadata={"help": "Revision on the Hub."})
    num_prompts: Count | None = field(
        default=None, metadata={"help": "Size of a seeded sample of the prompts. Defaults to all of them."}
    )
    near_duplicate_threshold: Annotated[float, Range(0, 1, "(]")] | None = field(
        default=None,
        metadata={
            "help": "Drop prompts that share this much of their words and word pairs with an earlier or excluded one, "
            "such as 0.8. Defaults to dropping equal prompts only."
        },
    )
    exclude_prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "Benchmarks, files or datasets whose prompts are left out: NAME, SOURCE or COLUMN=SOURCE."},
    )

    def __post_init__(self):
        if not self.prompts:
            raise UsageError("prompts is missing: give it in the recipe or as --prompts.")
        check_ranges(self)

    def load_prompts(self, seed: int) -> tuple[list[str], dict[str, Any]]:
        """The prompts, and how many were left out and why, see [`select_prompts`]."""
        rows = load_prompt_rows(
            self.prompts, self.prompt_column, self.prompt_split, self.prompt_config, self.prompt_revision
        )
        return select_prompts(
            [row[self.prompt_column] for row in rows],
            {source: load_excluded(source, self.prompt_column) for source in self.exclude_prompts},
            self.near_duplicate_threshold,
            self.num_prompts,
            seed,
            self.prompts,
        )


def load_prompts(
    source: str | Sequence[str],
    column: str = "prompt",
    num_prompts: int | None = None,
    seed: int = 0,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    exclude: Sequence[str] = (),
    near_duplicate_threshold: float | None = None,
) -> list[str]:
    """
    Distinct prompts of a source, in its order or as a seeded sample.

    Args:
        source (`str` or `Sequence[str]`):
            A file, a folder, a dataset on the Hub or one file of it, as in [`PromptsConfig`], or the prompts.
        column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompt, unless the source is a `.txt` file or a list.
        num_prompts (`int`, *optional*):
            Size of the sample, see [`select_prompts`]. Defaults to all prompts.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sample.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset.
        config (`str`, *optional*):
            Configuration of a dataset that has several.
        revision (`str`, *optional*):
            Revision on the Hub.
        exclude (`Sequence[str]`, *optional*):
            Benchmarks, files or datasets whose prompts are left out, as in [`PromptsConfig`].
        near_duplicate_threshold (`float`, *optional*):
            Similarity from which a prompt is a near duplicate. Defaults to dropping equal prompts only.

    Returns:
        `list[str]`: prompts without repetitions, white space collapsed.
    """
    if isinstance(source, str):
        texts = [row[column] for row in load_prompt_rows(source, column, split, config, revision)]
    else:
        texts = list(source)
        for number, text in enumerate(texts, 1):
            check_prompt(text, f"The list, element {number}")
    excluded = {name: load_excluded(name, column) for name in exclude}
    name = source if isinstance(source, str) else "the list"
    return select_prompts(texts, excluded, near_duplicate_threshold, num_prompts, seed, name)[0]


def select_prompts(
    texts: Sequence[str],
    exclude: Mapping[str, Sequence[str]],
    near_duplicate_threshold: float | None = None,
    num_prompts: int | None = None,
    seed: int = 0,
    source: str = "the list",
) -> tuple[list[str], dict[str, Any]]:
    """
    Prompts without repetitions and without those that are to be excluded.

    Prompts are equal if they are after [`normalise`]; the first is kept, as it is written. Then those equal to an
    excluded one are dropped, then near duplicates, then the sample is drawn. The sample is the prompts with the
    smallest hash of seed and prompt, so that a larger sample begins with the smaller, and rows that are added to the
    source leave most of a sample as it was.

    Args:
        texts (`Sequence[str]`):
            Prompts.
        exclude (`Mapping[str, Sequence[str]]`):
            By name, prompts that are to be left out.
        near_duplicate_threshold (`float`, *optional*):
            Similarity from which a prompt counts as a repetition of an earlier or excluded one, see
            [`find_near_duplicates`]. Defaults to equal prompts only.
        num_prompts (`int`, *optional*):
            Size of the sample. Defaults to all, in their order.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sample.
        source (`str`, *optional*, defaults to `"the list"`):
            Where the prompts come from, for error messages.

    Returns:
        `tuple[list[str], dict]`: the prompts, and counts: `read`, `repeated`, `near_duplicates`, `excluded` (by name; a
        prompt of several counts for the first) and `left`, all before sampling.
    """
    prompts: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        prompts.setdefault(normalise(text), " ".join(text.split()))
    owner: dict[str, str] = {}
    for name, excluded in exclude.items():
        for text in excluded:
            owner.setdefault(normalise(text), name)
    counts: dict[str, Any] = {"read": len(texts), "repeated": len(texts) - len(prompts)}
    counts["excluded"] = dict.fromkeys(exclude, 0)
    for key in prompts.keys() & owner.keys():
        counts["excluded"][owner[key]] += 1
        del prompts[key]
    if near_duplicate_threshold is not None:
        against = list(owner)
        matches = find_near_duplicates(list(prompts), near_duplicate_threshold, against)
        counts["near_duplicates"] = 0
        for key, match in zip(list(prompts), matches, strict=True):
            if match is None:
                continue
            number, is_excluded = match
            if is_excluded:
                counts["excluded"][owner[against[number]]] += 1
            else:
                counts["near_duplicates"] += 1
            del prompts[key]
    left = list(prompts.values())
    counts["left"] = len(left)
    if not left:
        raise UsageError(f"No prompt of {source} is left: all are repeated or in {', '.join(exclude)}.")
    if num_prompts is None:
        return left, counts
    if not 1 <= num_prompts <= len(left):
        raise UsageError(f"num_prompts must be from 1 to {len(left)}, the prompts in {source}; got {num_prompts}.")
    left.sort(key=lambda prompt: hashlib.sha256(f"{seed} {prompt}".encode()).digest())
    return left[:num_prompts], counts


def excluded_files(source: str) -> list[HubFiles | WebFile]:
    """What [`load_excluded`] reads from a network."""
    if source.partition("=")[0] in BENCHMARKS:
        return published_files(source)
    return [*hub_files(_column_and_source(source, "")[1], split=None)]


def _column_and_source(source: str, column: str) -> tuple[str, str]:
    name, equals, path = source.rpartition("=")
    return (name, path) if equals and not os.path.exists(source) else (column, source)


def load_excluded(source: str, column: str = "prompt") -> list[str]:
    """
    Prompts to leave out: of a benchmark, `NAME` or, for a copy, `NAME=PATH`; or of `SOURCE` or `COLUMN=SOURCE`, with all
    its splits.
    """
    name, _, copy = source.partition("=")
    if name in BENCHMARKS:
        return [row["prompt"] for row in BENCHMARKS[name].load_rows(copy or None)]
    name, path = _column_and_source(source, column)
    if not os.path.exists(path) and "/" not in path and not file_type(path):
        raise UsageError(f"exclude_prompts: there is no benchmark or file {path!r}. {suggest(path, BENCHMARKS)}")
    return [row[name] for row in load_prompt_rows(path, name, split=None)]
