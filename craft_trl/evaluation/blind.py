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

"""Two models judged by people who do not know which is which: the pairs, the page, and what votes say."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..candidates.pool import CandidatePool, Key
from ..errors import UsageError
from ..filtering.sheet import LARGEST
from ..pages import render, thumbnail
from ..progress import progress_bar
from ..stages import fingerprint, read_record, write_atomically
from ..texts import read_json_lines
from .statistics import paired_bootstrap, sign_test, wilson


PAGE, KEY = "blind.html", "key.json"
WORDS = ("left", "right", "tie")
POWER = 194  # prompts with a winner that show 60 % of wins to be no chance, at 5 %, four times in five


@dataclass(frozen=True)
class Pair:
    """
    Two images of one prompt, side by side.

    Args:
        id (`str`):
            What the page and votes call it.
        prompt (`str`), seed (`int`):
            What both are made from.
        left (`str`), right (`str`):
            The models.
        repeats (`str`, *optional*):
            Id of the pair that it shows again with its sides changed.
    """

    id: str
    prompt: str
    seed: int
    left: str
    right: str
    repeats: str | None = None


class Evaluated:
    """
    What an evaluation has drawn.

    Args:
        folder (`str` or `Path`):
            Its `output_dir`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        record = read_record(self.folder)
        if record is None or record["stage"] != "evaluate":
            raise UsageError(f"{folder} is not the folder of an evaluation: `craft evaluate` makes one.")
        if not record["finished"]:
            raise UsageError(f"The evaluation {folder} is not finished: run `craft evaluate` again.")
        self.settings, self.fingerprint = record["settings"], record["fingerprint"]
        self.table = pq.read_table(self.folder / "scores.parquet", columns=["model", "prompt", "text", "seed"])
        self.models = list(dict.fromkeys(self.table["model"].to_pylist()))

    def choose(self, models: Sequence[str] | None) -> tuple[str, str]:
        """The two models to compare, by default the base and the last one."""
        names = ", ".join(self.models)
        if models is None:
            named = list(self.settings["models"])  # beside them there is the base on expanded prompts
            models = [self.models[0], named[-1] if len(named) > 1 else self.models[-1]]
        for name in models:
            if name not in self.models:
                raise UsageError(f"models: the evaluation {self.folder} has no {name}. It has {names}.")
        if len(models) != 2 or models[0] == models[1]:
            raise UsageError(f"models must be two different ones of {names}; got {', '.join(models)}.")
        return tuple(models)

    def keys(self, model: str) -> list[Key]:
        """Prompt, text and seed of each image of a model."""
        rows = self.table.to_pylist()
        return [(row["prompt"], row["text"], row["seed"]) for row in rows if row["model"] == model]

    def pool(self, model: str) -> CandidatePool:
        """The images of a model."""
        settings, drawn_by = self.settings, model.removesuffix("+expansion")
        made_from = fingerprint([settings["models"][drawn_by], settings["sampling"], settings["rewards"]])
        folder = self.folder / "images" / made_from[:12]
        pool = CandidatePool(folder, list(settings["rewards"]), verify=False)
        if any(key not in pool for key in self.keys(model)):
            raise UsageError(
                f"{folder} lacks images of {model}. If it was taken from earlier results, compare where those were made; "
                "else run `craft evaluate` again."
            )
        return pool


