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

"""What an evaluation draws, every model and of the base more for a frontier, and how it goes through the images."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from accelerate.utils import gather_object
from PIL import Image

from ..candidates.config import SamplingConfig
from ..candidates.pool import CandidatePool, Key
from ..devices import process_state
from ..expansion import PromptExpander
from ..families import get_family
from ..families.checks import model_files
from ..progress import progress_bar
from ..rewards import Reward
from ..stages import fingerprint
from .diversity import Measure
from .models import Model


if TYPE_CHECKING:
    from .config import EvaluationConfig
    from .evaluate import Evaluation


FRESH = 2**33  # beyond the seeds of an evaluation: noise that none of its images starts from


@dataclass
class Arm:
    """
    A model to compare, and the images that are asked of it.

    Args:
        name (`str`):
            Name in the tables.
        spec ([`Model`]):
            The model.
        keys (`list[Key]`):
            Prompt, text given to the model, and seed of each image.
        folder (`Path`):
            Where its images and scores lie; of a model from earlier results, the folder of those.
        sampling ([`SamplingConfig`]):
            How it is drawn.
        images (`int`):
            Images of a prompt.
    """

    name: str
    spec: Model
    keys: list[Key]
    folder: Path
    sampling: SamplingConfig
    images: int

    @classmethod
    def of(
        cls,
        evaluation: "Evaluation",
        name: str,
        model: str,
        texts: Sequence[str],
        images: int | None = None,
        first: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> "Arm":
        """
        The model of this name in an evaluation, given these texts, a text for each prompt: under the evaluation's settings if not said
        otherwise, and from noise that is `first` after theirs.
        """
        config, spec = evaluation.config, evaluation.models[model]
        n, sampling = images or config.num_images_per_prompt, sampling or config
        keys = [
            (prompt, text, config.seed + first + i * n + j)
            for i, (prompt, text) in enumerate(zip(evaluation.prompts, texts, strict=True))
            for j in range(n)
        ]
        # Named by what decides an image and its scores, so that another model or sampler finds no stale ones.
        made_from = fingerprint([evaluation.model_hashes[model], sampling.sampling(), evaluation.scorers])
        drawn = Path(config.output_dir) / "images" / made_from[:12]
        return cls(name, spec, keys, Path(spec.source) if spec.kind == "results" else drawn, sampling, n)


def arms_of(evaluation: "Evaluation") -> list[Arm]:
    """The models, the base first, and the base on expanded prompts if there are templates."""
    config, prompts = evaluation.config, evaluation.prompts
    arms = [Arm.of(evaluation, name, name, prompts) for name in evaluation.models]
    if config.templates:
        base = next(iter(evaluation.models))
        expanded = PromptExpander(config.templates, config.seed)(prompts, 1)
        arms.append(Arm.of(evaluation, f"{base}+expansion", base, [variants[0] for variants in expanded]))
    return arms


def frontier_arms(evaluation: "Evaluation") -> list[Arm]:
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


def by_prompt(arm: Arm, pool: CandidatePool, embedder: Reward | None, measure: Measure, batch_size: int) -> np.ndarray:
    """
    What `measure` makes of the images of some prompts and of their features, if there is an embedder, for all prompts. Every process
    looks at its share of them.
    """
    state, n = process_state(), arm.images
    block = max(1, batch_size // n) * n
    starts = range(0, len(arm.keys), block)[state.process_index :: state.num_processes]
    measured = []
    for start in progress_bar(starts, desc=f"Diversity of {arm.name}", disable=not state.is_main_process):
        images = [Image.open(io.BytesIO(png)) for png in pool.images(arm.keys[start : start + block])]
        features = None
        if embedder is not None:
            features = embedder.image_features(images).cpu().numpy()
            features = features.reshape(-1, n, features.shape[-1])
        measured.append((start, measure(images, features, n)))
    return np.concatenate([values for _, values in sorted(gather_object(measured), key=lambda item: item[0])])
