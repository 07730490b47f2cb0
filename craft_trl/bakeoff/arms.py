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
Baselines against each other: what each is trained on, and how.

Every arm is a dataset from the same pool and a trainer; the budget of training is the same for all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..candidates.groups import Group
from ..errors import UsageError
from .material import Material


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Method:
    """
    An arm of the comparison.

    Args:
        title (`str`):
            What it is, in words.
        build (`Callable[[Material], Dataset]`):
            Makes its training set.
        script (`str`, *optional*, defaults to `"train"`):
            Name of the script that trains it.
        rewards (`tuple[str, ...]`, *optional*):
            Rewards the pool must have for it.
        unit (`str`, *optional*, defaults to `"images"`):
            What a sample is: images, pairs, lists of a group's images, or pairs of transitions.
        options (`Mapping[str, str]`, *optional*):
            Options of its training.
    """

    title: str
    build: Callable[[Material], "Dataset"]
    script: str = "train"
    rewards: tuple[str, ...] = ()
    unit: str = "images"
    options: Mapping[str, str] = field(default_factory=dict)

    def images_of(self, group: int) -> int:
        """
        Images of a sample, where a group has so many; of transitions, the calls of the denoiser, with the prompt and without.
        """
        return {"images": 1, "pairs": 2, "lists": group, "transitions": 2}[self.unit]


def unweighted(dataset: "Dataset") -> "Dataset":
    """The same rows, all of weight 1."""
    column = np.ones(len(dataset), dtype=np.float32)
    return dataset.remove_columns("advantage").add_column("advantage", column)


# Plain fine-tuning is the advantage-weighted loss at weight 1: of these, all but the last are datasets and no code. A comparison
# is of these unless it says otherwise.
BASELINES = {
    "sft": Method("all variants, no filter, no weights", Material.unfiltered),
    "best_of_n": Method("best of n seeds of the original prompt, no expansion, no weights", Material.best_of_n),
    "sft_filtered": Method(
        "triple filter on groups, no weights", lambda m: unweighted(m.kept(filter_level="group", filter_rewards=None))
    ),
    "image_filter": Method(
        "triple filter on single images, advantage weights",
        lambda m: m.kept(filter_level="image", filter_rewards=None),
    ),
    "h": Method(
        "single filter on groups, advantage weights",
        lambda m: m.kept(filter_level="group", filter_rewards=["hpsv2"]),
        rewards=("hpsv2",),
    ),
    "ha": Method(
        "double filter on groups, advantage weights",
        lambda m: m.kept(filter_level="group", filter_rewards=["hpsv2", "aesthetic"]),
        rewards=("hpsv2", "aesthetic"),
    ),
    "craft": Method(
        "CRAFT: triple filter (hpa) on groups, advantage weights",
        lambda m: m.kept(filter_level="group", filter_rewards=None),
    ),
    "diffusion_dpo": Method("Diffusion-DPO on pairs from the pool", Material.pairs, script="dpo", unit="pairs"),
}
# Methods of others that learn from ranked or scored images, on the same pool. Those that draw new images while they learn are
# called offline here, where they do not.
RIVALS = {
    "diffusion_lpo": Method(
        "Diffusion-LPO on ranked lists", Material.lists, "dpo", unit="lists", options={"loss_type": "plackett_luce"}
    ),
    "sdpo": Method(
        "Diffusion-SDPO on pairs from the pool", Material.pairs, "dpo", unit="pairs", options={"safeguard_mu": "0.6"}
    ),
    "dgpo_offline": Method(
        "DGPO on lists with advantages, without new images",
        Material.lists,
        "dpo",
        unit="lists",
        options={"loss_type": "group"},
    ),
    "lair": Method("LAIR on scored lists", Material.lists, "dpo", unit="lists", options={"loss_type": "regression"}),
    "inpo": Method(
        "InPO on pairs from the pool, noised by inversion",
        Material.pairs,
        "dpo",
        unit="pairs",
        options={"inversion_steps": "10"},
    ),
    "smpo": Method(
        "SmPO on scored pairs, noised by inversion with ReNoise",
        Material.scored_pairs,
        "dpo",
        unit="pairs",
        options={"smoothing": "10", "inversion_steps": "10", "renoise": "true"},
    ),
    "spo_offline": Method(
        "SPO on pairs of denoising steps, drawn once",
        Material.transitions,
        "spo",
        unit="transitions",
        options={"proportion_empty_prompts": "0"},  # its texts are those of the transitions, whatever the recipe says
    ),
    "tgo": Method(
        "threshold-guided optimization on all images with their scores",
        lambda m: m.scored(own=False),
        "scored",
        options={"loss_type": "tgo"},
    ),
    "nft_offline": Method(
        "DiffusionNFT on n seeds of the original prompt, without new images",
        Material.scored,
        "scored",
        options={"loss_type": "nft"},
    ),
    "awm_offline": Method(
        "Advantage Weighted Matching on n seeds of the original prompt, without new images",
        Material.scored,
        "scored",
        options={"loss_type": "awm"},
    ),
}


