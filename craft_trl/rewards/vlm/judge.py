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

"""A vision-language model behind an endpoint as a reward."""

import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch
from PIL import Image

from ...chat.cache import Refusal
from ...errors import UsageError
from ...prompts.benchmarks import BENCHMARKS
from ..reward_model import check_lengths
from .asking import Asking, Question, image_hash
from .readings import OF_WORDS
from .rules import dpg_score, soft_tifa
from .spec import JudgeSpec


logger = logging.getLogger(__name__)

# What a server says that will not look at a picture, in difference to one that cannot.
CONTENT = re.compile("content|polic|safety|moderat|inappropriate|inspect|filter", re.IGNORECASE)


class VLMJudge:
    """
    A vision-language model behind an OpenAI-compatible endpoint that answers questions about images.

    A score is a weighted mean of what its questions give, or follows the rule of a benchmark. Questions are asked
    concurrently, and asked again as of [`EndpointExpander`]; every answer is kept, and none is asked for twice. A refusal,
    an answer without an answer in it, and probabilities that did not come are errors and never a score; what was
    answered before is kept. Before the first question the judge must tell a red picture from a blue one.

    Args:
        spec ([`JudgeSpec`] or `str`):
            The model, where it is and what it is asked, as in a recipe: `"vlm:MODEL@http://host:8000/v1?questions=FILE"`.
        name (`str`, *optional*, defaults to `"judge"`):
            Name in error messages.
        first_pause (`float`, *optional*, defaults to `1.0`):
            Seconds before a request that failed is made again; twice as many before each next.
    """

    def __init__(self, spec: JudgeSpec | str, name: str = "judge", first_pause: float = 1.0):
        self.spec = JudgeSpec.parse(name, spec) if isinstance(spec, str) else spec
        self.name, self.template = name, self.spec.template
        self.asking = Asking(self.spec, name, first_pause)

    @property
    def usage(self) -> dict[str, int]:
        """Images that were scored so far, the answers to that, and their tokens where the server says so; also those kept from before."""
        return self.asking.usage

    @property
    def note(self) -> str:
        """What must be said with every result."""
        return self.spec.describe(self.asking.reading)

    @property
    def fingerprint(self) -> str:
        """What identifies the judge: the model, what its server says of it, the template and the reading."""
        spec, reading, served = self.spec, self.asking.reading, self.asking.served
        words = [spec.model, f"{self.template.name} {self.template.hash}", reading]
        if reading in OF_WORDS:
            words.append(f"{spec.samples_of(reading)} at {spec.temperature_of(reading):g}")
            words += ["thinking"] if spec.thinking else []
        elif reading != "systemone":
            words.append(f"top {spec.top}")
        words += [] if spec.refused is None else [f"refused {spec.refused:g}"]
        words += [" ".join(f"{key} {value}" for key, value in served.items())] if served else []
        return f"vlm: {', '.join(words)}"

    @cached_property
    def metadata(self) -> Mapping[str, Mapping]:
        """What a benchmark asks of each prompt; set it to use other prompts in its format."""
        if not self.template.benchmark:
            return {}
        return {row["prompt"]: row for row in BENCHMARKS[self.template.prompts].load_rows()}

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        """Scores of shape `(N,)`, float32, of each image under the prompt at the same place."""
        atoms = self.atoms(images, prompts)
        scores = [
            self.spec.refused if values is None else self._combine(values, prompt)
            for values, prompt in zip(atoms, prompts, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float32)

    def atoms(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[list[float] | None]:
        """
        What each question about each image gives, from 0 to 1; `None` for an image about which the server will not answer,
        where `refused` says what that counts.
        """
        check_lengths(images, prompts)
        asked = [self._asked(prompt) for prompt in prompts]
        with ThreadPoolExecutor() as threads:
            pictures = list(threads.map(lambda image: image.convert("RGB"), images))
            hashes = list(threads.map(image_hash, pictures))
        samples = range(self.spec.samples_of(self.asking.reading))
        questions = [
            [[Question(picture, text, answer, sample) for sample in samples] for text, answer in about]
            for picture, about in zip(hashes, asked, strict=True)
        ]
        found = self.asking.ask(
            (question for about in questions for same in about for question in same),
            dict(zip(hashes, pictures, strict=True)),
        )
        values: list[list[float] | None] = []
        refused: list[str] = []
        for prompt, about in zip(prompts, questions, strict=True):
            answers = [[found[question] for question in same] for same in about]
            refusals = [a for same in answers for a in same if isinstance(a, Refusal)]
            if unable := next((r for r in refusals if r.failed or not CONTENT.search(r.reason)), None):
                self.asking.fail(f"does not answer a question about an image of {prompt[:200]!r}: {unable.reason}.")
            if refusals:
                refused.append(f"{prompt[:200]!r}: {refusals[0].reason}")
                values.append(None)
            else:
                values.append([sum(same) / len(same) for same in answers])
        if refused:
            said = f"refused questions about {len(refused)} images, first one of {refused[0]}."
            if self.spec.refused is None:
                self.asking.fail(f"{said} If that is to be a score, say which: refused=0.")
            logger.warning("%s: %s %s They count %g.", self.name, self.asking.endpoint.name, said, self.spec.refused)
        self.usage["images"] += len(images)
        return values

    def _asked(self, prompt: str) -> list[tuple[str, str]]:
        if self.template.benchmark and prompt not in self.metadata:
            raise UsageError(
                f"{self.name} does not know what {prompt!r} asks for: {self.template.name} judges its own prompts only."
            )
        return self.template.asked(prompt, self.metadata.get(prompt))

    def _combine(self, values: Sequence[float], prompt: str) -> float:
        """The score of an image."""
        if self.template.benchmark == "dpg":
            asked = self.metadata[prompt]["questions"]
            raw = {item["id"]: float(value > 0.5) for item, value in zip(asked, values, strict=True)}
            return dpg_score(raw, {item["id"]: item["parents"] for item in asked})
        if self.template.benchmark is not None:
            return soft_tifa(values, "geometric" if self.template.benchmark == "geneval2_gm" else "arithmetic")
        weights = [weight for _, _, weight in self.template.questions]
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
