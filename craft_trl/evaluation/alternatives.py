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
What an evaluation draws of the base beside its models, if it is asked what a gain costs: images to choose from, and more
guidance. What is made of them is [`Frontier`].
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..candidates.config import SamplingConfig
from ..families import get_family
from ..families.checks import model_files
from .arms import Arm, Judges, by_prompt
from .diversity import all_distances
from .frontier import Frontier


if TYPE_CHECKING:
    from .config import EvaluationConfig
    from .evaluate import Evaluation


FRESH = 2**33  # beyond the seeds of an evaluation: noise that none of its images starts from


def alternatives(evaluation: "Evaluation") -> list[Arm]:
    """What a frontier draws of the base besides: images to choose from, then those at each other guidance scale."""
    config, prompts, base = evaluation.config, evaluation.prompts, next(iter(evaluation.models))
    arms = [Arm.of(evaluation, f"{base} to choose from", base, prompts, config.frontier_images, FRESH)]
    for scale in evaluation.guidance_scales:
        sampling = at_guidance(config, scale)
        arms.append(Arm.of(evaluation, f"{base} at guidance {scale:g}", base, prompts, sampling=sampling))
    return arms


def at_guidance(config: "EvaluationConfig", scale: float) -> SamplingConfig:
    """How an evaluation draws, at another guidance scale."""
    own = {field.name: getattr(config, field.name) for field in fields(SamplingConfig)}
    return SamplingConfig(**{**own, "guidance_scale": scale})


def guidance_scales(config: "EvaluationConfig", base: str, revision: str | None) -> list[float]:
    """Guidance scales of a frontier; by default none of a base that was distilled to draw without, or that is drawn without."""
    if config.frontier_guidance is not None:
        return config.frontier_guidance
    files = model_files(base, revision)
    family = get_family(files.index["_class_name"])
    if Path(base).is_file() or family.takes_guidance(files.json(f"{family.denoiser}/config.json"), files.index):
        return [factor * config.guidance_scale for factor in (1.5, 2.5) if config.guidance_scale > 0]
    return []


def alternative_counts(evaluation: "Evaluation") -> list[int]:
    """Images of each of these, whether they are there or not."""
    config, n = evaluation.config, len(evaluation.prompts)
    if not config.frontier:
        return []
    return [n * config.frontier_images] + [n * config.num_images_per_prompt] * len(evaluation.guidance_scales)


def price(evaluation: "Evaluation") -> str:
    """What a frontier takes, in images, in words."""
    config, prompts, besides = evaluation.config, len(evaluation.prompts), sum(alternative_counts(evaluation))
    scales = " and ".join(f"{scale:g}" for scale in evaluation.guidance_scales)
    at = f", and {prompts} x {config.num_images_per_prompt} at each guidance of {scales}" if scales else ""
    return (
        f"the frontier takes {besides:,} images of the base beside the {sum(evaluation.image_counts()) - besides:,} of the "
        f"comparison: {prompts} x {config.frontier_images} to choose from{at}"
    )


def make_frontier(
    evaluation: "Evaluation", arms: list[Arm], scores: Mapping[str, Mapping[str, np.ndarray]], judges: Judges
) -> Frontier:
    """
    The models by what they gain and cost, beside what was drawn of the base besides.

    Args:
        evaluation ([`Evaluation`]):
            The evaluation.
        arms (`list[Arm]`):
            Its [`alternatives`].
        scores (`Mapping[str, Mapping[str, np.ndarray]]`):
            Scores and varieties of its models, the base first.
        judges ([`Judges`]):
            What they are measured by.
    """
    draws, *guided = arms
    pool, n = evaluation.draw(draws, judges), evaluation.config.batch_size
    values = np.array([pool.scores[key] for key in draws.keys]).reshape(len(evaluation.prompts), draws.images, -1)
    distances = by_prompt(draws, pool, judges.embedder, all_distances, n)  # (prompts, kinds, images, images)
    base = next(iter(scores))
    ways = {name: "expanded prompt" if name not in evaluation.models else "model" for name in scores} | {base: "base"}
    labels = {name: name for name in scores} | {f"{base}+expansion": "expanded prompt"}
    for arm in guided:
        scores = {**scores, arm.name: evaluation.measure(arm, judges)}
        ways[arm.name], labels[arm.name] = "guidance", f"{arm.sampling.guidance_scale:g}"
    return Frontier(
        draws={name: values[..., i] for i, name in enumerate(judges.rewards)},
        distances={name: distances[:, i] for i, name in enumerate(judges.varieties)},
        arms=scores,
        ways=ways,
        labels={name: labels[name] for name in scores},
        roles=evaluation.roles,
        lower_is_better=judges.lower_is_better,
    )
