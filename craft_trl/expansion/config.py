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

"""Settings of the expansion, and the expander they describe."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from ..errors import UsageError
from ..families.files import find_files
from ..masking import mask_settings
from ..ranges import Count, CountFromZero, NotNegative, Positive, Range, check_ranges
from ..sources import HubFiles
from ..texts import JSONError, parse_json
from .checks import load_tokenizers
from .instructed import InstructedExpander
from .templates import PromptExpander


# What each expander reads; a setting of another one is an error, not passed over.
MODEL_KEYS = {
    "expander_model", "expander_instructions", "expander_temperature", "expander_max_tokens", "expander_max_attempts",
    "expander_cache",
}  # fmt: skip
KEYS = {
    "templates": {"templates"},
    "endpoint": MODEL_KEYS
    | {
        "expander_base_url", "expander_provider", "expander_api_key_env", "expander_concurrency",
        "expander_requests_per_minute", "expander_timeout", "expander_max_retries", "expander_extra_body",
        "expander_prices",
    },
    "transformers": MODEL_KEYS | {"expander_revision", "expander_batch_size"},
}  # fmt: skip


@dataclass
class ExpansionConfig:
    """
    Configuration of the expansion of prompts.

    Parameters:
        num_variants (`int`, *optional*, defaults to `8`):
            Expanded variants of each prompt.
        expander (`"templates"`, `"endpoint"` or `"transformers"`, *optional*, defaults to `"templates"`):
            What writes them: template rules, a language model behind an OpenAI-compatible endpoint, or one that runs here.

        > Template rules

        templates (`list[str]`):
            Texts that contain `{prompt}` once. Each prompt gets its own seeded choice of them.

        > Language models

        expander_model (`str`):
            The model: its name at the endpoint, such as `qwen-plus`, or the Hub id or folder of one that runs here.
        expander_instructions (`str`, *optional*):
            Text file of what the model is told, see [`InstructedExpander`]. Defaults to our own.
        expander_temperature (`float`, *optional*, defaults to `0.8`):
            Temperature of the sampling.
        expander_max_tokens (`int`, *optional*):
            Most tokens of an answer. Defaults to 256 and 160 for each variant.
        expander_max_attempts (`int`, *optional*, defaults to `4`):
            How often a prompt is asked for, until it has enough variants that pass the checks.
        expander_cache (`str`, *optional*):
            File in which every answer is kept. Defaults to `expansion/answers.jsonl` in the run's folder.

        > An endpoint

        expander_base_url (`str`, *optional*):
            Where it is, such as `http://localhost:8000/v1`. Defaults to Hugging Face's Inference Providers.
        expander_provider (`str`, *optional*):
            One of the Inference Providers.
        expander_api_key_env (`str`, *optional*):
            Environment variable with the key. Defaults to `HF_TOKEN`, with a `base_url` to `OPENAI_API_KEY`.
        expander_concurrency (`int`, *optional*, defaults to `8`):
            Questions that wait for an answer at a time.
        expander_requests_per_minute (`float`, *optional*):
            Most requests in a minute.
        expander_timeout (`float`, *optional*, defaults to `120.0`):
            Seconds to wait for an answer.
        expander_max_retries (`int`, *optional*, defaults to `6`):
            How often a request is made again when the server is busy or away.
        expander_extra_body (`dict`, *optional*):
            More parameters of the requests, as JSON. A text under a name such as `api_key` stands as `***` in records.
        expander_prices (`list[float]`, *optional*):
            Price of a million tokens of questions, and of answers. If given, what the expansion cost is reported.

        > A model that runs here

        expander_revision (`str`, *optional*):
            Revision on the Hub.
        expander_batch_size (`int`, *optional*, defaults to `8`):
            Questions that are answered at a time.
    """

    num_variants: Count = field(default=8, metadata={"help": "Expanded variants of each prompt."})
    expander: Literal["templates", "endpoint", "transformers"] = field(
        default="templates",
        metadata={"help": "What writes the variants: template rules, an OpenAI-compatible endpoint, or a model here."},
    )
    templates: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Template rules, texts that contain {prompt} once. Each prompt gets its own seeded choice of them."
        },
    )
    expander_model: str | None = field(
        default=None, metadata={"help": "Language model: its name at the endpoint, or Hub id or folder."}
    )
    expander_instructions: str | None = field(
        default=None, metadata={"help": "Text file of what the language model is told. Defaults to our own."}
    )
    expander_temperature: Positive = field(default=0.8, metadata={"help": "Temperature of the sampling."})
    expander_max_tokens: Count | None = field(
        default=None, metadata={"help": "Most tokens of an answer. Defaults to 256 and 160 for each variant."}
    )
    expander_max_attempts: Count = field(
        default=4, metadata={"help": "How often a prompt is asked for, until enough variants pass the checks."}
    )
    expander_cache: str | None = field(
        default=None,
        metadata={"help": "File in which every answer is kept. Defaults to expansion/answers.jsonl in output_dir."},
    )
    expander_base_url: str | None = field(
        default=None,
        metadata={"help": "Where the endpoint is. Defaults to Hugging Face's Inference Providers."},
    )
    expander_provider: str | None = field(default=None, metadata={"help": "One of the Inference Providers."})
    expander_api_key_env: str | None = field(
        default=None,
        metadata={"help": "Environment variable with the key. Defaults to HF_TOKEN, with a base_url OPENAI_API_KEY."},
    )
    expander_concurrency: Annotated[int, Range(1, 100)] = field(
        default=8, metadata={"help": "Questions that wait for an answer at a time."}
    )
    expander_requests_per_minute: Positive | None = field(
        default=None, metadata={"help": "Most requests in a minute. Defaults to no limit."}
    )
    expander_timeout: Positive = field(default=120.0, metadata={"help": "Seconds to wait for an answer."})
    expander_max_retries: CountFromZero = field(
        default=6, metadata={"help": "How often a request is made again when the server is busy or away."}
    )
    expander_extra_body: dict | str | None = field(
        default=None, metadata={"help": "More parameters of the requests, as JSON."}
    )
    expander_prices: list[NotNegative] | None = field(
        default=None, metadata={"help": "Price of a million tokens of questions, and of answers."}
    )
    expander_revision: str | None = field(default=None, metadata={"help": "Revision of the model on the Hub."})
    expander_batch_size: Count = field(default=8, metadata={"help": "Questions that the model answers at a time."})

    def __post_init__(self):
        check_ranges(self)
        if self.expander not in KEYS:
            raise UsageError(f"expander must be one of {', '.join(KEYS)}, got {self.expander!r}.")
        for needed in ("templates", "expander_model"):
            if needed in KEYS[self.expander] and not getattr(self, needed):
                raise UsageError(f"{needed} is missing: give it in the recipe or as --{needed}.")
        defaults = {
            f.name: f.default_factory() if f.name == "templates" else f.default for f in fields(ExpansionConfig)
        }
        for key in sorted(set().union(*KEYS.values()) - KEYS[self.expander]):
            if getattr(self, key) != defaults[key]:
                users = " or ".join(name for name, keys in KEYS.items() if key in keys)
                raise UsageError(f"{key} is read by expander: {users}, but expander is {self.expander}. Remove one.")
        if isinstance(self.expander_extra_body, str):
            try:
                self.expander_extra_body = parse_json(self.expander_extra_body)
            except JSONError as error:
                raise UsageError(f"expander_extra_body is not JSON ({error}).") from error
        if not isinstance(self.expander_extra_body, dict | None):
            raise UsageError(
                f"expander_extra_body must be a JSON object, got {mask_settings(self.expander_extra_body)!r}."
            )
        if self.expander_prices is not None and len(self.expander_prices) != 2:
            raise UsageError(f"expander_prices must be two numbers, got {self.expander_prices}.")

    def expander_files(self) -> HubFiles | None:
        """What a language model that runs here is loaded from on the Hub; `None` where there is none or it is here."""
        if self.expander != "transformers" or Path(self.expander_model).exists():
            return None
        files = find_files(self.expander_model, self.expander_revision)
        held = files.weights("", "transformers")
        weights = held.get(None) or next(iter(held.values()), [])
        beside = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
        return HubFiles(self.expander_model, (*beside, *weights), self.expander_revision, ignored=("*/*",))

    def make_expander(
        self,
        seed: int,
        output_dir: str,
        model: str,
        revision: str | None = None,
        max_sequence_length: int | None = None,
    ) -> PromptExpander | InstructedExpander:
        """
        The expander of these settings.

        Args:
            seed (`int`):
                Its seed.
            output_dir (`str`):
                Folder of the run.
            model (`str`):
                The image model, whose tokenizers say what is too long.
            revision (`str`, *optional*):
                Its revision on the Hub.
            max_sequence_length (`int`, *optional*):
                Tokens of a prompt that it reads. Defaults to the pipeline's own.
        """
        tokenizers = load_tokenizers(model, revision, max_sequence_length)
        if self.expander == "templates":
            return PromptExpander(self.templates, seed, tokenizers)
        common = {
            "instructions": self.expander_instructions,
            "temperature": self.expander_temperature,
            "max_tokens": self.expander_max_tokens,
            "max_attempts": self.expander_max_attempts,
            "seed": seed,
            "tokenizers": tokenizers,
            "cache": self.expander_cache or Path(output_dir) / "expansion" / "answers.jsonl",
        }
        if self.expander == "transformers":
            from .local import TransformersExpander

            return TransformersExpander(
                self.expander_model, self.expander_revision, batch_size=self.expander_batch_size, **common
            )
        from .endpoint import EndpointExpander

        return EndpointExpander(
            self.expander_model,
            self.expander_base_url,
            provider=self.expander_provider,
            api_key_env=self.expander_api_key_env,
            concurrency=self.expander_concurrency,
            requests_per_minute=self.expander_requests_per_minute,
            timeout=self.expander_timeout,
            max_retries=self.expander_max_retries,
            extra_body=self.expander_extra_body,
            **common,
        )