def as_craft(title: str, train_images: str = "kept", **changes) -> Method:
    """CRAFT with one thing changed."""
    return Method(
        f"CRAFT, but {title}",
        lambda m: m.kept(filter_level="group", filter_rewards=None, train_images=train_images),
        **changes,
    )


# What an arm says of negative advantages, whatever the recipe of the training says.
NO_NEGATIVES = {"negative_advantages": "zero", "proximal_tau": "1"}
PROXIMAL = {"negative_advantages": "proximal", "proximal_tau": "0.2"}
# What the ablations among the baselines leave open: one thing of CRAFT changed in each. The first changes all of it: what fine-tuning
# does where nothing is chosen, which is in every other arm too.
ABLATIONS = {
    "own_images": Method("the base model's images of the original prompts, no choice, no weights", Material.originals),
    "no_filter": as_craft("without a filter: all images above the mean of their group", "all"),
    "proximal": as_craft(
        "with the worse images of the kept groups, and a bounded loss for these",
        "kept_groups",
        options=PROXIMAL,
    ),
    "proximal_all": as_craft(
        "with all images of all groups, and a bounded loss for the worse ones",
        "all",
        options=PROXIMAL,
    ),
    "expanded_prompts": as_craft("trained on the expanded prompts", options={"train_prompt": "expanded"}),
    "min_snr": as_craft("with Min-SNR weights of the noise levels, gamma 5", options={"snr_gamma": "5"}),
}
METHODS = {**BASELINES, **ABLATIONS, **RIVALS}


def method_of(arm: str) -> Method:
    """The method of an arm, which says so if the arm has a learning rate of its own, as `inpo@2e-5` has."""
    name, _, rate = arm.partition("@")
    method = METHODS[name]
    return replace(method, title=f"{method.title}, at a learning rate of {rate}") if rate else method


def parts_of(arm: str) -> list[str]:
    """Of an arm such as `craft+proximal_all` the arms whose models it is the mean of; of another one itself."""
    return arm.split("+")


def rate_of(arm: str) -> str | None:
    """The learning rate of an arm, if it has one of its own."""
    return arm.partition("@")[2] or None


def make_seed_groups(groups: Sequence[Group]) -> list[Group]:
    """
    Groups of as many images as the given ones, drawn from the original prompt with different seeds. The first image of
    each is that of the given group, so that it is in the pool already.
    """
    return [
        Group(
            group.group_id,
            group.prompt,
            (group.prompt,) * len(group.expanded_prompts),
            tuple(group.seeds[0] + 1_000_000 * j for j in range(len(group.seeds))),
        )
        for group in groups
    ]


def check_arms(arms: Sequence[str], rewards: Sequence[str]) -> None:
    """Raise a [`UsageError`] unless the arms are known, different, and the pool has the rewards they filter by."""
    known = ", ".join(METHODS)
    for arm in arms:
        for part in parts_of(arm):
            name, at, rate = part.partition("@")
            if name not in METHODS:
                raise UsageError(
                    f"arms: there is no {name!r}. Known are {known}, each as it is or with its learning rate as NAME@RATE, and means of "
                    "two or more that are arms as well, as NAME+NAME."
                )
            if at and not _is_positive(rate):
                raise UsageError(f"arms: the learning rate of {part!r} must be a number above 0, as in {name}@2e-5.")
            if missing := set(METHODS[name].rewards) - set(rewards):
                raise UsageError(f"arms: {name} filters by {min(missing)}, and the rewards are {', '.join(rewards)}.")
        if len(set(parts_of(arm))) < len(parts_of(arm)):
            raise UsageError(f"arms: {arm} has the same one twice.")
        if missing := [part for part in parts_of(arm) if part not in arms]:
            raise UsageError(f"arms: {arm} is a mean of models, and {missing[0]} is not among the arms: name it too.")
    if len({_meaning(arm) for arm in arms}) != len(arms) or len(arms) < 2:
        raise UsageError(f"arms must be at least two different ones of {known}; got {', '.join(arms)}.")


def _meaning(arm: str) -> frozenset[tuple[str, float | None]]:
    """The methods and rates of an arm, the same for all its spellings."""
    named = (part.partition("@") for part in parts_of(arm))
    return frozenset((name, float(rate) if at else None) for name, at, rate in named)


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def describe_passes(passes: Sequence[Sequence[int | None]]) -> str:
    """
    Images that went through the denoiser in the trainings of an arm, as text: with gradient, and without, as through a reference
    model; from the fewest to the most where trainings differ.
    """
    counted = [(a, b or 0) for a, b in passes if a is not None]
    if not counted:
        return "not counted"
    with_gradient, without = (_from_to(counts) for counts in zip(*counted, strict=True))
    return with_gradient if without == "0" else f"{with_gradient} + {without}"


def _from_to(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
