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

"""Early rejection: which images of a group are to be made next, and which groups count."""

from collections.abc import Callable, Sequence

from ..conditions import compared_on, split_conditions
from ..errors import UsageError
from .groups import Group
from .pool import CandidatePool, Key


def needed(pool: CandidatePool, group: Group, reject_on: Sequence[str] | None = None) -> list[Key]:
    """The images of a group that are to be made next; none if it is complete or rejected."""
    original, *variants = group.keys
    missing = [key for key in dict.fromkeys(group.keys) if key not in pool]  # a variant may be the original itself
    if reject_on is None or not missing or original not in pool or variants[0] not in pool:
        return missing if reject_on is None else [key for key in missing if key in (original, variants[0])]
    meets = conditions_of(pool, original, reject_on)
    for key in variants:
        if key not in pool:
            return [key]
        if not meets(key):
            return []
    return []


def passes(pool: CandidatePool, group: Group, filter_rewards: Sequence[str]) -> bool:
    """Whether every variant of a group is in the pool and meets the conditions of the filter."""
    if any(key not in pool for key in group.keys):
        return False
    original, *variants = group.keys
    return all(map(conditions_of(pool, original, filter_rewards), variants))


def conditions_of(pool: CandidatePool, original: Key, filter_rewards: Sequence[str]) -> Callable[[Key], bool]:
    """Whether an image beats the original on the rewards of the filter and is within its limits."""
    compared, limits = split_conditions(filter_rewards)
    columns = [pool.rewards.index(name) for name in compared_on(original[0], compared)]
    least = pool.quality(original)[columns]

    def meets(key: Key) -> bool:
        within = all(limit.holds(pool.scores[key][pool.rewards.index(limit.reward)]) for limit in limits)
        return within and bool((pool.quality(key)[columns] > least).all())

    return meets


def up_to_target(
    pool: CandidatePool, groups: Sequence[Group], filter_rewards: Sequence[str], target_groups: int | None
) -> Sequence[Group]:
    """
    The groups that count: up to and including the `target_groups`-th that passes, all of them if there is no target or
    fewer pass. What else is in the pool, and who made it when, makes no difference once these are complete.
    """
    if target_groups is None:
        return groups
    passed = 0
    for i, group in enumerate(groups):
        passed += passes(pool, group, filter_rewards)
        if passed == target_groups:
            return groups[: i + 1]
    return groups


def check_target(target_groups: int | None, groups: Sequence[Group]) -> None:
    """Raise a [`UsageError`] if there are fewer groups than are to pass."""
    if target_groups is not None and target_groups > len(groups):
        raise UsageError(
            f"target_groups is {target_groups}, but there are {len(groups)} groups: lower it, or expand more prompts."
        )


def describe_target(pool: CandidatePool, groups: Sequence[Group], filter_rewards: Sequence[str], target: int) -> str:
    """Whether so many groups have passed, in a line, once [`needed`] asks for nothing more."""
    counted = up_to_target(pool, groups, filter_rewards, target)
    passed = sum(passes(pool, group, filter_rewards) for group in counted)
    if passed == target:
        return f"{passed} groups pass, among the first {len(counted)} of {len(groups)}"
    return (
        f"{passed} groups pass of all {len(groups)}, fewer than the {target} of target_groups: expand more prompts, or "
        "filter by fewer rewards"
    )
