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

"""Questions about images to a vision-language model behind an endpoint: what is sent, what is kept, and whether it sees."""

import base64
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from ...chat.cache import Answer, AnswerCache, Refusal
from ...chat.endpoint import ChatEndpoint, Request
from ...errors import UsageError
from ...masking import mask_settings
from ...progress import progress_bar
from ...stages import fingerprint
from ..remote import to_png
from .readings import NUMBERS, OF_PROBABILITIES, OF_WORDS, NoAnswer, read_first, read_score, read_words
from .spec import JudgeSpec


logger = logging.getLogger(__name__)

SERVED = ("id", "root", "parent", "owned_by")  # what `/models` says that stays the same
ATTEMPTS = 3  # for an answer in sampled words, until there is one in it
SURE = 0.1  # how much more probable it must be of a red picture that it is red than of a blue one
BLIND = "It does not see the pictures, or cannot tell them apart: is it a model that takes images, and was it served as one?"
NO_PROBABILITIES = "there are no log-probabilities; reading=text reads the words, and reading=systemone asks `transformers serve` for them"


@dataclass(frozen=True)
class Question:
    """
    A question about an image.

    Args:
        picture (`str`):
            The image, see [`image_hash`].
        text (`str`):
            The question.
        answer (`str`):
            The expected answer.
        sample (`int`, *optional*, defaults to `0`):
            How often it was asked before.
    """

    picture: str
    text: str
    answer: str
    sample: int = 0

    def seed(self, attempt: int) -> int:
        """Seed of the sampling, from the question alone."""
        digest = hashlib.sha256(f"{self.sample} {attempt} {self.text}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


class Asking:
    """
    A vision-language model that answers questions about images, with all that it has answered before.

    Args:
        spec ([`JudgeSpec`]):
            The model, where it is and what it is asked.
        name (`str`):
            Name in error messages.
        first_pause (`float`, *optional*, defaults to `1.0`):
            Seconds before a request that failed is made again.
    """

    def __init__(self, spec: JudgeSpec, name: str, first_pause: float = 1.0):
        self.spec, self.name, self.template = spec, name, spec.template
        self.endpoint = ChatEndpoint(
            spec.model,
            spec.base_url,
            provider=spec.provider,
            api_key_env=spec.api_key_env,
            concurrency=spec.concurrency,
            requests_per_minute=spec.requests_per_minute,
            timeout=spec.timeout,
            max_retries=spec.max_retries,
            first_pause=first_pause,
            extra_body=dict(self.template.extra_body),
            role="judge",
            unit="questions",
        )
        self.usage = {"images": 0, "answers": 0, "prompt_tokens": 0, "completion_tokens": 0}

    @cached_property
    def served(self) -> dict[str, Any]:
        """What the server says of the model, of that which does not change by itself; nothing where it does not say."""
        if self.spec.base_url is None:
            return {"provider": self.spec.provider or "auto"}

        def read(content: Any) -> Answer:
            models = content.get("data") or [] if isinstance(content, dict) else []
            entry = next((m for m in models if isinstance(m, dict) and m.get("id") == self.spec.model), {})
            return Answer(json.dumps({key: entry[key] for key in SERVED if isinstance(entry.get(key), str | int)}))

        try:
            (answer,) = self._send([Request(path="/models", read=read)])
        except UsageError as error:
            if _status(error) not in (404, 405, 501):
                raise
            return {}
        return json.loads(answer.text) if isinstance(answer, Answer) else {}

    @cached_property
    def reading(self) -> str:
        """How answers become numbers. Found out before the first question, and so is that the judge sees."""
        wanted = self.spec.reading or (self.template.reading if self.template.reading in OF_WORDS else None)
        if wanted is not None:
            self._check_sight(wanted)
            return wanted
        # Does it give probabilities? Else, does it have a way of its own to give some?
        wanted, looks = self.template.reading, self._look(self.template.reading)
        if any(isinstance(answer, Refusal) or answer.first for answer in looks):
            self._check_sight(wanted, looks)
            return wanted
        if self.spec.base_url is not None and not self.template.system:
            try:
                looks = self._look("systemone")
            except UsageError as error:
                if _status(error) not in (403, 404, 405, 501):
                    raise
            else:
                if all(isinstance(answer, Answer) for answer in looks):
                    self._check_sight("systemone", looks)
                    return "systemone"
        self._check_sight("text")
        logger.warning(
            "%s gives no log-probabilities: every question of %s is asked %d times, and the words are read.",
            self.endpoint.name,
            self.name,
            self.spec.samples_of("text"),
        )
        return "text"

    @cached_property
    def cache(self) -> AnswerCache:
        """The answers so far."""
        name = re.sub(r"[^\w.-]+", "_", self.spec.model)[-80:]
        identity = fingerprint([self.spec.model, self.served])[:8]
        default = Path(HF_HOME) / "craft_trl" / "judges" / f"{name}-{identity}.jsonl"
        return AnswerCache(self.spec.cache or default, "judge")

    def ask(
        self, questions: Iterable[Question], pictures: Mapping[str, Image.Image]
    ) -> dict[Question, float | Refusal]:
        """
        What each question gives, from 0 to 1, or why it was refused.

        Args:
            questions (`Iterable[Question]`):
                The questions.
            pictures (`Mapping[str, PIL.Image.Image]`):
                Their images.
        """
        reading = self.reading
        found: dict[Question, float | Refusal] = {}
        waiting = list(dict.fromkeys(questions))
        faults: dict[Question, str] = {}
        for attempt in range(ATTEMPTS if self.spec.temperature_of(reading) else 1):

            def take(question: Question, answer: Answer | Refusal, attempt: int = attempt) -> None:
                faults.pop(question, None)
                if isinstance(answer, Refusal):
                    found[question] = answer
                    return
                try:
                    found[question] = self._read(answer, question.answer, reading)
                except NoAnswer as fault:
                    faults[question] = str(fault)
                    return
                self.usage["answers"] += 1
                self.usage["prompt_tokens"] += answer.prompt_tokens or 0
                self.usage["completion_tokens"] += answer.completion_tokens or 0
                key = self._key(question, attempt)
                if self.cache.get(key) is None:
                    self.cache.add(key, answer)

            self.cache.refresh()  # another judge may have asked the same
            unknown = []
            for question in waiting:
                kept = self.cache.get(self._key(question, attempt))
                unknown.append(question) if kept is None else take(question, kept)
            if unknown:
                self._ask(unknown, pictures, attempt, take)
            waiting = list(faults)
            if not waiting:
                return found
        question, fault = next(iter(faults.items()))
        self.fail(f"answered {len(faults)} questions without an answer; to {question.text[:200]!r}, {fault}.")

    def fail(self, what: str) -> None:
        """Raise the [`UsageError`] that says what the judge did."""
        raise UsageError(f"{self.name}: {self.endpoint.name} {what} What it has answered is kept.")

    def _ask(
        self,
        questions: Sequence[Question],
        pictures: Mapping[str, Image.Image],
        attempt: int,
        take: Callable[[Question, Answer | Refusal], None],
    ) -> None:
        with progress_bar(total=len(questions), desc=f"Asking {self.spec.model}", unit="question", leave=False) as bar:
            self.endpoint.say = bar.set_postfix_str

            def keep(question: Question, answer: Answer | Refusal) -> None:
                take(question, answer)
                bar.update()

            self.endpoint.ask(
                questions,
                lambda question: self._request(question, pictures[question.picture], self.reading, attempt),
                keep,
                lambda: self.usage["answers"] > 0,
            )

    def _request(self, question: Question, picture: Image.Image, reading: str, attempt: int = 0) -> Request:
        data = base64.b64encode(to_png(picture)).decode()
        if reading == "systemone":
            return systemone_request(self.spec.model, data, question)
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            {"type": "text", "text": question.text},
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.template.system:
            messages.insert(0, {"role": "system", "content": self.template.system})
        limit = 1 if reading in OF_PROBABILITIES else self.template.max_tokens
        parameters: dict[str, Any] = {"max_tokens": limit, "temperature": self.spec.temperature_of(reading)}
        if reading in OF_PROBABILITIES:
            parameters |= {"logprobs": True, "top_logprobs": self.spec.top}
        if parameters["temperature"]:
            parameters["seed"] = question.seed(attempt)
        if not self.spec.thinking:
            parameters["chat_template_kwargs"] = {"enable_thinking": False}
        return Request(messages, parameters, limit=limit, own=question.text)

    def _key(self, question: Question, attempt: int) -> dict[str, Any]:
        """All that decides an answer."""
        if self.reading in OF_PROBABILITIES:
            how: dict[str, Any] = {"asked_for": "probabilities", "top": self.spec.top}
        elif self.reading == "systemone":  # how it is asked depends on what is expected
            how = {"asked_for": "systemone", "of": "numbers" if question.answer in NUMBERS else "yes or no"}
        else:
            how = {"asked_for": "words", "max_tokens": self.template.max_tokens, "thinking": self.spec.thinking}
            how |= {"temperature": self.spec.temperature_of(self.reading), "sample": [question.sample, attempt]}
        extra_body = mask_settings(dict(self.template.extra_body))
        context = fingerprint([self.served, self.spec.provider, self.template.system, extra_body])[:16]
        asked = {"model": self.spec.model, "image": question.picture, "question": question.text}
        return {**asked, **how, "context": context}

    def _read(self, answer: Answer, expected: str, reading: str) -> float:
        if reading in OF_WORDS and answer.finish_reason == "length":
            raise NoAnswer(f"the answer was cut off after {self.template.max_tokens} tokens (max_tokens)")
        if reading == "text":
            return read_words(answer.text, expected)
        if reading == "score":
            return read_score(answer.text, **self.template.score)
        if not answer.first:
            raise NoAnswer(NO_PROBABILITIES)
        return read_first(answer.first, expected, "normalised_exact" if reading == "systemone" else reading)

    def _send(self, requests: Sequence[Request]) -> list[Answer | Refusal]:
        answers: dict[int, Answer | Refusal] = {}
        self.endpoint.ask(range(len(requests)), requests.__getitem__, answers.__setitem__)
        return [answers[i] for i in range(len(requests))]

    def _look(self, reading: str) -> list[Answer | Refusal]:
        """What it answers about a red and about a blue picture."""
        words = reading in OF_WORDS
        text = (
            "Which color is this picture? Answer in one word." if words else "Is this picture red? Answer Yes or No."
        )
        pictures = [Image.new("RGB", (224, 224), color) for color in ("#e00000", "#0000e0")]
        requests = [self._request(Question("", text, "Yes"), picture, reading) for picture in pictures]
        if words:
            for request in requests:
                request.parameters["temperature"] = 0.0
        return self._send(requests)

    def _check_sight(self, reading: str, looks: Sequence[Answer | Refusal] | None = None) -> None:
        """Raise a [`UsageError`] unless the judge tells a red picture from a blue one."""
        if not self.spec.probe:
            return
        looks = self._look(reading) if looks is None else looks
        if refusal := next((answer for answer in looks if isinstance(answer, Refusal)), None):
            self.fail(f"refuses a question about a picture of one color: {refusal.reason}.")
        if reading in OF_WORDS:
            said = [" ".join(answer.text.split())[-200:] for answer in looks]
            if "red" not in said[0].lower() or "blue" not in said[1].lower():
                self.fail(f"was shown a red and a blue picture, and says {said[0]!r} and {said[1]!r}. {BLIND}")
            return
        how = "systemone" if reading == "systemone" else "normalised"
        try:
            red, blue = (self._read(answer, "Yes", how) for answer in looks)
        except NoAnswer as fault:
            self.fail(f"was asked whether a picture is red: {fault}.")
        if red - blue < SURE:
            self.fail(
                f"was shown a red and a blue picture, and the probability that they are red is {red:.3f} and {blue:.3f} to it. "
                f"{BLIND}"
            )


def image_hash(image: Image.Image) -> str:
    """Of an image's size and pixels, however it is packed."""
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()


def systemone_request(model: str, data: str, question: Question) -> Request:
    """A question to `/v1/systemone`, which gives a probability for every answer: yes or no, or the numbers."""
    placeholder = f"<picture {hashlib.sha256(data.encode()).hexdigest()[:16]}>"
    asked: dict[str, Any] = {"type": "noul", "instructions": question.text}
    if question.answer in NUMBERS:
        asked |= {"type": "choice", "criteria": dict.fromkeys(NUMBERS)}

    def read(content: Any) -> Answer:
        answer = content["answers"]["q"]
        if question.answer in NUMBERS:
            first = [[number, float(answer["probabilities"][number])] for number in NUMBERS]
        else:
            first = [["Yes", float(answer["noul"])], ["No", 1.0 - float(answer["noul"])]]
        tokens = content.get("usage", {}).get("input_tokens")
        return Answer("", None, tokens if type(tokens) is int and tokens >= 0 else None, 0, first)

    body = {
        "model": model,
        "state": placeholder,
        "questions": {"q": asked},
        "assets": {placeholder: {"data_base64": data}},
    }
    return Request(path="/systemone", body=body, read=read, own=question.text)


def _status(error: UsageError) -> int | None:
    """Of an HTTP response that is the cause of an error."""
    cause = error.__cause__
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
