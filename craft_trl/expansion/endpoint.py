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

"""Expansion by a language model behind an OpenAI-compatible endpoint."""

from collections.abc import Callable, Sequence
from typing import Any

from ..chat.cache import Answer, Refusal
from ..chat.completions import json_schema
from ..chat.endpoint import ChatEndpoint, Request
from ..masking import mask_settings
from .instructed import InstructedExpander, Question


FORMATS = ("json_schema", "json_object", None)  # what answers are asked to look like, the strictest first


class EndpointExpander(InstructedExpander):
    """
    Expands prompts by a language model behind an OpenAI-compatible endpoint: DashScope, vLLM, `transformers serve`,
    OpenAI, or Hugging Face's Inference Providers.

    Questions are asked concurrently. A server that is busy, away, or answers with something that is no chat completion is
    asked again after growing pauses, or after the pause it asks for. If that does not help, the call ends with an error,
    and the answers so far are in the cache; only a prompt at which the server fails while it answers others counts as
    refused. A server that does not know JSON schemas is asked for any JSON object, and one that does not know that either
    is asked without. So it is with `max_tokens`, `temperature` and `seed`, which models that reason refuse: what a server
    names in its refusal is left out, and a `max_tokens` that was given is sent as `max_completion_tokens`.

    Args:
        model (`str`):
            Name of the model at the endpoint, such as `"qwen-plus"`.
        base_url (`str`, *optional*):
            Where the endpoint is, such as `"https://dashscope-intl.aliyuncs.com/compatible-mode/v1"`. Defaults to Hugging
            Face's Inference Providers.
        provider (`str`, *optional*):
            One of the Inference Providers. Defaults to the choice in the user's settings on the Hub.
        api_key_env (`str`, *optional*):
            Environment variable that holds the key. Defaults to `HF_TOKEN`, or the token of `hf auth login`, for
            Inference Providers, and for a `base_url` to `OPENAI_API_KEY`, which a server without keys does not need.
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
            More parameters of the request, such as `{"enable_thinking": False}`. A text under a name such as `api_key` is
            sent, but stands as `***` in records, and does not count for the fingerprint.
        kwargs:
            Arguments of [`InstructedExpander`].
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
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        self.endpoint = ChatEndpoint(
            model,
            base_url,
            provider=provider,
            api_key_env=api_key_env,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            timeout=timeout,
            max_retries=max_retries,
            first_pause=first_pause,
            extra_body=extra_body,
        )

    @property
    def settings(self) -> dict[str, Any]:
        return {"expander": "endpoint", **super().settings, "extra_body": mask_settings(self.endpoint.extra_body)}

    @property
    def formats(self) -> list[str | None]:
        """What answers are asked to look like, the strictest first; those that the server does not know are struck off."""
        return list(FORMATS[self.endpoint.struck :])

    def _ask(self, questions: Sequence[Question], keep: Callable[[Question, Answer | Refusal], None]) -> None:
        self.endpoint.say = self.say
        self.endpoint.ask(questions, self._request, keep, lambda: bool(self.answers))

    def _request(self, question: Question) -> Request:
        return Request(
            messages=question.messages,
            parameters={
                "max_tokens": self._tokens(question),
                "temperature": self.temperature,
                "seed": question.seed,
            },
            limit=self.max_tokens,
            formats={form: response_format(form, question.num_variants) for form in FORMATS},
            own=question.prompt,
        )


def response_format(form: str | None, num_variants: int) -> dict[str, Any] | None:
    """What an answer must look like, in OpenAI's words."""
    if form != "json_schema":
        return form and {"type": form}
    variants = {"type": "array", "items": {"type": "string"}, "minItems": num_variants, "maxItems": num_variants}
    return json_schema(
        {
            "type": "object",
            "properties": {"variants": variants},
            "required": ["variants"],
            "additionalProperties": False,
        }
    )
