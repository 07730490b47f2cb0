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

"""What an evaluation draws of every model, and how it goes through the images."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image

from ..candidates.config import SamplingConfig
from ..candidates.pool import CandidatePool, Key
from ..devices import process_state
from ..expansion import PromptExpander
from ..progress import progress_bar
from ..rewards import Reward
from ..stages import fingerprint
from .diversity import Measure
from .models import Model


if TYPE_CHECKING:
    from .evaluate import Evaluation


@dataclass(frozen=True)
class Judges:
    """
    What images are measured by.

    Args:
        rewards (`dict[str, Reward]`):
            Judges by name, ready to score.
        lower_is_better (`frozenset[str]`):
            Those of which less is better.
        embedder (`Reward`, *optional*):
            The one by whose image features variety is measured.
        varieties (`list[str]`):
            Names of the measures of variety.
        device (`torch.device` or `str`):
            Device of this process.
    """

    rewards: dict[str, Reward]
    lower_is_better: frozenset[str]
    embedder: Reward | None
    varieties: list[str]
    device: torch.device | str


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
