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

"""The contact sheet: every candidate beside its original, with what the filter says of it, to look at and to vote on."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from ..candidates.filter_config import HUMAN, FilterConfig
from ..candidates.groups import Group
from ..candidates.pool import CandidatePool, Key
from ..conditions import split_conditions
from ..errors import NothingToDoError, UsageError
from ..pages import render, thumbnail
from ..progress import progress_bar
from ..stages import fingerprint, write_atomically
from .filter import each_candidate
from .votes import VOTES, key_line, load_vetoes, load_votes


# Bytes of a page. Chrome's JavaScript has no text beyond 536,870,888 characters, and all of them are in one.
LARGEST = 500_000_000
MARK = '<meta name="generator" content="craft_trl contact sheet">'


def write_sheet(
    path: Path,
    groups: Sequence[Group],
    pool: CandidatePool,
    config: FilterConfig,
    num_groups: int | None = None,
    only: Literal["all", "kept", "dropped"] = "all",
    thumbnail_size: int = 192,
) -> dict[str, int]:
    """
    Write a self-contained HTML page of candidates, on which votes are given, saved and loaded.

    The page says what the filter says without votes, and counts votes on top of that as they are given. Those of
    `config.votes` or `config.veto` are on it; those of images that are not on the page are kept when it saves.

    Args:
        path (`Path`):
            File to write. A sheet that is there is replaced, any other file is refused.
        groups (`Sequence[Group]`):
            Prompts with their variants. Those of which the pool has no original yet are left out.
        pool ([`CandidatePool`]):
            Images and scores.
        config ([`FilterConfig`]):
            What passes.
        num_groups (`int`, *optional*):
            Show so many groups, evenly spaced over those there are. Defaults to all.
        only (`"all"`, `"kept"` or `"dropped"`, *optional*, defaults to `"all"`):
            Show groups of which the filter keeps an image, or those of which it keeps none.
        thumbnail_size (`int`, *optional*, defaults to `192`):
            Longer side of the pictures in pixels; smaller images stay as they are.

    Returns:
        `dict[str, int]`: `groups` and `images` on the page, `waiting`, the groups that have no original yet, `votes`
        and `bytes`.
    """
    check_sheet(path)
    votes = load_votes(config.votes, pool) if config.votes else dict.fromkeys(load_vetoes(config.veto, pool), "veto")
    drawn = [group for group in groups if group.keys[0] in pool]
    said = config.without_votes()
    shown = range(len(drawn))
    if only != "all":
        kept = (any(row["keep"] for row in rows) for rows in _by_group(drawn, pool, said))
        shown = [i for i, keep in enumerate(kept) if keep == (only == "kept")]
    if not shown:
        raise NothingToDoError(
            f"There is nothing to show: of {len(groups)} groups, {len(drawn)} are drawn, none {only}."
        )
    if num_groups is not None and num_groups < len(shown):
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, num_groups).round().astype(int)]
    chosen = set(shown)
    by_group = [(drawn[i], rows) for i, rows in enumerate(_by_group(drawn, pool, said)) if i in chosen]

    keys = [key for group, _ in by_group for key in group.keys if key in pool]
    pictures = make_thumbnails(pool, keys, thumbnail_size, len(by_group))
    compared, limits = split_conditions(config.conditions(pool.rewards))
    sheet = {
        "rewards": pool.rewards,
        "signs": pool.signs.tolist(),  # -1 where less is better
        "filter_rewards": said.conditions(pool.rewards),
        # What the filter asks of votes, which only the page knows.
        "human": {
            "compared": config.votes is not None and HUMAN in compared,
            "limits": [[x.sign, x.value] for x in limits if config.votes is not None and x.reward == HUMAN],
        },
        "values": VOTES,
        "words": list(VOTES),
        "level": config.filter_level,
        "groups": [_group(group, rows, pool, pictures) for group, rows in by_group],
        "votes": [[key_line(key), vote] for key, vote in votes.items()],
        # Under this name the browser remembers votes that are not saved yet.
        "memory": fingerprint(["votes", keys, sorted(votes.items()), config.filter_level]),
    }
    page = render("sheet.html", sheet=sheet, folder=str(pool.folder.parent), thumbnail_size=thumbnail_size)
    write_atomically(path, page)
    return {
        "groups": len(by_group),
        "images": len(keys),
        "waiting": len(groups) - len(drawn),
        "votes": len(votes),
        "bytes": path.stat().st_size,
    }


def check_sheet(path: Path) -> None:
    """Raise a [`UsageError`] if a file that is no sheet is in the way."""
    if path.is_file():
        with path.open("rb") as file:
            if MARK.encode() in file.read(1000):
                return
    if path.exists():
        raise UsageError(f"{path} is there and is no contact sheet: choose another sheet_file.")


def _by_group(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig) -> Iterator[list[dict]]:
    """What the filter says of the images of each group."""
    rows = each_candidate(groups, pool, config) if groups else iter(())
    for group in groups:
        yield [next(rows) for _ in group.keys]


def make_thumbnails(pool: CandidatePool, keys: Sequence[Key], size: int, num_groups: int) -> dict[Key, str]:
    """
    A small picture of each image, WebP in base64, decoded and encoded on threads. They are in memory together, as on the
    page: a [`UsageError`] if that would be more than a browser takes, by the first of them and all texts.
    """
    ordered = pool.by_shard(keys)
    images = pool.images(ordered)
    pictures: dict[Key, str] = {}
    # An image's prompt is in its vote, its own text there too, and scores and names are some 300 characters.
    texts = sum(len(prompt) + 2 * len(text) + 300 for prompt, text, _ in keys)
    with ThreadPoolExecutor() as threads, progress_bar(total=len(keys), unit="image", desc="Thumbnails") as bar:
        # In pieces: `map` would read the whole pool into memory at once.
        for start in range(0, len(ordered), 64):
            part = ordered[start : start + 64]
            pngs = [next(images) for _ in part]
            pictures.update(zip(part, threads.map(lambda png: thumbnail(png, size), pngs), strict=True))
            bar.update(len(part))
            if start == 0 and (expected := texts + len(keys) * sum(map(len, pictures.values())) / len(part)) > LARGEST:
                fold = 2 * int(expected / LARGEST)
                raise UsageError(
                    f"A page of {len(keys):,} images would be {expected / 1e6:,.0f} MB, and browsers take "
                    f"{LARGEST / 1e6:,.0f}: show fewer groups, such as num_groups {max(1, num_groups // fold)}, or smaller "
                    "pictures, by thumbnail_size."
                )
    return pictures


def _group(group: Group, rows: list[dict], pool: CandidatePool, pictures: dict[Key, str]) -> dict:
    samples = [
        {
            "variant": row["variant"],
            "text": row["expanded_prompt"],
            "scores": [row[name] for name in pool.rewards],
            "reason": row["drop_reason"],
            "advantage": row["advantage"],
            "line": key_line(key),
            "picture": pictures[key],
        }
        for key, row in zip(group.keys, rows, strict=True)
        if key in pool
    ]
    return {"id": group.group_id, "prompt": group.prompt, "missing": len(rows) - len(samples), "samples": samples}
