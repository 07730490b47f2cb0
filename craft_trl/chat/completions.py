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

"""Chat completions over HTTP: what is asked as OpenAI's API reference has it, and what may come back."""

import math
import time
from email.utils import parsedate_to_datetime
from typing import Any

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.inference._common import RequestParameters
from huggingface_hub.utils import hf_raise_for_status

from ..texts import JSONError, mend, parse_json, scan_json
from .cache import Answer


MAX_BYTES = 8 << 20  # of a response, unpacked


class ChatClient(AsyncInferenceClient):
    """`AsyncInferenceClient` that speaks with servers that are not the Hub as OpenAI's API reference has it."""

    async def _get_async_client(self):
        client = await super()._get_async_client()
        # The parent's hooks refuse all hosts when `HF_HUB_OFFLINE` is set, also one on this machine.
        hooks = client.event_hooks if self.model is None else {"request": [], "response": []}
        if read_bounded not in hooks["response"]:
            client.event_hooks = hooks | {"response": [read_bounded, *hooks["response"]]}
        return client

    async def _inner_post(self, request_parameters, *, stream=False):
        # The parent takes every URL for an old Text Generation Inference and rewrites the schema to its
        # `{"type": "json_object", "value": schema}`, which nothing else understands, see
        # https://github.com/huggingface/text-generation-inference/issues/3058. Delete when it leaves it alone.
        asked = request_parameters.json.get("response_format")
        if asked is not None and "value" in asked:
            request_parameters.json["response_format"] = json_schema(asked["value"])
        return await super()._inner_post(request_parameters, stream=stream)

    async def other(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What a server with a URL of its own answers to a path beside `/chat/completions`, to a `GET` if there is no body."""
        url, headers = self.model.rstrip("/") + path, {"Authorization": f"Bearer {self.token}"}
        if body is None:
            client = await self._get_async_client()
            response = await client.get(url, headers=headers, timeout=self.timeout)
            hf_raise_for_status(response)
            return parse_json(response.text)
        asked = RequestParameters(url=url, task="unknown", model=None, json=body, data=None, headers=headers)
        return parse_json((await self._inner_post(asked)).decode())


async def read_bounded(response: Any) -> None:
    """
    Read a response of httpx, or raise a `ValueError` as soon as it is too large. Its own `aread` has no limit, neither for
    what comes nor for what that unpacks to; it returns what is in `_content` (httpx2 2.16). Delete when it takes a limit.
    """
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise ValueError(f"a response of more than {MAX_BYTES} bytes")
    response._content = b"".join(parts)


def read_answer(choice: Any, usage: Any) -> Answer:
    """The answer in a chat completion; a `TypeError` if there is none. Of a list of parts, the texts are the answer."""
    content = choice.message.content
    if isinstance(content, list):
        kinds = (None, "text", "output_text")  # others hold what the model thought, or its refusal
        parts = [{"text": part} if isinstance(part, str) else part for part in content]
        content = [part["text"] for part in parts if part.get("type") in kinds and isinstance(part.get("text"), str)]
        if not content:
            raise TypeError("no text among the parts of an answer")
        content = "".join(content)
    if not isinstance(content, str | None):
        raise TypeError("the content of an answer is no text")
    counts = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    counts = [count if type(count) is int and count >= 0 else None for count in counts]
    reason = choice.finish_reason if isinstance(choice.finish_reason, str) else None
    return Answer(mend(content or ""), reason, *counts, likeliest(choice))


def likeliest(choice: Any) -> list[list] | None:
    """What the answer in a chat completion may begin with, tokens and their probabilities; `None` where it does not say."""
    try:
        first = choice.logprobs.content[0]
        listed = [first, *(first.top_logprobs or ())]
        likely = {(mend(item.token), float(item.logprob)) for item in listed}
        return [
            [token, min(1.0, math.exp(value))] for token, value in sorted(likely, key=lambda pair: (-pair[1], pair[0]))
        ]
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return None


def complaint(text: str) -> str:
    """What a server says of an error, out of the JSON that it may stand in: OpenAI's, or FastAPI's, with its place."""
    try:
        content, _ = scan_json(text)
    except JSONError:
        return text

    def said(content: Any, depth: int = 0) -> str:
        if isinstance(content, list) and content and depth < 8:
            return "; ".join(said(item, depth + 1) for item in content)
        if not isinstance(content, dict) or depth == 8:
            return str(content)
        place = content.get("param") or content.get("loc") or ""
        place = ".".join(map(str, place)) if isinstance(place, list) else str(place)
        message = next((content[key] for key in ("error", "message", "detail", "msg") if content.get(key)), None)
        if message is None:
            return str(content)
        message = said(message, depth + 1)
        return message if place in message else f"{place}: {message}"

    return said(content)


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as `response_format`, in OpenAI's words."""
    return {"type": "json_schema", "json_schema": {"name": "variants", "strict": True, "schema": schema}}


def retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header, which holds seconds or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
