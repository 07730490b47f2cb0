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

"""Rounds: whether another one is worth its price, by what the filter and the held-out judges say of the last one."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ..stages import write_atomically
from .statistics import LEVEL, paired_bootstrap, paired_p


ROUNDS = "rounds.json"
RULE = (
    "Another round follows as long as the held-out gain rises from round to round, by its mean, and the share of variants that pass "
    "the filter does not fall beyond chance. The gain is the mean of the held-out judges' differences from the base model, each in standard "
    "deviations of the base model's images. What is kept is the round with the largest."
)


@dataclass
class Round:
    """
    What came of a round.

    Args:
        round (`int`):
            Its number, from 1.
        model (`str`):
            Folder of its model.
        pass_rate (`float`):
            Share of the variants that pass the filter, of all groups that it looked at.
        gain (`float`, *optional*):
            Held-out gain over the base model; `None` of a round that was not trained.
        ci_low, ci_high (`float`, *optional*):
            Its 95 % interval, by paired bootstrap over prompts.
        decision (`str`):
            What followed, and why.
    """

    round: int
    model: str
    pass_rate: float
    gain: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    decision: str = ""


class Rounds:
    """
    The rounds of a run so far, and what they decide. Every decision follows from the records of finished stages alone, so that
    a run that is started again decides the same.

    Args:
        folder (`str` or `Path`):
            Folder of the run, in which `rounds.json` is written.
        asked (`int`):
            Rounds that were asked for.
    """

    def __init__(self, folder: str | Path, asked: int):
        self.folder, self.asked = Path(folder), asked
        self.rounds: list[Round] = []
        self.passing: list[np.ndarray] = []  # of each round what it was given, see `filtered`

    @property
    def best(self) -> Round:
        """The round with the largest held-out gain, the first of equals."""
        return max((r for r in self.rounds if r.gain is not None), key=lambda r: r.gain)

    def filtered(self, model: str, passing: np.ndarray) -> bool:
        """
        Take note of what the filter of the next round has kept; whether it is trained.

        Args:
            model (`str`):
                Folder of the round's model.
            passing (`np.ndarray` of shape `(G,)`):
                Share of the variants of each group that pass, of all groups that the filter looked at, see [`pass_shares`].
        """
        current = Round(len(self.rounds) + 1, model, float(passing.mean()))
        before = self.passing[-1] if self.passing else passing
        self.rounds.append(current)
        self.passing.append(passing)
        # The same groups, against the same originals; with a target one round may have looked at more of them.
        n = min(len(passing), len(before))
        if current.round > 1 and not passing.any():
            current.decision = "stops untrained: no variant passes the filter"
        elif current.pass_rate < before.mean() and paired_p(passing[:n], before[:n]) < LEVEL:
            current.decision = (
                f"stops untrained: {current.pass_rate:.1%} of the variants pass the filter, beyond chance fewer than the "
                f"{before.mean():.1%} of round {current.round - 1}"
            )
        if current.decision:
            self._write()
        return not current.decision

    def evaluated(self, evaluation: Path, name: str) -> bool:
        """Take note of the evaluation of the last round, whose model has this name there; whether another round follows."""
        current, *earlier = reversed(self.rounds)
        last = held_out_gains(evaluation)[name]
        interval = paired_bootstrap(last, np.zeros_like(last))
        current.gain, current.ci_low, current.ci_high = interval["delta"], interval["ci_low"], interval["ci_high"]
        before = earlier[0].gain if earlier else 0.0
        reference = f"round {earlier[0].round}'s {before:+.3f}" if earlier else "the base model's 0"
        risen = current.gain > before
        on = risen and current.round < self.asked
        if not risen:
            current.decision = f"stops: its held-out gain is not above {reference}"
        else:
            current.decision = (
                f"goes on: its held-out gain is above {reference}" if on else "was the last one asked for"
            )
        self._write()
        return on

    def describe(self) -> str:
        """The last round in a line."""
        last = self.rounds[-1]
        gain = ""
        if last.gain is not None:
            gain = f"held-out gain {last.gain:+.3f} [{last.ci_low:+.3f}, {last.ci_high:+.3f}], {last.pass_rate:.1%} of the variants passed; "
        return f"round {last.round} of {self.asked}: {gain}{last.decision}"

    def _write(self) -> None:
        content = {"asked": self.asked, "rule": RULE, "rounds": [asdict(r) for r in self.rounds]}
        content["best"] = self.best.round
        write_atomically(self.folder / ROUNDS, json.dumps(content, indent=1) + "\n")


def held_out_gains(evaluation: Path) -> dict[str, np.ndarray]:
    """
    Held-out gain of every model of a finished evaluation but its base, per prompt, shape `(P,)`: the mean over the held-out judges
    of the differences from the base, each in standard deviations of the base's images and turned so that more is better.
    """
    rows = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))
    judges = {row["metric"]: row["higher_is_better"] for row in rows if row["role"] == "held_out"}
    models = list(rows[0]["settings"]["models"])
    table = pq.read_table(evaluation / "scores.parquet", columns=["model", *judges])
    names = np.array(table["model"].to_pylist())
    n = rows[0]["settings"]["prompts"]["n"]
    scores = {
        model: {judge: table[judge].to_numpy()[names == model].astype(np.float64).reshape(n, -1) for judge in judges}
        for model in models
    }
    base = scores[models[0]]
    return {
        model: np.mean([_gain(scores[model][judge], base[judge], higher) for judge, higher in judges.items()], axis=0)
        for model in models[1:]
    }


def _gain(scores: np.ndarray, base: np.ndarray, higher_is_better: bool) -> np.ndarray:
    spread = base.std() if np.ptp(base) > 0 else 1.0
    return (scores - base).mean(axis=1) / spread * (1 if higher_is_better else -1)


def pass_shares(dataset: Path) -> np.ndarray:
    """Share of the variants of each group that pass, shape `(G,)`, of what a filter has written."""
    from datasets import load_from_disk

    table = (
        load_from_disk(str(dataset))["candidates"].select_columns(["group_id", "variant", "keep"]).with_format("numpy")
    )
    variants = table["variant"][:] > 0
    return table["keep"][:][variants].reshape(len(np.unique(table["group_id"][:])), -1).mean(axis=1)


def name_of(number: int) -> str:
    """Name of a round among the models of an evaluation of several, and of its folder."""
    return f"round-{number}"
