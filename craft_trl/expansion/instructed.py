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

"""What expansion by a language model is, wherever the model runs: instructions, answers that are checked, and more tries."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat.cache import Answer, AnswerCache, Refusal
from ..errors import UsageError
from ..progress import progress_bar
from ..prompts.duplicates import normalise
from ..texts import JSONError, find_flaw, read_text, scan_json
from .checks import find_faults


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


INSTRUCTIONS = Path(__file__).with_name("instructions.txt")


@dataclass(frozen=True)
class Question:
    """
    A request for the variants of a prompt.

    Args:
        prompt (`str`):
            Original prompt.
        index (`int`):
            How often it was asked before.
        seed (`int`):
            Seed of the sampling, from the expander's seed, the prompt and the index alone.
        messages (`list[dict]`):
            What the model is told.
        num_variants (`int`):
            How many variants it is asked for.
    """

    prompt: str
    index: int
    seed: int
    messages: list[dict[str, str]]
    num_variants: int


class InstructedExpander(ABC):
    """
    Expands prompts by a language model that is told how.

    Each prompt is asked for in one question, answered by JSON. Of the variants that come back, those that pass
    [`find_faults`] and differ from one another are kept. A prompt that has too few is asked for again, with another
    seed, up to `max_attempts` times in all; one that then still has too few, or that the server refuses, fails: it gets
    no variants, and `failures` says why. Nothing is filled up with anything else.

    Args:
        model (`str`):
            Name of the language model.
        instructions (`str` or `Path`, *optional*):
            Text file of what the model is told. The prompt follows as a message of its own, JSON of `prompt`,
            `num_variants` and `max_words`. Defaults to the package's `expansion/instructions.txt`.
        temperature (`float`, *optional*, defaults to `0.8`):
            Temperature of the sampling, above 0: at 0, asking again would bring the same answer.
        max_tokens (`int`, *optional*):
            Most tokens of an answer. Defaults to `256 + 160 * num_variants`.
        max_attempts (`int`, *optional*, defaults to `4`):
            How often a prompt is asked for, in all.
        seed (`int`, *optional*, defaults to `0`):
            Seed, of which each question gets its own, keyed by the prompt: it does not depend on the other prompts.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`, *optional*):
            Tokenizers of the image model; a variant that would be cut off is not taken, see [`too_long`].
        cache (`str` or `Path`, *optional*):
            `.jsonl` file in which every answer is kept. A question that is in it is not asked again.

    Attributes:
        failures (`dict[str, list[str]]`): of the last call, the prompts that failed and what was wrong with their variants.
        faults (`Counter`): of the last call, how many variants or answers were not taken, by the kind of their fault.
        answers (`list[Answer]`): of the last call, the answers that went into it, also those kept from before.
    """

    def __init__(
        self,
        model: str,
        *,
        instructions: str | Path | None = None,
        temperature: float = 0.8,
        max_tokens: int | None = None,
        max_attempts: int = 4,
        seed: int = 0,
        tokenizers: "Sequence[PreTrainedTokenizerBase]" = (),
        cache: str | Path | None = None,
    ):
        if not temperature > 0:
            raise UsageError(f"The temperature of the expander must be above 0, got {temperature}.")
        if max_attempts < 1:
            raise UsageError(f"The expander's max_attempts must be at least 1, got {max_attempts}.")
        self.model = model
        self.instructions = read_instructions(instructions or INSTRUCTIONS)
        self.temperature, self.max_tokens, self.max_attempts, self.seed = temperature, max_tokens, max_attempts, seed
        self.tokenizers = list(tokenizers)
        # Three words make about four tokens of CLIP; two tokens are the marks of beginning and end.
        limit = max((t.model_max_length for t in self.tokenizers), default=77)
        self.max_words = max(4, min((limit - 2) * 3 // 4, 120))
        self.cache = AnswerCache(cache)
        self.failures: dict[str, list[str]] = {}
        self.faults: Counter[str] = Counter()
        self.answers: list[Answer] = []
        self.say: Callable[..., None] = lambda text, refresh=True: None  # beside the progress bar

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the variants of a prompt, for a fingerprint."""
        return {
            "model": self.model,
            "instructions": hashlib.sha256(self.instructions.encode()).hexdigest(),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "max_words": self.max_words,
            "seed": self.seed,
        }

    def __call__(self, prompts: Sequence[str], num_variants: int) -> list[list[str]]:
        """
        Variants of each prompt.

        Args:
            prompts (`Sequence[str]`):
                Original prompts, each once.
            num_variants (`int`):
                Number of variants of each.

        Returns:
            `list[list[str]]`: for each prompt `num_variants` different texts, or none if it failed.
        """
        if num_variants < 1:
            raise UsageError(f"num_variants must be at least 1, got {num_variants}.")
        variants: dict[str, dict[str, str]] = {prompt: {} for prompt in prompts}  # of each, by normalised text
        wrong: dict[str, list[str]] = {prompt: [] for prompt in prompts}
        refused: set[str] = set()
        self.failures, self.faults, self.answers = {}, Counter(), []
        with progress_bar(total=len(variants), desc="Expanding", unit="prompt") as progress:
            self.say = progress.set_postfix_str

            def take(question: Question, answer: Answer | Refusal) -> None:
                texts = variants[question.prompt]
                if isinstance(answer, Answer):
                    self.answers.append(answer)
                    faults = self._add(texts, question, answer)
                else:
                    refused.add(question.prompt)
                    faults = [f"refused: {answer.reason}"]
                wrong[question.prompt] += faults
                self.faults.update(fault.partition(":")[0] for fault in faults)
                progress.update(len(texts) == num_variants)

            def keep(question: Question, answer: Answer | Refusal) -> None:
                if isinstance(answer, Answer):
                    self.cache.add(self._key(question), answer)
                take(question, answer)

            for index in range(self.max_attempts):
                lacking = [p for p, texts in variants.items() if len(texts) < num_variants and p not in refused]
                unknown = []
                for question in (self._question(prompt, index, num_variants) for prompt in lacking):
                    kept = self.cache.get(self._key(question))
                    if kept is None:
                        unknown.append(question)
                    else:
                        take(question, kept)
                if unknown:
                    self._ask(unknown, keep)
        self.failures = {prompt: wrong[prompt] for prompt, texts in variants.items() if len(texts) < num_variants}
        return [[] if prompt in self.failures else list(variants[prompt].values()) for prompt in prompts]

    @abstractmethod
    def _ask(self, questions: Sequence[Question], keep: Callable[[Question, Answer | Refusal], None]) -> None:
        """Ask the model all questions and hand over each answer as soon as it is there, in any order."""

    def _question(self, prompt: str, index: int, num_variants: int) -> Question:
        digest = hashlib.sha256(f"{self.seed} {index} {prompt}".encode()).digest()
        asked = {"prompt": prompt, "num_variants": num_variants, "max_words": self.max_words}
        messages = [
            {"role": "system", "content": self.instructions},
            {"role": "user", "content": json.dumps(asked, ensure_ascii=False)},
        ]
        return Question(prompt, index, int.from_bytes(digest[:4], "big") >> 1, messages, num_variants)

    def _key(self, question: Question) -> dict[str, Any]:
        """All that decides the answer to a question."""
        return {
            **self.settings,
            "prompt": question.prompt,
            "num_variants": question.num_variants,
            "index": question.index,
        }

    def _tokens(self, question: Question) -> int:
        return self.max_tokens or 256 + 160 * question.num_variants

    def _add(self, texts: dict[str, str], question: Question, answer: Answer) -> list[str]:
        """Add the good variants of an answer to `texts`, up to the number that is wanted, and return the faults found."""
        try:
            found = parse(answer.text)
        except ValueError as error:
            cut_off = answer.finish_reason == "length"
            return ["truncated: the answer was cut off" if cut_off else f"format: {error}"]
        faults = []
        for text in found:
            if len(texts) == question.num_variants:
                return faults
            # Half an emoji, where a model or a server has cut one, cannot even be counted in tokens.
            broken = find_flaw(text) or ("a replacement character, U+FFFD" if "\ufffd" in text else None)
            problems = [f"format: {broken}"] if broken else find_faults(question.prompt, text, self.tokenizers)
            if normalise(text) in texts:
                problems.append("repeated: it says the same as another variant")
            if not problems:
                texts[normalise(text)] = text
            faults += problems
        if len(found) < question.num_variants:
            faults.append(f"too few: {len(found)} variants instead of {question.num_variants}")
        return faults


def read_instructions(path: str | Path) -> str:
    """The text of an instruction file."""
    # With the line ends of any system it is the same text, and has the same hash.
    text = re.sub(r"\r\n?", "\n", read_text(path, "the expander's instructions")).strip()
    if not text:
        raise UsageError(f"The expander's instructions {path} are empty.")
    return text


def parse(text: str) -> list[str]:
    """
    Variants in an answer: the first JSON object with a list `variants` of texts, or list of texts, in it. What a model
    thinks aloud in `<think>` is passed over, as is what it says around the JSON. Anything else is a `ValueError`.
    """
    text = re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL)
    start = re.search(r"[{\[]", text)
    if start is None:
        raise ValueError("no JSON in the answer")
    try:
        content, _ = scan_json(text, start.start())
    except JSONError as error:
        raise ValueError(f"not JSON ({error})") from error
    variants = content.get("variants") if isinstance(content, dict) else content
    if not isinstance(variants, list) or not all(isinstance(variant, str) for variant in variants):
        raise ValueError("no list of texts under `variants`")
    return [cleaned for variant in variants if (cleaned := " ".join(variant.split()))]