def make_pairs(
    evaluated: Evaluated, models: tuple[str, str], num_pairs: int | None = None, repeat: float = 0.05, seed: int = 0
) -> list[Pair]:
    """
    The pairs in the order in which they are shown.

    Sides and order are drawn by hashes of the evaluation's fingerprint, which the page does not have, and `seed`. Each model
    stands on the left in half of the pairs. Those that are shown again come last.

    Args:
        evaluated ([`Evaluated`]):
            The evaluation.
        models (`tuple[str, str]`):
            The two models.
        num_pairs (`int`, *optional*):
            So many pairs, evenly spaced over the images. Defaults to all.
        repeat (`float`, *optional*, defaults to `0.05`):
            Share of the pairs that is shown a second time with its sides changed.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sides and order.
    """

    def drawn(what: str, item: Any) -> str:
        return hashlib.sha256(json.dumps([evaluated.fingerprint, models, seed, what, item]).encode()).hexdigest()

    images = [(prompt, number) for prompt, _, number in evaluated.keys(models[0])]
    if num_pairs is not None and num_pairs < len(images):
        images = [images[i] for i in np.linspace(0, len(images) - 1, num_pairs).round().astype(int)]
    by_side = sorted(images, key=lambda image: drawn("side", image))
    on_the_left = set(by_side[: len(images) // 2])
    pairs = []
    for image in sorted(images, key=lambda image: drawn("order", image)):
        left, right = models if image in on_the_left else models[::-1]
        pairs.append(Pair(drawn("id", image)[:12], *image, left, right))
    again = sorted(pairs, key=lambda pair: drawn("again", pair.id))[: round(repeat * len(pairs))]
    return pairs + [Pair(drawn("id again", p.id)[:12], p.prompt, p.seed, p.right, p.left, p.id) for p in again]


def write_page(folder: Path, evaluated: Evaluated, models: tuple[str, str], pairs: Sequence[Pair], size: int) -> int:
    """
    Write the page, and the key that says which model stands where.

    Args:
        folder (`Path`):
            Where to.
        evaluated ([`Evaluated`]):
            The evaluation.
        models (`tuple[str, str]`):
            The two models.
        pairs (`Sequence[Pair]`):
            The pairs, of [`make_pairs`].
        size (`int`):
            Longer side of the pictures in pixels; smaller images stay as they are.

    Returns:
        `int`: bytes of the page.
    """
    pictures = {model: _pictures(evaluated, model, pairs, size) for model in models}
    page = fingerprint([pair.id for pair in pairs])[:12]
    shown = [
        {
            "id": pair.id,
            "prompt": pair.prompt,
            "left": pictures[pair.left][pair.prompt, pair.seed],
            "right": pictures[pair.right][pair.prompt, pair.seed],
        }
        for pair in pairs
    ]
    if (expected := sum(len(pair["left"]) + len(pair["right"]) for pair in shown)) > LARGEST:
        raise UsageError(
            f"A page of {len(pairs):,} pairs would be {expected / 1e6:,.0f} MB, and browsers take {LARGEST / 1e6:,.0f}: "
            "lower num_pairs or image_size."
        )
    key = {"page": page, "models": models, "pairs": [asdict(pair) for pair in pairs]}
    data = {"page": page, "pairs": [{"id": pair.id, "prompt": pair.prompt} for pair in pairs]}
    write_atomically(folder / KEY, json.dumps(key, indent=1) + "\n")
    write_atomically(folder / PAGE, render("blind.html", pairs=shown, data=data))
    return (folder / PAGE).stat().st_size


def _pictures(evaluated: Evaluated, model: str, pairs: Sequence[Pair], size: int) -> dict[tuple[str, int], str]:
    """
    A model's images by prompt and seed. All are encoded anew, so that of a file and its metadata nothing is left.
    """
    pool, wanted = evaluated.pool(model), {(pair.prompt, pair.seed) for pair in pairs}
    ordered = pool.by_shard(key for key in evaluated.keys(model) if (key[0], key[2]) in wanted)
    images, pictures = pool.images(ordered), {}
    with ThreadPoolExecutor() as threads, progress_bar(total=len(ordered), unit="image", desc="Pictures") as bar:
        for start in range(0, len(ordered), 64):
            part = ordered[start : start + 64]
            pngs = [next(images) for _ in part]
            encoded = threads.map(lambda png: thumbnail(png, size, quality=92), pngs)
            pictures |= {(key[0], key[2]): picture for key, picture in zip(part, encoded, strict=True)}
            bar.update(len(part))
    return pictures


@dataclass(frozen=True)
class Vote:
    """What somebody said of a pair: `"left"`, `"right"` or `"tie"`."""

    pair: Pair
    word: str
    session: str

    def score(self, model: str) -> float:
        """1 where a model won, 0 where it lost, 0.5 for a tie."""
        return 0.5 if self.word == "tie" else float(getattr(self.pair, self.word) == model)


def load_key(folder: str | Path) -> dict:
    """The key of a page, with its pairs by id."""
    record = read_record(folder)
    if record is None or record["stage"] != "blind" or not record["finished"]:
        raise UsageError(
            f"{folder} is not the folder of a blind comparison: `craft blind` makes one of an evaluation."
        )
    key = json.loads((Path(folder) / KEY).read_text(encoding="utf-8"))
    pairs = [Pair(**pair) for pair in key["pairs"]]
    return key | {"pairs": {pair.id: pair for pair in pairs}}


def load_blind_votes(paths: Iterable[str | Path], key: dict) -> list[Vote]:
    """
    Votes of one or more people.

    Args:
        paths (`Iterable[str | Path]`):
            Files that the page saved: `page`, `pair`, `vote` and `session` in each line.
        key (`dict`):
            The page's key, of [`load_key`].

    Raises:
        [`UsageError`]: for a line that is no vote, that is of another page, or of a pair that its session has voted on in
            another line. It names file and line.
    """
    votes, place_of = [], {}
    for path in paths:
        for number, row in read_json_lines(path, "the votes", "a vote"):
            place = f"{path}, line {number}"
            if isinstance(row, dict) and "expanded_prompt" in row:
                raise UsageError(f"{place}: a vote of a contact sheet, which `craft filter` takes.")
            names = ("page", "pair", "vote", "session")
            if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
                raise UsageError(f"{place}: not a vote, it needs the texts {', '.join(names)}.")
            if row["page"] != key["page"]:
                raise UsageError(f"{place}: a vote of another page, {row['page']!r}; this one is {key['page']!r}.")
            if row["pair"] not in key["pairs"]:
                raise UsageError(f"{place}: the page has no pair {row['pair']!r}.")
            if row["vote"] not in WORDS:
                raise UsageError(f"{place}: vote must be one of {', '.join(WORDS)}, got {row['vote']!r}.")
            who = row["session"], row["pair"]
            if who in place_of:
                raise UsageError(
                    f"{place}: a second vote on the pair {row['pair']!r} by one person; the first is {place_of[who]}."
                )
            place_of[who] = place
            votes.append(Vote(key["pairs"][row["pair"]], row["vote"], row["session"]))
    if not votes:
        raise UsageError(f"{', '.join(map(str, paths))}: there are no votes.")
    return votes


def tally(votes: Sequence[Vote], models: Sequence[str], num_bootstrap: int = 2000) -> dict[str, Any]:
    """
    How often the second model wins.

    Ties count half. Votes on one prompt are no independent ones, so that prompts are what is counted: a prompt's share is the mean of
    its votes. The 95 % interval is Wilson's where each prompt has one vote, else the paired bootstrap over prompts, but where no
    two prompts differ, which leaves nothing to resample: then it is Wilson's again, of as many as there are prompts. The p-value
    is that of the exact sign test over prompts, those of as many wins as losses left out. Pairs that are shown again have no part in it.

    Args:
        votes (`Sequence[Vote]`):
            Votes.
        models (`Sequence[str]`):
            The two models.
        num_bootstrap (`int`, *optional*, defaults to `2000`):
            Resamples of the prompts.

    Returns:
        `dict`: `win_rate`, `ci_low`, `ci_high`, `interval` (`"wilson"` or `"bootstrap"`), `p_value`, `prompts`, `decided` (prompts
        with a winner), `votes`, `wins`, `ties`, `losses`, `people`; `left`, how often the left picture won of those votes that are no tie, with
        `left_ci`; and of the pairs that were shown again to somebody `again` and `agreed`, how often the same was said of both.
    """
    model = models[1]
    first = [vote for vote in votes if vote.pair.repeats is None]
    if not first:
        raise UsageError("All votes are on pairs that are shown again: there is nothing to count.")
    by_prompt: dict[str, list[float]] = {}
    for vote in first:
        by_prompt.setdefault(vote.pair.prompt, []).append(vote.score(model))
    shares = np.array([np.mean(scores) for scores in by_prompt.values()])
    share, n = float(shares.mean()), len(shares)
    interval = "wilson" if len(first) == n or np.ptp(shares) == 0 else "bootstrap"
    if interval == "wilson":
        low, high = wilson(share, n)
    else:
        found = paired_bootstrap(shares, np.full(n, 0.5), num_bootstrap)
        low, high = found["ci_low"] + 0.5, found["ci_high"] + 0.5
    wins, losses = int((shares > 0.5).sum()), int((shares < 0.5).sum())
    said = {(vote.session, vote.pair.id): vote for vote in votes}
    again = [
        (vote.score(model), said[vote.session, vote.pair.repeats].score(model))
        for vote in votes
        if (vote.session, vote.pair.repeats) in said
    ]
    sides = [vote.word for vote in votes if vote.word != "tie"]
    left = sides.count("left") / len(sides) if sides else None
    scores = [vote.score(model) for vote in first]
    return {
        "model": model,
        "base": models[0],
        "metric": "human",
        "role": "held_out",
        "win_rate": share,
        "ci_low": low,
        "ci_high": high,
        "interval": interval,
        "p_value": sign_test(wins, losses),
        "prompts": n,
        "decided": wins + losses,
        "votes": len(first),
        "wins": scores.count(1.0),
        "ties": scores.count(0.5),
        "losses": scores.count(0.0),
        "people": len({vote.session for vote in votes}),
        "left": left,
        "left_ci": wilson(left, len(sides)) if sides else None,
        "again": len(again),
        "agreed": sum(one == other for one, other in again),
    }


def describe_tally(found: dict[str, Any]) -> str:
    """What a [`tally`] says, in lines."""
    model, base, n = found["model"], found["base"], found["prompts"]
    how = "Wilson, a vote for each prompt" if found["interval"] == "wilson" else "bootstrap over prompts"
    if found["interval"] == "wilson" and found["votes"] > n:
        how = "Wilson, over prompts that all say the same"
    decided = found["wins"] + found["losses"]
    alone = f"; without ties {found['wins'] / decided:.1%}" if decided else ""
    better = f"People prefer {model if found['win_rate'] > 0.5 else base}"
    told = better if found["p_value"] < 0.05 else f"People cannot be said to prefer {model} or {base}"
    lines = [
        f"{model} against {base}: {found['win_rate']:.1%} wins, ties counting half, 95 % interval {found['ci_low']:.1%} to "
        f"{found['ci_high']:.1%} ({how})",
        f"  {found['votes']} votes on {n} prompts by {found['people']} people: {found['wins']} for {model}, {found['ties']} ties, "
        f"{found['losses']} for {base}{alone}",
        f"{told}: p = {found['p_value']:.4f}, sign test over the {found['decided']} prompts that have a winner.",
    ]
    if found["p_value"] >= 0.05 and found["decided"] < POWER:
        lines.append(
            f"  To tell 60 % of wins from chance takes {POWER} such prompts, four times in five: "
            f"{POWER - found['decided']} more."
        )
    if found["left"] is not None:
        low, high = found["left_ci"]
        warning = "" if low <= 0.5 <= high else ": the side matters to whoever votes"
        lines.append(f"  The left picture won {found['left']:.1%} ({low:.1%} to {high:.1%}){warning}")
    if found["again"]:
        lines.append(f"  Pairs shown again: the same was said of {found['agreed']} of {found['again']}")
    return "\n".join(lines)
