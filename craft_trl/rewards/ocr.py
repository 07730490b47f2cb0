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
How much of the text that a prompt asks for, in quotes, can be read in its image.

The text is read by rapidocr (`pip install "craft_trl[ocr]"`), whose wheel carries its models: PP-OCRv6, Latin, Chinese and
Japanese. Nothing is downloaded, and nothing of it is imported before the first image with text is scored.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ..conditions import quoted_texts
from ..errors import UsageError
from .reward_model import check_lengths


PACKAGE = "rapidocr"
# OCR writes straight signs where a prompt has curly ones, and the other way round.
ALIKE = str.maketrans("‘’‚‛“”„‟–—−", "''''\"\"\"\"---")


class OCR:
    """
    Share of the signs that a prompt asks for and its image shows, from 0 to 1; 1 for a prompt that asks for none.

    What stands in a prompt in quotes, see [`~conditions.quoted_texts`], is looked for in all that is read in the image: the score of one
    text is `1 - d / n`, where `n` is its length and `d` the least number of signs to insert, delete or change so that it is
    somewhere in what was read. Of several texts it is the mean. Case, blanks and the shape of quotes and dashes make no
    difference, nor do compatibility forms (NFKC: ² is 2). Text that nobody asked for costs nothing, and a text that is asked
    for twice need not be there twice.

    With `rule="flow_grpo"` it is the score of Flow-GRPO and its kin (https://github.com/yifan123/flow_grpo): the text between
    the first two straight quotes, against all that was read as one text, so that what was not asked for costs. Recipes
    name that as `NAME=craft_trl.rewards.ocr:FlowGRPO`.

    Images are read one at a time, on one thread of the CPU, so that a score depends on its image alone.

    Args:
        rule (`"somewhere"` or `"flow_grpo"`, *optional*, defaults to `"somewhere"`):
            What is compared with what.
    """

    note = "a prompt that asks for no text in quotes counts as 1."

    def __init__(self, rule: Literal["somewhere", "flow_grpo"] = "somewhere"):
        if rule not in ("somewhere", "flow_grpo"):
            raise UsageError(f"rule must be somewhere or flow_grpo, got {rule!r}.")
        self.rule = rule
        installed()

    @cached_property
    def reader(self) -> Any:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:  # such as of onnxruntime, which it does not ask for itself
            raise UsageError(f"The reward ocr needs {error.name}: {REMEDY}.") from error

        one_thread = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
        return RapidOCR(params=one_thread | {"Global.log_level": "error"})

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        """Scores of shape `(N,)`, float32, of each image under the prompt at the same place."""
        check_lengths(images, prompts)
        scores = []
        for image, prompt in zip(images, prompts, strict=True):
            asked = quoted_texts(prompt)
            scores.append(self.compare(asked, self.read(image)) if asked else 1.0)
        return torch.tensor(scores, dtype=torch.float32)

    def read(self, image: Image.Image) -> list[str]:
        """The lines of an image, from above to below."""
        return list(self.reader(image.convert("RGB")).txts or ())  # as an array it would be taken for BGR

    def compare(self, asked: Sequence[str], lines: Sequence[str]) -> float:
        """The score of texts that were asked for where these lines were read."""
        if self.rule == "flow_grpo":
            text, there = ("".join(part.lower().split(" ")) for part in (asked[0], "".join(lines)))
            return 1.0 - min(0 if text in there else distance(text, there), len(text)) / len(text)
        there = normalise("".join(lines))
        texts = [normalise(text) for text in asked]
        return float(np.mean([1.0 - distance(text, there, somewhere=True) / len(text) for text in texts]))


class FlowGRPO(OCR):
    """[`OCR`] by the rule of Flow-GRPO, for recipes."""

    def __init__(self):
        super().__init__("flow_grpo")


REMEDY = 'pip install "craft_trl[ocr]"'


def installed() -> str:
    """Name and version of what reads, which identify its models too; a [`UsageError`] if it is not there."""
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError as error:
        raise UsageError(f"The reward ocr needs {PACKAGE}: {REMEDY}.") from error


def normalise(text: str) -> str:
    """A text without what makes no difference between one that is asked for and one that is read."""
    text = unicodedata.normalize("NFKC", text.translate(ALIKE)).casefold()
    return re.sub(r"\s+", "", text)


def distance(text: str, there: str, somewhere: bool = False) -> int:
    """Levenshtein distance of two texts, or that of the first to the part of the second that is most like it."""
    best = [0] * (len(there) + 1) if somewhere else list(range(len(there) + 1))
    for row, sign in enumerate(text, 1):
        above, best = best, [row]
        for column, other in enumerate(there, 1):
            best.append(min(above[column - 1] + (sign != other), above[column] + 1, best[-1] + 1))
    return min(best) if somewhere else best[-1]
