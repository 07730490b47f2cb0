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

"""What the filter says of every image of a pool, and why."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from ..candidates.filter_config import FilterConfig
from ..candidates.groups import Group
from ..candidates.pool import CandidatePool
from ..conditions import OF_TEXT, Limit, compared_on, split_conditions
from ..crf import composite_reward_filter, group_advantages, improves
from ..errors import UsageError
from .votes import veto_mask, vetoes_of, with_votes


def filter_candidates(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig) -> list[dict]:
    """All of [`each_candidate`] as a list."""
    return list(each_candidate(groups, pool, config))


def each_candidate(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig) -> Iterator[dict]:
    """
    What the filter says of every image of every group: the rows of `candidates`, with the columns of [`~filtering.dataset.features`].
    One at a time: a million of them would take a gigabyte.

    Args:
        groups (`Sequence[Group]`):
            Prompts with their variants. The pool must have the original image of each.
        pool ([`CandidatePool`]):
            Scores.
        config ([`FilterConfig`]):
            What passes.
    """
    pool = with_votes(pool, config)
    config.check_rewards(pool.rewards)
    scores, generated = pool.matrices(groups)
    if not generated[:, 0].all():
        group = groups[int(np.flatnonzero(~generated[:, 0])[0])]
        raise UsageError(f"The pool {pool.folder} has no image for {group.prompt!r}: run `craft generate` first.")
    vetoed = veto_mask(vetoes_of(config, pool), groups)
    compared, limits = split_conditions(config.conditions(pool.rewards))
    sides = as_compared(scores, groups, compared)
    failures = {name: ~improves(sides[name]) for name in compared} | beyond(limits, pool, scores)
    struck = np.logical_or.reduce([vetoed, *(failures[name] for name in failures if name not in compared)])
    keep = composite_reward_filter(sides, compared, config.filter_level, generated, struck)
    weights = config.weights(pool.rewards)
    advantages = group_advantages(scores, weights, config.scale_rewards, config.advantage_eps, generated)
    reasons = drop_reasons(failures | {"vetoed": vetoed}, keep, generated, config.filter_level)
    nothing = [None] * len(pool.rewards)
    for i, group in enumerate(groups):
        for j, (prompt, expanded_prompt, seed) in enumerate(group.keys):
            row = {"group_id": group.group_id, "variant": j, "prompt": prompt, "expanded_prompt": expanded_prompt}
            row |= {"seed": seed, "image": None}
            # As the rewards gave them: `scores` are turned so that larger is better.
            given = pool.scores[prompt, expanded_prompt, seed].tolist() if generated[i, j] else nothing
            row |= dict(zip(pool.rewards, given, strict=True))
            row |= {"keep": bool(keep[i, j]), "drop_reason": reasons[i][j], "advantage": float(advantages[i, j])}
            yield row


def train_rows(rows: Iterable[dict], pool: CandidatePool, config: FilterConfig) -> Iterator[dict]:
    """Of the rows of [`each_candidate`] those that are trained on, see `train_images` of [`FilterConfig`]."""
    if config.train_images == "kept":
        yield from (row for row in rows if row["keep"])
        return
    limits = split_conditions(config.conditions(pool.rewards))[1]
    for _, made in groupby(rows, key=lambda row: row["group_id"]):
        group = list(made)
        if config.train_images == "kept_groups" and not any(row["keep"] for row in group):
            continue
        for row in group:
            judged = row["drop_reason"] != "not_generated" and not vetoed_itself(row["drop_reason"])
            # An original may be anything to be compared with, but not to be learnt.
            if judged and all(limit.holds(row[limit.reward]) for limit in limits):
                yield row


def as_compared(
    scores: Mapping[str, np.ndarray], groups: Sequence[Group], compared: Sequence[str]
) -> dict[str, np.ndarray]:
    """
    Scores as the filter compares them, `(G, 1 + n)` per reward: where a prompt's images are not compared by one, see
    [`~conditions.compared_on`], every variant beats the original by it.
    """
    sides = dict(scores)
    for name in set(compared) & set(OF_TEXT):
        silent = np.array([[name not in compared_on(group.prompt, compared)] for group in groups])
        if silent.any():
            sides[name] = np.where(silent, np.arange(scores[name].shape[1]) > 0, scores[name])
    return sides


def beyond(limits: Sequence[Limit], pool: CandidatePool, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which variants are not within each limit, `(G, 1 + n)` bool, by the limit's text. Originals may be anything."""
    failures = {}
    for limit in limits:
        turned = pool.signs[pool.rewards.index(limit.reward)]  # `scores` are turned so that larger is better
        failures[str(limit)] = ~limit.holds(turned * scores[limit.reward])
        failures[str(limit)][:, 0] = False
    return failures


