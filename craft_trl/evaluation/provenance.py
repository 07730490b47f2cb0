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

"""What every score carries about how it came to be, and which scores can stand in one table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UsageError
from ..rewards import REWARDS, RewardSpec, loading
from ..sources import content_hash, looks_like_hub_id
from ..stages import read_record
from .specs import ModelSpec


# Settings that must be the same of all scores in one table.
COMPARED = ("prompts", "num_images_per_prompt", "seed", "sampling", "rewards")


def describe_scorer(spec: RewardSpec) -> dict[str, str | None]:
    """
    Id of a scorer, and the SHA-256 of its weights: `None` of the user's own code, of what a server has, and of a package.
    """
    if not spec.weighted:
        return {"id": spec.fingerprint(), "sha256": None}
    if spec.source is not None:
        folder = loading.find(spec.source, REWARDS[spec.name].weights[0])
        return {"id": spec.source if looks_like_hub_id(spec.source) else folder.name, "sha256": content_hash(folder)}
    hashes = [
        weights.sha256 or loading.sha256(loading.find(None, weights) / weights.files[0])
        for weights in REWARDS[spec.name].weights
    ]
    return {"id": spec.fingerprint(), "sha256": "+".join(hashes)}


def judges_of_guard(model: ModelSpec, judges: Mapping[str, RewardSpec]) -> list[str]:
    """
    Those of these judges by which the guard chose the step of a training that was saved: it is the best of several by
    them, and they are not impartial about it any more, though on other prompts.
    """
    source = Path(model.source)
    for folder in (source, source.parent):  # a part of a model names a folder or file in it
        settings = (read_record(folder) or {}).get("settings", {})
        guard = settings.get("guard")
        # One that looks at the last step only has nothing to choose from.
        if guard and guard["guard_steps"] < settings["training"]["max_steps"]:
            chose = set(guard["held_out_rewards"].values())
            return [name for name, spec in judges.items() if spec.fingerprint() in chose]
    return []


def notes(rows: Sequence[Mapping]) -> list[str]:
    """What must be said below a table of these rows."""
    said = [f"{row['metric']}: {row['scorer']['note']}" for row in rows if row.get("scorer", {}).get("note")]
    for row in rows:
        chosen = [
            model for model, judges in row.get("settings", {}).get("guards", {}).items() if row["metric"] in judges
        ]
        if chosen:
            said.append(
                f"{row['metric']}: the guard of {', '.join(chosen)} saved the step of the training that this judge liked best, "
                "on prompts of its own; that choice is in its favour."
            )
    return list(dict.fromkeys(said))


def bill(spec: RewardSpec, usage: Mapping[str, int], images: int) -> dict[str, float]:
    """
    About what a judge that is asked was asked for these images, and what that costs where its prices are named: `usage` of
    some of the images, made out to all.
    """
    share = images / usage["images"]
    made_out = {key: round(value * share) for key, value in usage.items()}
    if spec.judge.prices is not None:
        asked, answered = spec.judge.prices
        made_out["cost"] = round(
            (made_out["prompt_tokens"] * asked + made_out["completion_tokens"] * answered) / 1e6, 4
        )
    return made_out


def bill_in_words(name: str, bill: Mapping[str, float]) -> str:
    """What a judge was asked, in a line."""
    cost = f", for {bill['cost']:.2f}" if "cost" in bill else ""
    tokens = f"{bill['prompt_tokens']:,} + {bill['completion_tokens']:,} tokens"
    return f"{name}: about {bill['answers']:,} answers about {bill['images']:,} images, of {tokens}{cost}"


def settings_difference(one: Mapping, other: Mapping) -> str | None:
    """The first setting by which scores cannot be compared, in words; `None` if there is none."""
    for key in COMPARED:
        a, b = one.get(key), other.get(key)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            inner = next(name for name in {**a, **b} if a.get(name) != b.get(name))
            key, a, b = f"{key}.{inner}", a.get(inner), b.get(inner)
        return f"{key} is {json.dumps(a)[:80]} there and {json.dumps(b)[:80]} here"
    return None


def check_comparable(rows: Sequence[Mapping]) -> None:
    """Raise a [`UsageError`] unless all rows of a table were made under the same settings."""
    settings = [row["settings"] for row in rows if "settings" in row]
    for other in settings[1:]:
        if different := settings_difference(settings[0], other):
            raise UsageError(f"Results of different settings cannot stand in one table: {different}.")
