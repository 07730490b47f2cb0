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

"""An OpenAI-compatible endpoint: questions asked at a time, retries, what a server does not take, and keys."""

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, InferenceTimeoutError
from huggingface_hub.inference._providers import PROVIDERS

from ..errors import UsageError
from ..masking import TOKENS, find_secrets, mask_text
from ..parser import suggest
from ..texts import one_line
from .cache import Answer, Refusal
from .completions import ChatClient, complaint, read_answer, retry_after


logger = logging.getLogger(__name__)

BUSY = (408, 409, 425, 429)  # and all from 500 on: asked again
REFUSED = (400, 413, 422)  # of this question; other codes below 500 are refusals of all questions
MOST_REFUSALS = 20  # of the first questions: then it is not the questions that are wrong
LONGEST_PAUSE = 600.0  # seconds that a server may ask to wait
LAST_WORDS = 10.0  # seconds for answers that are under way when another question has ended the call
DONE = object()
NO_KEY = "none"

Question = TypeVar("Question")


@dataclass(frozen=True)
class Request:
    """
    What is sent for a question.

    Args:
        messages (`list[dict]`):
            The conversation so far.
        parameters (`dict`, *optional*):
            What a server may refuse, and is asked without then.
        limit (`int`, *optional*):
            Most tokens of the answer for a server that knows `max_tokens` by the name of `max_completion_tokens` only.
        formats (`Mapping[str | None, dict | None]`, *optional*):
            What the answer must look like, by name and in OpenAI's words, the strictest first.
        own (`str`, *optional*):
            What of it is the user's, which a server may repeat in its refusal.
        path (`str`, *optional*):
            Where to ask instead of `/chat/completions`.
        body (`dict`, *optional*):
            What to send there; nothing, to a `GET`, by default.
        read (`Callable[[Any], Answer]`, *optional*):
            The answer in what comes from there; a `ValueError`, `TypeError` or `LookupError` if it is none.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    formats: Mapping[str | None, dict[str, Any] | None] = field(default_factory=lambda: {None: None})
    own: str = ""
    path: str | None = None
    body: dict[str, Any] | None = None
    read: Callable[[Any], Answer] | None = None


class ChatEndpoint:
    """
    A model behind an OpenAI-compatible endpoint.

    Questions are asked concurrently. A server that is busy, away, or answers with something that is no chat completion is
    asked again after growing pauses, or after the pause it asks for. If that does not help, the call ends with an error;
    only a question at which the server fails while it answers others counts as refused. A server that does not know the
    strictest format is asked for the next one. So it is with parameters, which models that reason refuse: what a server
    names in its refusal is left out, and a limit that was given is sent as `max_completion_tokens`.

    Args:
        model (`str`):
            Name of the model at the endpoint.
        base_url (`str`, *optional*):
            Where the endpoint is. Defaults to Hugging Face's Inference Providers.
        provider (`str`, *optional*):
            One of the Inference Providers.
        api_key_env (`str`, *optional*):
            Environment variable that holds the key, see [`EndpointExpander`].
        concurrency (`int`, *optional*, defaults to `8`):
            Questions that wait for an answer at a time, at most 100.
        requests_per_minute (`float`, *optional*):
            Most requests in a minute, evenly spaced.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds to wait for an answer.
        max_retries (`int`, *optional*, defaults to `6`):
            How often a request that failed is made again.
        first_pause (`float`, *optional*, defaults to `1.0`):
            Seconds before the first retry; twice as many before each next.
        extra_body (`dict`, *optional*):
            More parameters of every request.
        role (`str`, *optional*, defaults to `"expander"`):
            What the model is to the user, for error messages.
        unit (`str`, *optional*, defaults to `"prompts"`):
            What the user calls what is asked.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        provider: str | None = None,
        api_key_env: str | None = None,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        timeout: float = 120.0,
        max_retries: int = 6,
        first_pause: float = 1.0,
        extra_body: dict[str, Any] | None = None,
        role: str = "expander",
        unit: str = "prompts",
    ):
        self.model, self.role, self.unit = model, role, unit
        check_address(base_url, provider, role)
        if not 1 <= concurrency <= 100:
            raise UsageError(f"The {role}'s concurrency must be from 1 to 100, got {concurrency}.")
        for name, value in (("requests_per_minute", requests_per_minute), ("timeout", timeout)):
            if value is not None and not value > 0:
                raise UsageError(f"The {role}'s {name} must be above 0, got {value}.")
        if max_retries < 0:
            raise UsageError(f"The {role}'s max_retries must be at least 0, got {max_retries}.")
        self.base_url, self.provider = base_url, provider
        self.api_key_env = api_key_env or ("HF_TOKEN" if base_url is None else "OPENAI_API_KEY")
        self._key_is_named = api_key_env is not None
        self.api_key()
        self.concurrency, self.timeout = concurrency, timeout
        self.interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self.max_retries, self.first_pause, self.extra_body = max_retries, first_pause, extra_body or {}
        self.struck = 0  # formats, the strictest first, that the server does not know
        self.left_out: set[str] = set()  # parameters that the server does not take
        self.say: Callable[..., None] = lambda text, refresh=True: None  # beside a progress bar
        self._works = False
        self._refusals = self._answered = 0
        self._given_up = False  # a question, since the last answer
        self._next = 0.0
        self._stopped = False
        self._under_way: set[asyncio.Task] = set()  # those that wait for an answer, and not for their turn

    def api_key(self) -> str:
        """The key, read when it is needed so that it is kept nowhere."""
        name = self.api_key_env
        key = os.environ.get(name, "").strip()  # a key that was read from a file often ends in a newline
        if not key and self.base_url is None and not self._key_is_named:
            key = get_token()
        if not key and (self._key_is_named or self.base_url is None):
            if not re.fullmatch("[A-Z_][A-Z0-9_]*", name) or TOKENS.search(name):
                name = "that api_key_env names, which is not set. It takes the name of a variable, not a key"
            raise UsageError(f"The {self.role}'s key is missing: put it into the environment variable {name}.")
        if key and not re.fullmatch("[!-~]+", key):
            raise UsageError(
                f"The {self.role}'s key, in the environment variable {name}, holds a blank or a character that is not ASCII: "
                "such a key cannot be sent. Copy it again."
            )
        # Never empty: with a URL, `InferenceClient` would send the user's Hub token to whoever that is.
        return key or NO_KEY

    def ask(
        self,
        questions: Sequence[Question],
        request: Callable[[Question], Request],
        keep: Callable[[Question, Answer | Refusal], None],
        has_answered: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Ask questions.

        Args:
            questions (`Sequence`):
                The questions, of any kind.
            request (`Callable[[Question], Request]`):
                What is sent for each.
            keep (`Callable[[Question, Answer | Refusal], None]`):
                Gets each answer as soon as it is there, in any order.
            has_answered (`Callable[[], bool]`, *optional*):
                Whether any question was answered, perhaps in an earlier run; if none of the first was, all are taken to be
                refused.
        """
        if not questions:
            return None
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._ask_all(questions, request, keep, has_answered))
        with ThreadPoolExecutor(1) as thread:  # in a notebook, whose loop is running
            return thread.submit(asyncio.run, self._ask_all(questions, request, keep, has_answered)).result()

    async def _ask_all(self, questions, request, keep, has_answered) -> None:
        waiting = iter(questions)
        self._refusals, self._given_up, self._stopped = 0, False, False
        self._under_way.clear()
        async with ChatClient(
            base_url=self.base_url, provider=self.provider, api_key=self.api_key(), timeout=self.timeout
        ) as client:
            workers = [
                asyncio.ensure_future(self._work(client, waiting, request, keep, has_answered))
                for _ in range(min(self.concurrency, len(questions)))
            ]
            try:
                await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                self._stopped = True
                # If one has failed, what others have asked is answered and paid for, perhaps, and is not asked again.
                if waiting_for := [worker for worker in workers if worker in self._under_way]:
                    await asyncio.wait(waiting_for, timeout=LAST_WORDS)
            finally:  # also after Ctrl-C
                for worker in workers:
                    worker.cancel()
                results = await asyncio.gather(*workers, return_exceptions=True)
            for error in results:
                if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
                    raise error

    async def _work(self, client: ChatClient, waiting: Iterator, request, keep, has_answered) -> None:
        while not self._stopped and (question := next(waiting, DONE)) is not DONE:
            answer = await self._answer(client, request(question))
            keep(question, answer)
            self._refusals += isinstance(answer, Refusal)
            if self._refusals == MOST_REFUSALS and not has_answered():
                raise UsageError(
                    f"{self.name} refused the first {self._refusals} {self.unit}; the last time it said: {answer.reason}"
                )

    async def _answer(self, client: ChatClient, request: Request) -> Answer | Refusal:
        attempt, answered = 0, self._answered
        struck, left_out = self.struck, set(self.left_out)
        while True:
            await self._turn()
            pause = None
            parameters = self._parameters(request, left_out)
            try:
                # The client's own timeout is for each byte; a server that trickles would never run into it.
                self._under_way.add(asyncio.current_task())
                answer = await asyncio.wait_for(self._send(client, request, parameters, struck), self.timeout)
                self._settle(request, struck, left_out)
                self._answered, self._given_up = self._answered + 1, False
                self.say("", refresh=False)
                return answer
            except (TimeoutError, InferenceTimeoutError):
                problem, fault = f"no answer in {self.timeout:g} seconds", "server"
            except HfHubHTTPError as error:
                status, said = error.response.status_code, complaint(error.response.text)
                problem = f"status {status}" + (f", {self.masked(said)}" if said else "")
                if status in REFUSED and self._works and (struck, left_out) != (self.struck, self.left_out):
                    struck, left_out = self.struck, set(self.left_out)  # found out meanwhile
                    continue
                if status in REFUSED and not self._works:
                    # Perhaps it is not the question that it refuses, but a parameter, or what the answer must look like.
                    words = set(re.findall(r"\w+", said.replace(request.own, "") if request.own else said))
                    named = (parameters.keys() - self.extra_body.keys()) & words
                    left_out |= named
                    if named or struck + 1 < len(request.formats):
                        struck += not named
                        continue
                if status in REFUSED:
                    return Refusal(problem)
                if status not in BUSY and status < 500:
                    key = f" The key is that of {self.api_key_env}." if status in (401, 402, 403) else ""
                    raise UsageError(f"{self.name} refuses with {problem}.{key}") from error
                fault = "rate" if status == 429 else "server"
                pause = retry_after(error.response.headers.get("Retry-After"))
            except (HTTPError, OSError) as error:
                problem, fault = self.masked(str(error)) or type(error).__name__, "connection"
            except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
                problem, fault = "what came is no chat completion", "server"
            finally:
                self._under_way.discard(asyncio.current_task())
            if self._stopped:
                raise asyncio.CancelledError
            attempt += 1
            if attempt > self.max_retries and fault == "rate" and self._answered > answered:
                attempt, answered = 1, self._answered  # slow, but alive: others get their answers
            if attempt > self.max_retries and fault == "server" and not self._given_up:
                # It may be this question that the server cannot answer. If it is the server, the next one ends the same.
                self._given_up = True
                return Refusal(f"{problem}; asked {attempt} times", failed=True)
            if attempt > self.max_retries or (pause or 0) > LONGEST_PAUSE:
                wait = f" It asks to wait {pause:.0f} seconds." if pause else ""
                raise UsageError(
                    f"{self.name} does not answer ({problem}; asked {attempt} times).{wait} What it has answered is kept: "
                    "run the same command again to go on."
                )
            self.say(f"waiting, {problem}")
            if pause is None:  # not all at the same time
                await asyncio.sleep(self.first_pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            else:
                self._next = max(self._next, time.monotonic() + pause)

    async def _send(
        self, client: ChatClient, request: Request, parameters: dict[str, Any], struck: int
    ) -> Answer | Refusal:
        if request.path is not None:
            return request.read(await client.other(request.path, request.body))
        output = await client.chat_completion(
            request.messages,
            model=self.model,
            response_format=list(request.formats.values())[struck],
            extra_body=parameters | self.extra_body,
        )
        choice = output.choices[0]
        answer = read_answer(choice, output.usage)
        if choice.finish_reason == "content_filter":
            return Refusal("its content filter")
        refusal = getattr(choice.message, "refusal", None)
        if isinstance(refusal, str) and refusal and not answer.text:
            return Refusal(f"its content policy: {self.masked(refusal)}")
        return answer

    def _parameters(self, request: Request, left_out: set[str]) -> dict[str, Any]:
        """Those parameters of a request that a server may refuse."""
        parameters = dict(request.parameters)
        if "max_tokens" in left_out and request.limit is not None:
            parameters["max_completion_tokens"] = request.limit
        return {name: value for name, value in parameters.items() if name not in left_out}

    def _settle(self, request: Request, struck: int, left_out: set[str]) -> None:
        """Ask as it has worked: for no stricter format, and without the parameters that the server does not take."""
        if self._works or request.path is not None:
            return
        formats = list(request.formats)
        if struck != self.struck:
            logger.warning(
                "%s does not take the format %s: asked with %s.", self.name, formats[self.struck], formats[struck]
            )
        if left_out:
            renamed = {"max_tokens"} <= left_out and "max_completion_tokens" not in left_out
            instead = " max_completion_tokens is sent instead of max_tokens." if renamed and request.limit else ""
            names = ", ".join(sorted(left_out))
            logger.warning("%s does not take %s: asked without.%s", self.name, names, instead)
        self._works, self.struck, self.left_out = True, struck, left_out

    async def _turn(self) -> None:
        """Wait for the next request's turn: the rate limit, and the pauses the server asks for, are everybody's."""
        while (wait := self._next - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        self._next = time.monotonic() + self.interval

    @property
    def name(self) -> str:
        return f"The endpoint of {self.model}" + (f" at {self.base_url}" if self.base_url else "")

    def masked(self, text: str) -> str:
        """What a server or a library says, in one line and without the secrets that were sent, which some repeat."""
        secrets = {self.api_key()} - {NO_KEY} | find_secrets(self.extra_body)
        return one_line(mask_text(text, secrets))


def check_address(base_url: str | None, provider: str | None, role: str) -> None:
    """Raise a [`UsageError`] unless these name an endpoint."""
    if base_url is not None:
        if re.match(r"(?:\w+://)?[^/]*@", base_url) or "?" in base_url:
            raise UsageError(f"The {role}'s base_url holds a key: give it in an environment variable instead.")
        try:
            url = urlsplit(base_url)
            valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:  # of a port that is no number
            valid = False
        if not valid:
            raise UsageError(f"The {role}'s base_url must be like https://host/v1, got {base_url!r}.")
        if provider is not None:
            raise UsageError(f"The {role} has a base_url, so that its provider {provider!r} would be ignored.")
    elif constants.HF_HUB_OFFLINE:
        raise UsageError(f"HF_HUB_OFFLINE is set, and the {role} has no base_url: unset one, or give the other.")
    elif provider is not None and provider not in PROVIDERS:
        raise UsageError(f"There is no Inference Provider {provider!r}. {suggest(provider, PROVIDERS)}")
