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


"""The page that shows a comparison of arms."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..candidates.pool import CandidatePool
from ..evaluation.evaluate import Evaluation
from ..evaluation.report import frontier_section
from ..hub.cards import duration, flat
from ..pages import data_uri, render
from .arms import describe_passes
from .comparison import HELD_OUT


def write_bakeoff_report(
    content: Mapping[str, Any], evaluation: Evaluation, arms: Sequence[str], seeds: Sequence[int], path: Path
) -> None:
    """
    Write the self-contained HTML report.

    Args:
        content (`Mapping[str, Any]`):
            What `bakeoff.json` holds.
        evaluation ([`Evaluation`]):
            The evaluation of all models.
        arms (`Sequence[str]`):
            Names of the arms.
        seeds (`Sequence[int]`):
            Training seeds.
        path (`Path`):
            File to write.
    """
    rows = {(row["arm"], row["against"], row["metric"]): row for row in content["rows"]}
    metrics = list(dict.fromkeys(row["metric"] for row in content["rows"]))
    ranking = content["verdict"]["ranking"]
    # The ends of the axis, on which the base model is 0.
    bounds = [0.0, *(rows[arm, "base", HELD_OUT][end] for arm in ranking for end in ("ci_low", "ci_high"))]
    page = render(
        "bakeoff.html",
        verdict=content["verdict"],
        arms=content["arms"],
        ranking=ranking,
        rows=rows,
        metrics=metrics,
        held_out=HELD_OUT,
        low=min(bounds),
        span=(max(bounds) - min(bounds)) or 1.0,
        seeds=seeds,
        duration=duration,
        describe_passes=describe_passes,
        num_prompts=len(evaluation.prompts),
        num_images=evaluation.config.num_images_per_prompt,
        frontier=frontier_section(content["frontier"], ranking) if "frontier" in content else None,
        pictures=_pictures(evaluation, {"base": "base"} | {arm: f"{arm}-{seeds[0]}" for arm in ranking}),
        settings=flat({name: value for name, value in content["settings"].items() if name != "models"}),
    )
    path.write_text(page, encoding="utf-8")


def _pictures(evaluation: Evaluation, models: Mapping[str, str], shown: int = 8) -> list[dict]:
    """Prompts evenly spaced over the list, with the image of each model under its caption, in this order."""
    chosen = np.unique(np.linspace(0, len(evaluation.prompts) - 1, min(len(evaluation.prompts), shown)).astype(int))
    pictures = [{"prompt": evaluation.prompts[i], "images": []} for i in chosen]
    step = evaluation.config.num_images_per_prompt
    drawn = {arm.name: arm for arm in evaluation.arms()}
    for caption, name in models.items():
        arm = drawn[name]
        pool = CandidatePool(arm.folder, list(evaluation.specs), verify=False)
        for picture, png in zip(pictures, pool.images([arm.keys[i * step] for i in chosen]), strict=True):
            picture["images"].append((caption, data_uri(png)))
    return pictures
