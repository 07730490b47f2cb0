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

"""GenEval as a reward: a detector, a classifier of colours, and the rules."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from ...prompts.benchmarks import BENCHMARKS
from .. import loading
from ..weights import MASK2FORMER
from .colors import ColorClassifier
from .mask2former import Mask2FormerDetector
from .rules import Detection, Thresholds, evaluate, select


class GenEval:
    """
    GenEval as a reward: 1 where the image shows what its prompt asks for, else 0.

    It knows the prompts of the benchmark only. Its score over a prompt set is the mean of the six tasks' accuracies.

    Args:
        source (`str`, *optional*, defaults to `"facebook/mask2former-swin-small-coco-instance"`):
            Detector: a folder or Hub repository of a [`~transformers.Mask2FormerForUniversalSegmentation`]. The default is
            of the benchmark's architecture but other weights (CC BY-NC 4.0), and scores of the two differ somewhat; the
            benchmark's own are converted by [`mask2former.convert`].
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Where to run.
        dtype (`torch.dtype`, *optional*):
            Not used: detector and colours are in float32, as thresholds are.
        detector (`Callable[[PIL.Image.Image, float], list[Detection]]`, *optional*):
            Another detector, from an image and the lowest score that matters to objects.
        colors (`Callable`, *optional*):
            Another [`ColorClassifier`].
        thresholds ([`Thresholds`], *optional*):
            GenEval's numbers.
    """

    # The value of a whole prompt set is the mean over the tasks, of which each has its number of prompts.
    mean_of_parts = True

    def __init__(
        self,
        source: str = MASK2FORMER.repo_id,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        detector: Callable[[Image.Image, float], list[Detection]] | None = None,
        colors: Callable[[Image.Image, Sequence[Detection], str], list[str]] | None = None,
        thresholds: Thresholds | None = None,
    ):
        self.source = source if detector is None else getattr(detector, "__name__", type(detector).__name__)
        if detector is None:
            detector = Mask2FormerDetector(loading.find(source, MASK2FORMER), device)
        self.detector, self.thresholds = detector, thresholds or Thresholds()
        self.colors = colors or ColorClassifier(device)

    @property
    def note(self) -> str:
        """What must be said with every result."""
        t, name = self.thresholds, Path(self.source).name if Path(self.source).exists() else self.source
        return (
            f"detector {name}, score above {t.score}, counting {t.counting}, at most {t.max_objects} objects of a kind, "
            f"position {t.position}; colours by {getattr(self.colors, 'architecture', type(self.colors).__name__)}; mean of "
            "the tasks' accuracies"
        )

    @cached_property
    def metadata(self) -> dict[str, dict]:
        """What each prompt asks for; set it to use other prompts in GenEval's format."""
        return {row["prompt"]: row for row in BENCHMARKS["geneval"].load_rows()}

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        """1 or 0 for each image under the prompt at the same place, shape `(N,)`."""
        correct = [self.judge(image, prompt)[0] for image, prompt in zip(images, prompts, strict=True)]
        return torch.tensor(correct, dtype=torch.float32)

    def judge(self, image: Image.Image, prompt: str) -> tuple[bool, str]:
        """Whether the image shows what the prompt asks for, and what is wrong."""
        if prompt not in self.metadata:
            raise ValueError(f"GenEval does not know what {prompt!r} asks for: it judges its own prompts only.")
        metadata = self.metadata[prompt]
        min_score = self.thresholds.min_score(metadata)
        objects = select(self.detector(image, min_score), min_score, self.thresholds)
        return evaluate(
            objects, metadata, lambda found, name: self.colors(image, found, name), self.thresholds.position
        )
