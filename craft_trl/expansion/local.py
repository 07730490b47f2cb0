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

"""Expansion by an instruct model on this machine."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from ..chat.cache import Answer, Refusal
from ..devices import default_device
from ..errors import UsageError
from ..quiet import quiet_bars
from ..sources import first_line, model_hash
from ..texts import mend
from .instructed import InstructedExpander, Question


class TransformersExpander(InstructedExpander):
    """
    Expands prompts by an instruct model that runs here, through transformers.

    The model is loaded when the first question is asked that the cache does not know. Each question is sampled with a
    generator of its own, so that, up to the rounding of floating point, an answer does not depend on what it is batched
    with.

    Args:
        model (`str`):
            Hub id or folder of a causal language model with a chat template.
        revision (`str`, *optional*):
            Revision on the Hub.
        batch_size (`int`, *optional*, defaults to `8`):
            Questions that are answered at a time.
        device (`torch.device` or `str`, *optional*):
            Where to run. Defaults to [`~devices.default_device`].
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Data type of the weights; `"auto"` is that of the checkpoint.
        kwargs:
            Arguments of [`InstructedExpander`].
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        batch_size: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = "auto",
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        if batch_size < 1:
            raise UsageError(f"The expander's batch_size must be at least 1, got {batch_size}.")
        self.revision, self.batch_size, self.device, self.dtype = revision, batch_size, device, dtype
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, padding_side="left")
        except (OSError, ValueError) as error:
            raise UsageError(f"Language model {model}: {first_line(error)}") from error
        if self.tokenizer.chat_template is None:
            raise UsageError(f"Language model {model} has no chat template: take an instruct model.")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._hash = model_hash(model, revision)
        self._network = None

    @property
    def settings(self) -> dict[str, Any]:
        # A folder is known by what it holds, not by where it lies.
        return {"expander": "transformers", **super().settings, "model": self._hash}

    def _ask(self, questions: Sequence[Question], keep: Callable[[Question, Answer | Refusal], None]) -> None:
        for start in range(0, len(questions), self.batch_size):
            batch = questions[start : start + self.batch_size]
            for question, answer in zip(batch, self._generate(batch), strict=True):
                keep(question, answer)

    @torch.inference_mode()
    def _generate(self, questions: Sequence[Question]) -> list[Answer]:
        network = self._load()
        texts = [render(self.tokenizer, question.messages) for question in questions]
        inputs = self.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt").to(network.device)
        # Greedy search over the scores of `SeededSampling` is the sampling, hence no sampling by `generate` itself.
        config = copy.deepcopy(network.generation_config)
        config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
        config.update(max_new_tokens=self._tokens(questions[0]), pad_token_id=self.tokenizer.pad_token_id)
        if config.eos_token_id is None:
            config.eos_token_id = self.tokenizer.eos_token_id
        sampling = SeededSampling([question.seed for question in questions], self.temperature, network.device)
        output = network.generate(**inputs, generation_config=config, logits_processor=LogitsProcessorList([sampling]))
        ends = torch.tensor(config.eos_token_id).reshape(-1)
        answers = []
        for mask, tokens in zip(inputs.attention_mask, output[:, inputs.input_ids.shape[1] :].cpu(), strict=True):
            end = torch.isin(tokens, ends).nonzero()
            length = int(end[0]) + 1 if len(end) else len(tokens)
            text = self.tokenizer.decode(tokens[:length], skip_special_tokens=True)
            answers.append(Answer(mend(text), "stop" if len(end) else "length", int(mask.sum()), length))
        return answers

    @quiet_bars()
    def _load(self):
        if self._network is None:
            try:
                self._network = AutoModelForCausalLM.from_pretrained(
                    self.model, revision=self.revision, dtype=self.dtype, use_safetensors=True
                )
            except (OSError, ValueError) as error:
                raise UsageError(f"Language model {self.model}: {first_line(error)}") from error
            self._network.to(self.device or default_device()).eval()
        return self._network


class SeededSampling(LogitsProcessor):
    """
    Turns greedy search into sampling at a temperature, each row with a generator of its own: the token with the highest
    `logit / temperature + Gumbel noise` is a sample of the softmax (Gumbel-max trick, Maddison et al., 2014,
    [1411.0030](https://huggingface.co/papers/1411.0030)).

    Args:
        seeds (`Sequence[int]`):
            Seed of each row.
        temperature (`float`):
            Temperature, above 0.
        device (`torch.device`):
            Where the scores are.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device | str = "cpu"):
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        noise = torch.empty_like(scores, dtype=torch.float32)  # (rows, vocabulary)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        # The negative logarithm of an exponential variable is a Gumbel variable.
        return scores.float() / self.temperature - noise.log()


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """A conversation as the model reads it. Models that know no system message get it with the user's."""
    # `enable_thinking` is a word of Qwen3's template: the answer is wanted, not the way to it. Others pass over it.
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError:
        text = "\n\n".join(message["content"] for message in messages)
        return tokenizer.apply_chat_template([{"role": "user", "content": text}], **options)