def drop_reasons(
    failures: Mapping[str, np.ndarray], keep: np.ndarray, generated: np.ndarray, filter_level: str
) -> list[list[str]]:
    """
    Why each image is not in the training set, `""` for those that are.

    `original` (it is what the others are compared with), `not_generated` (its group had failed before), the rewards on
    which it does not beat the original, the limits that it is not within and `vetoed`, such as `hpsv2, nsfw<0.5, vetoed`,
    or, for a variant that passes in a group that fails, `variant 3: pickscore`, the first variant that failed and why, or
    `original: vetoed`.
    """
    originals = failures["vetoed"][:, 0]
    reasons = [["vetoed" if veto else "original"] + [""] * (keep.shape[1] - 1) for veto in originals]
    for i, j in np.argwhere(~keep[:, 1:]) + [0, 1]:
        failed = [name for name, fails in failures.items() if fails[i, j]]
        reasons[i][j] = ", ".join(failed) if generated[i, j] else "not_generated"
    for group in reasons:
        culprit = next((j for j, reason in enumerate(group) if j and reason not in ("", "not_generated")), None)
        for j in range(1, len(group)):
            if group[j] == "" and group[0] == "vetoed":
                group[j] = "original: vetoed"
            elif group[j] == "" and culprit is not None and filter_level == "group":
                group[j] = f"variant {culprit}: {group[culprit]}"
    return reasons


def vetoed_itself(drop_reason: str) -> bool:
    """Whether an image was vetoed, and not dropped for another's sake (`variant 3: vetoed`)."""
    return ":" not in drop_reason and "vetoed" in drop_reason.split(", ")


def explain_nothing(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig) -> str:
    """What passed how far when nothing passed the whole filter, and what to relax."""
    pool = with_votes(pool, config)
    compared, limits = split_conditions(config.conditions(pool.rewards))
    scores, generated = pool.matrices(groups)
    outside, scores = beyond(limits, pool, scores), as_compared(scores, groups, compared)
    one = [f"{name} {composite_reward_filter(scores, [name], 'image', generated).sum()}" for name in compared]
    within = [f"{name} {(generated & ~fails)[:, 1:].sum()}" for name, fails in outside.items()]
    variants = int(generated[:, 1:].sum())
    struck = np.logical_or.reduce([np.zeros_like(generated), *outside.values()])
    images = int(composite_reward_filter(scores, compared, "image", generated, struck).sum())
    relax = ["fewer filter_rewards", "more prompts", "milder templates"]
    if config.filter_level == "group":
        relax = ["filter_level: image", "a smaller num_variants", *relax]
    vetoed = veto_mask(vetoes_of(config, pool), groups).sum()
    said = [f"{', '.join(one)} beat their original"] if one else []
    said += [f"{', '.join(within)} are within their limit"] if within else []
    said += [f"{images} do all of it" if within else f"{images} did on all of them"]
    return (
        f"No {config.filter_level} passed the filter: of {variants} variants of {len(generated)} prompts, "
        f"{', '.join(said[:-1])}, and {said[-1]}{f'; {vetoed} images are vetoed' if vetoed else ''}. "
        f"To relax: {'; '.join(relax)}. The pool is kept."
    )
