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

"""What passes the filter, and how advantages are computed."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..conditions import split_conditions
from ..errors import UsageError
from ..ranges import Positive, check_ranges


HUMAN = "human"  # what votes are called as a reward


class Weight(str):
    """A weight as an option gives it, a number or `NAME=NUMBER`; recipes have numbers as they are."""


@dataclass
class FilterConfig:
    """
    What passes the filter, and how advantages are computed from the rewards.

    Parameters:
        filter_level (`"group"` or `"image"`, *optional*, defaults to `"group"`):
            Keep a group only if all its variants pass, or keep each variant that passes.
        filter_rewards (`list[str]`, *optional*):
            What a variant must meet: `NAME`, a reward on which it must beat the original, or a limit, `NAME<NUMBER` or
            `NAME>NUMBER`, within which its score must be, in the reward's own units. Defaults to beating the original on
            all rewards of the pool. Limits are for what strikes images out, such as the score of a safety checker: a
            reward of which there is only a limit has no part in the advantage, unless `reward_weights` gives it one.
        scale_rewards (`"pool"`, `"group"` or `"none"`, *optional*, defaults to `"pool"`):
            How rewards are brought to one scale before they are summed, see [`group_advantages`].
        reward_weights (`list[float]` or `list[str]`, *optional*):
            Weights of the rewards in the sum: a number for each, in the order of the pool's rewards, or `NAME=NUMBER` for
            some. Defaults to 1 each, and 0 for those of which `filter_rewards` has only a limit.
        advantage_eps (`float`, *optional*, defaults to `1e-4`):
            Added to the standard deviation of a group.
        train_images (`"kept"`, `"kept_groups"` or `"all"`, *optional*, defaults to `"kept"`):
            What is trained on: the images that pass; or all that were judged, of groups in which one passes or of all groups,
            with their advantages of either sign, for `negative_advantages: proximal` or `keep`. The original's image is
            then one of them. What is vetoed or beyond a limit never is.
        veto (`str`, *optional*):
            File of nothing but vetoes, see [`load_vetoes`]. A vetoed variant counts as one that does not pass, and a
            vetoed original as one that no variant passes against.
        votes (`str`, *optional*):
            File of votes, as `craft sheet` saves it, see [`load_votes`]. Its vetoes count as those of `veto` do. All of them
            are one reward more, `human`: 2 for the best of a group, 1 for what is to be kept, -1 for what is vetoed, else 0.
            It counts where `filter_rewards` or `reward_weights` names it.
    """

    filter_level: Literal["group", "image"] = field(
        default="group",
        metadata={"help": "Keep a group only if all its variants pass, or keep each variant that passes."},
    )
    filter_rewards: list[str] | None = field(
        default=None,
        metadata={
            "help": "What a variant must meet: NAME, to beat the original on it, NAME<NUMBER or NAME>NUMBER. Defaults to "
            "beating it on all rewards."
        },
    )
    scale_rewards: Literal["pool", "group", "none"] = field(
        default="pool", metadata={"help": "How rewards are brought to one scale before they are summed."}
    )
    reward_weights: list[Weight] | None = field(
        default=None,
        metadata={
            "help": "Weights of the rewards in the sum: a number each, in the order of `rewards`, or NAME=NUMBER for some. "
            "Defaults to 1 each."
        },
    )
    advantage_eps: Positive = field(default=1e-4, metadata={"help": "Added to the standard deviation of a group."})
    train_images: Literal["kept", "kept_groups", "all"] = field(
        default="kept",
        metadata={
            "help": "What is trained on: the images that pass, or all that were judged, of groups in which one passes or of all "
            "groups, for negative advantages."
        },
    )
    veto: str | None = field(
        default=None, metadata={"help": "File of vetoed images, and nothing else. They count as not passing."}
    )
    votes: str | None = field(
        default=None,
        metadata={
            "help": "File of votes, as `craft sheet` saves it. Vetoed images count as not passing; keep, veto and best of the "
            "group are the reward `human`."
        },
    )

    def __post_init__(self):
        check_ranges(self)
        self.reward_weights = read_weights(self.reward_weights)
        for name in ("veto", "votes"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise UsageError(f"{name}: there is no file {path}. `craft sheet` writes a page that saves one.")
        if self.veto is not None and self.votes is not None:
            raise UsageError("veto and votes are both given: give votes, which hold vetoes too.")

    def check_rewards(self, names: Sequence[str]) -> None:
        """Raise a [`UsageError`] unless the filter fits a pool with rewards of these names."""
        names = self.scored(names)
        known = {*names, HUMAN} if self.votes else {*names}
        weights = self.reward_weights
        compared, limits = split_conditions(self.conditions(names))
        chosen = {*compared, *(limit.reward for limit in limits)}
        if HUMAN in {*chosen, *(weights if isinstance(weights, dict) else ())} - known:
            raise UsageError(f"{HUMAN} is what votes say, and there are none: give votes.")
        if not chosen <= known or not (chosen or self.votes_aside):
            raise UsageError(
                f"filter_rewards must be among the rewards {', '.join(names)}; got {self.filter_rewards}."
            )
        if isinstance(weights, list) and len(weights) != len(names):
            raise UsageError(f"reward_weights must have one number for each of {', '.join(names)}; got {weights}.")
        if isinstance(weights, dict) and not set(weights) <= known:
            raise UsageError(f"reward_weights must be of the rewards {', '.join(names)}; got {', '.join(weights)}.")

    votes_aside = False  # of a copy `without_votes`

    def without_votes(self) -> "FilterConfig":
        """What is left of the filter where nobody has voted; conditions may all be gone."""
        config = copy.copy(self)
        config.veto, config.votes, config.votes_aside = None, None, True
        if self.votes is not None and self.filter_rewards is not None:
            config.filter_rewards = [text for text in self.filter_rewards if not is_of_votes(text)]
        if isinstance(self.reward_weights, dict):
            config.reward_weights = {name: w for name, w in self.reward_weights.items() if name != HUMAN}
        return config

    def scored(self, names: Sequence[str]) -> list[str]:
        """The rewards that were scored: all but the one that is made of votes."""
        return [name for name in names if self.votes is None or name != HUMAN]

    def conditions(self, names: Sequence[str]) -> Sequence[str]:
        """What a variant must meet in a pool with rewards of these names, see `filter_rewards`."""
        return self.scored(names) if self.filter_rewards is None else self.filter_rewards

    def weights(self, names: Sequence[str]) -> dict[str, float]:
        """The weight of each reward in the advantage."""
        compared, limits = split_conditions(self.conditions(names))
        unweighted = {limit.reward for limit in limits} - set(compared)
        if self.votes is not None and HUMAN not in compared:
            unweighted.add(HUMAN)
        given = self.reward_weights or {}
        if isinstance(given, list):
            given = dict(zip(self.scored(names), given, strict=True))
        return {name: given.get(name, float(name not in unweighted)) for name in names}


def is_of_votes(condition: str) -> bool:
    """Whether a condition is on what votes say."""
    compared, limits = split_conditions([condition])
    return HUMAN in (*compared, *(limit.reward for limit in limits))


def read_weights(given: Sequence[float | str] | Mapping[str, float] | None) -> list[float] | dict[str, float] | None:
    """Weights as numbers in a row or, where they have names, by these; a [`UsageError`] for any that is neither."""
    if given is None or isinstance(given, Mapping):
        return given
    numbers, named = [], {}
    for item in given:
        name, equals, value = item.rpartition("=") if isinstance(item, str) else ("", "", item)
        try:
            number = float(value) if isinstance(value, str) else value
        except ValueError:
            number = math.nan
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= 1e9:
            raise UsageError(
                f"reward_weights: {item!r} is neither a finite number nor NAME=NUMBER with one, of at most 1e9 either way."
            )
        if name in named:
            raise UsageError(f"reward_weights: {name} is given twice.")
        if equals:
            named[name] = number
        else:
            numbers.append(number)
    if named and numbers:
        raise UsageError("reward_weights: give a number for each reward in their order, or NAME=NUMBER, not both.")
    return named or numbers
