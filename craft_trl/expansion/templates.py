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

"""Expansion by template rules."""

import random
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from .checks import too_long


class PromptExpander:
    """
    Expands prompts by template rules, with no model and no network.

    Args:
        templates (`Sequence[str]`):
            Texts that contain `{prompt}` once, such as `"{prompt}, sharp focus, intricate details"`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice of templates, keyed by the prompt: it does not depend on the other prompts.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`, *optional*):
            Tokenizers of the image model. If given, a prompt with a variant that would be cut off fails, see [`too_long`].

    Attributes:
        failures (`dict[str, list[str]]`): of the last call, the prompts that failed and why.

    Examples:

    ```python
    >>> from craft_trl import PromptExpander
    >>> PromptExpander(["{prompt}, sharp", "a photo of {prompt}"])(["a fox"], num_variants=2)
    [['a photo of a fox', 'a fox, sharp']]
    ```
    """

    def __init__(self, templates: Sequence[str], seed: int = 0, tokenizers: Sequence = ()):
        for template in templates:
            if template.count("{prompt}") != 1 or not template.replace("{prompt}", "").strip():
                raise UsageError(f"Template {template!r} must contain {{prompt}} once, and words of its own.")
        if len(set(templates)) != len(templates):
            repeated = next(t for i, t in enumerate(templates) if t in templates[:i])
            raise UsageError(f"Template {repeated!r} is there twice.")
        self.templates = list(templates)
        self.seed = seed
        self.tokenizers = list(tokenizers)
        self.failures: dict[str, list[str]] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the variants of a prompt, for a fingerprint."""
        return {"expander": "templates", "templates": self.templates, "seed": self.seed}

    def __call__(self, prompts: Sequence[str], num_variants: int) -> list[list[str]]:
        """
        Variants of each prompt.

        Args:
            prompts (`Sequence[str]`):
                Original prompts.
            num_variants (`int`):
                Number of variants of each, from different templates.

        Returns:
            `list[list[str]]`: for each prompt `num_variants` different texts, or none if it failed.
        """
        if not 1 <= num_variants <= len(self.templates):
            raise UsageError(
                f"num_variants must be from 1 to {len(self.templates)}, the templates; got {num_variants}."
            )
        variants = [self._expand(prompt, num_variants) for prompt in prompts]
        faults = [[fault for text in texts if (fault := too_long(text, self.tokenizers))] for texts in variants]
        self.failures = {prompt: found for prompt, found in zip(prompts, faults, strict=True) if found}
        return [[] if found else texts for texts, found in zip(variants, faults, strict=True)]

    def _expand(self, prompt: str, num_variants: int) -> list[str]:
        templates = random.Random(f"{self.seed} {prompt}").sample(self.templates, num_variants)
        return [template.replace("{prompt}", prompt) for template in templates]
