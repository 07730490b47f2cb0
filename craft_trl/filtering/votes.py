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

"""What a person says of the images of a pool: which are struck out, which are kept, which is the best of its group."""

import json
from collections.abc import Collection, Container, Sequence
from pathlib import Path

import numpy as np

from ..candidates.filter_config import HUMAN, FilterConfig
from ..candidates.groups import Group
from ..candidates.pool import CandidatePool, Key
from ..errors import UsageError
from ..texts import read_json_lines


COLUMNS = {"prompt": str, "expanded_prompt": str, "seed": int}
# With their value as a reward. An image without a vote has 0.
VOTES = {"veto": -1.0, "keep": 1.0, "best": 2.0}


def key_line(key: Key) -> str:
    """The columns of a line that name its image."""
    return json.dumps(dict(zip(COLUMNS, key, strict=True)), ensure_ascii=False)


def vote_line(key: Key, vote: str) -> str:
    """The line that votes for an image."""
    return f'{key_line(key)[:-1]}, "vote": "{vote}"}}'


def load_votes(path: str | Path, pool: Container[Key]) -> dict[Key, str]:
    """
    Votes by image: `"keep"`, `"veto"` or `"best"`.

    Args:
        path (`str` or `Path`):
            A `.jsonl` file with `prompt`, `expanded_prompt` and `seed` of an image in each line, and `vote`. A line
            without `vote` is a veto. Other columns, such as a note, are not read.
        pool (`Container[Key]`):
            What there is to vote for, such as a [`CandidatePool`].

    Raises:
        [`UsageError`]: for a line that is no vote, that is of anything else, or that says other than an earlier one of its
            image; and for two images that are the best for one prompt. It names the lines.
    """
    return _read(path, pool, "the votes", "a vote")


def load_vetoes(path: str | Path | None, pool: Container[Key]) -> list[Key]:
    """As [`load_votes`] of a file that holds nothing but vetoes: the keys of its images, none where there is no file."""
    return [] if path is None else list(_read(path, pool, "the vetoes", "a veto", ["veto"]))


def _read(
    path: str | Path, pool: Container[Key], whole: str, item: str, words: Collection[str] = VOTES.keys()
) -> dict[Key, str]:
    what = f"{item}, it needs {', '.join(COLUMNS)}"
    votes: dict[Key, str] = {}
    line_of: dict[Key, int] = {}
    best_of: dict[str, Key] = {}
    for number, row in read_json_lines(path, whole, what):
        place = f"{path}, line {number}"
        if isinstance(row, dict) and "pair" in row and "page" in row:
            raise UsageError(f"{place}: a vote of a blind comparison, which `craft blind` counts.")
        if not isinstance(row, dict) or not COLUMNS.keys() <= row.keys():
            raise UsageError(f"{place}: not {what}.")
        key = tuple(row[name] for name in COLUMNS)
        if [type(value) for value in key] != list(COLUMNS.values()):
            raise UsageError(f"{place}: {item} has two texts and a whole number, got {list(key)}.")
        vote = row.get("vote", "veto")
        if not isinstance(vote, str) or vote not in VOTES:
            raise UsageError(f"{place}: vote must be one of {', '.join(VOTES)}, got {vote!r}.")
        if vote not in words:
            raise UsageError(f"{place}: a vote for {vote}, which is no veto: give the file as votes.")
        named = f"{key[1]!r} for {key[0]!r} with seed {key[2]}"
        if key not in pool:
            raise UsageError(f"{place}: the pool has no image of {named}. Was it made for another pool?")
        if votes.setdefault(key, vote) != vote:
            raise UsageError(f"{path}, lines {line_of[key]} and {number}: {votes[key]} and {vote} for {named}.")
        line_of.setdefault(key, number)
        if vote == "best" and (other := best_of.setdefault(key[0], key)) != key:
            raise UsageError(f"{path}, lines {line_of[other]} and {number}: two images are the best for {key[0]!r}.")
    return votes


def vetoes_of(config: FilterConfig, pool: Container[Key]) -> list[Key]:
    """Images that are struck out by the votes or vetoes of a filter."""
    if config.votes is None:
        return load_vetoes(config.veto, pool)
    return [key for key, vote in load_votes(config.votes, pool).items() if vote == "veto"]


def veto_mask(vetoes: Collection[Key], groups: Sequence[Group]) -> np.ndarray:
    """Which images of the groups are vetoed, bool of shape `(G, 1 + n)`, column 0 being the originals."""
    vetoed = set(vetoes)
    return np.array([[key in vetoed for key in group.keys] for group in groups])


class VotedPool(CandidatePool):
    """
    A pool, to be read, that has votes as one reward more: `human`, 2 for the best of a group, 1 for what is to be kept, -1 for
    what is vetoed and 0 without a vote.

    Args:
        pool ([`CandidatePool`]):
            The pool, which stays as it is.
        votes (`dict[Key, str]`):
            Votes, as of [`load_votes`].
    """

    def __init__(self, pool: CandidatePool, votes: dict[Key, str]):
        if HUMAN in pool.rewards:
            raise UsageError(
                f"{pool.folder} has a reward named {HUMAN}, as votes are to be: leave votes out, or name the reward "
                "otherwise."
            )
        vars(self).update(vars(pool))
        self.rewards = [*pool.rewards, HUMAN]
        values = {key: VOTES[vote] for key, vote in votes.items()}
        self.scores = {key: np.append(scores, np.float32(values.get(key, 0.0))) for key, scores in pool.scores.items()}


def with_votes(pool: CandidatePool, config: FilterConfig) -> CandidatePool:
    """The pool with the votes of a filter as the reward `human`, or as it is where there are none or it has them."""
    if config.votes is None or isinstance(pool, VotedPool):
        return pool
    return VotedPool(pool, load_votes(config.votes, pool))
