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
Vision-language models as judges, as a recipe names them: `vlm:MODEL@URL?questions=FILE&reading=token`.

What they are asked is a [`Template`], in a file of the user's or one of `BUILT_IN`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ...errors import UsageError
from ...masking import TOKENS, mask_settings
from ...parser import suggest
from ...stages import fingerprint
from ...texts import read_text, read_yaml, split_lines
from .readings import IN_WORDS, NUMBERS, OF_PROBABILITIES, READINGS, YES_NO, forms


SAMPLES = 5  # of an answer in words, where nothing else is said


@dataclass(frozen=True)
class Template:
    """
    What a judge is asked of an image.

    Args:
        name (`str`):
            Its name in notes.
        questions (`tuple[tuple[str, str, float], ...]`, *optional*):
            Question, in which `{prompt}` stands for the prompt, expected answer and weight. The score is the weighted mean.
        system (`str`, *optional*):
            System message.
        reading (`str`, *optional*, defaults to `"normalised"`):
            How an answer becomes a number where the server gives probabilities, see `READINGS`.
        score (`dict`, *optional*):
            Of the reading `score`, the arguments of [`read_score`].
        max_tokens (`int`, *optional*, defaults to `512`):
            Most tokens of an answer in words.
        extra_body (`dict`, *optional*):
            More parameters of every request.
        benchmark (`str`, *optional*):
            `geneval2_am`, `geneval2_gm` or `dpg`: the questions are those of the prompt, and the score is by its rule.
    """

    name: str
    questions: tuple[tuple[str, str, float], ...] = ()
    system: str | None = None
    reading: str = "normalised"
    score: Mapping[str, Any] | None = None
    max_tokens: int = 512
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    benchmark: str | None = None

    @property
    def hash(self) -> str:
        """What identifies all that it asks."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("name", "extra_body")}
        return fingerprint({**content, "extra_body": mask_settings(dict(self.extra_body))})[:8]

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that prompts must have for it."""
        return {"dpg": ("questions",), None: ()}.get(self.benchmark, ("vqa_list",))

    @property
    def prompts(self) -> str:
        """Name of the published set of a benchmark's prompts."""
        return (self.benchmark or "").partition("_")[0]

    def asked(self, prompt: str, row: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
        """Questions about an image of a prompt, of which a benchmark's `row` has its own, with the expected answers."""
        if self.benchmark is None:
            return [(text.replace("{prompt}", prompt), answer) for text, answer, _ in self.questions]
        try:
            if self.benchmark == "dpg":
                asked = [(f"{item['question']} Please answer Yes or No.", "Yes") for item in row["questions"]]
                known = {0, *(item["id"] for item in row["questions"])}
                fits = all(parent in known for item in row["questions"] for parent in item["parents"])
            else:
                asked = [(f"{question} Answer in one word.", answer) for question, answer in row["vqa_list"]]
                fits = all(answer in (*YES_NO, *NUMBERS) for _, answer in asked)
        except (LookupError, TypeError, ValueError):
            asked, fits = [], False
        if not asked or not fits:
            raise UsageError(
                f"{self.name}: what is asked of {prompt!r} is not in the published format, in {' and '.join(self.needs)}."
            )
        return asked


BUILT_IN = {
    # As t2v_metrics asks the models that answer in words, from its version 3.1 on
    "vqascore": Template(
        "VQAScore", (('Does this figure show "{prompt}"? Please answer Yes or No.', "Yes", 1.0),), reading="token"
    ),
    # As its version 3.0 asks CLIP-FlanT5
    "vqascore_v3": Template(
        "VQAScore 3.0", (('Does this figure show "{prompt}"? Please answer yes or no.', "Yes", 1.0),), reading="token"
    ),
    "geneval2_am": Template("GenEval 2, Soft-TIFA AM", reading="mass", benchmark="geneval2_am"),
    "geneval2_gm": Template("GenEval 2, Soft-TIFA GM", reading="mass", benchmark="geneval2_gm"),
    "dpg": Template("DPG-Bench by a VLM", benchmark="dpg"),
}


def read_template(path: str) -> Template:
    """
    A template in a file: `.txt`, a question of yes or no a line, or `.yaml` with `questions` (texts, or mappings of
    `question`, `answer` and `weight`) and, if need be, `system`, `reading`, `score`, `max_tokens` and `extra_body`.
    """
    what = "the judge's questions"
    name = Path(path).name
    if path.lower().endswith(".txt"):
        content: Any = [line.strip() for line in split_lines(read_text(path, what)) if line.strip()]
    elif path.lower().endswith((".yaml", ".yml")):
        content = read_yaml(path, what)
    else:
        raise UsageError(f"{path}: questions are a .yaml or .txt file, or one of {', '.join(BUILT_IN)}.")
    content = {"questions": content} if isinstance(content, list) else content
    kinds = {"system": str, "reading": str, "score": dict, "max_tokens": int, "extra_body": dict}
    if not isinstance(content, dict) or not isinstance(content.get("questions"), list) or not content["questions"]:
        raise UsageError(f"{path} holds no list of questions, under `questions`.")
    for key, value in content.items():
        if key != "questions" and key not in kinds:
            raise UsageError(f"{path}: there is no {key!r}. {suggest(str(key), ['questions', *kinds])}")
        if key in kinds and type(value) is not kinds[key]:
            raise UsageError(
                f"{path}: {key} must be {kinds[key].__name__}, got {json.dumps(value, default=str)[:80]}."
            )
    questions = tuple(_question(path, item) for item in content["questions"])
    rest = {key: content[key] for key in kinds if key in content}
    reading = rest.setdefault("reading", "score" if "score" in rest else "normalised")
    if reading not in READINGS:
        raise UsageError(f"{path}: reading {reading!r}. {suggest(reading, READINGS)}")
    if (reading == "score") != ("score" in rest):
        raise UsageError(f"{path}: the reading score needs `score: {{low: 1, high: 5}}`, and nothing else does.")
    if "score" in rest:
        _check_score(path, rest["score"])
    if rest.get("max_tokens", 1) < 1:
        raise UsageError(f"{path}: max_tokens must be at least 1, got {rest['max_tokens']}.")
    return Template(name, questions, **rest)


def _question(path: str, item: Any) -> tuple[str, str, float]:
    item = {"question": item} if isinstance(item, str) else item
    known = {"question", "answer", "weight"}
    if not isinstance(item, dict) or not isinstance(item.get("question"), str) or not item["question"].strip():
        raise UsageError(
            f"{path}: a question is a text, or has one under `question`; got {json.dumps(item, default=str)[:80]}."
        )
    if unknown := set(item) - known:
        raise UsageError(
            f"{path}: a question has no {min(map(str, unknown))!r}. {suggest(min(map(str, unknown)), known)}"
        )
    # YAML 1.1 takes Yes and No for true and false.
    answer = {True: "Yes", False: "No"}.get(item.get("answer", "Yes"), item.get("answer", "Yes"))
    if answer not in (*YES_NO, *NUMBERS):
        raise UsageError(f"{path}: the answer to {item['question']!r} must be Yes, No or one to ten, got {answer!r}.")
    weight = item.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise UsageError(f"{path}: the weight of {item['question']!r} must be above 0, got {weight!r}.")
    return item["question"], answer, float(weight)


def _check_score(path: str, score: dict) -> None:
    if unknown := set(score) - {"low", "high", "pattern", "matches"}:
        raise UsageError(f"{path}: score has no {min(map(str, unknown))!r}; it has low, high, pattern and matches.")
    low, high = score.get("low"), score.get("high")
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in (low, high)) or not low < high:
        raise UsageError(
            f"{path}: score needs numbers low and high, of which high is larger; got {low!r} and {high!r}."
        )
    pattern = score.get("pattern")
    try:
        groups = 1 if pattern is None else re.compile(pattern).groups
    except (re.error, TypeError) as error:
        raise UsageError(f"{path}: score's pattern {pattern!r} is no regular expression: {error}.") from error
    if groups != 1:
        raise UsageError(f"{path}: score's pattern {pattern!r} must have one group, for the number.")
    if score.get("matches") is not None and (type(score["matches"]) is not int or score["matches"] < 1 or not pattern):
        raise UsageError(f"{path}: score's matches is how often its pattern must be found, got {score['matches']!r}.")


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _prices(text: str) -> tuple[float, float]:
    asked, answered = map(float, text.split(","))
    return asked, answered


@dataclass(frozen=True)
class JudgeSpec:
    """
    A vision-language model behind an endpoint, and what it is asked.

    Args:
        model (`str`):
            Its name there.
        base_url (`str`, *optional*):
            Where the endpoint is, such as `http://localhost:8000/v1`. Defaults to Hugging Face's Inference Providers.
        questions (`str`):
            One of `BUILT_IN`, or a file, see [`read_template`].
        reading (`str`, *optional*):
            How an answer becomes a number, see `READINGS`. Defaults to the template's where the server gives probabilities,
            else to `systemone` where it has that, else to `text`, asked five times.
        samples (`int`, *optional*):
            How often each question is asked. Defaults to once, and to five times for `text`.
        temperature (`float`, *optional*):
            Of the sampling, for readings of words. Defaults to 0 for one sample, else to 1.
        top (`int`, *optional*, defaults to `20`):
            How many of the likeliest tokens are asked for.
        thinking (`bool`, *optional*, defaults to `False`):
            Whether a model that can may think before it answers in words.
        refused (`float`, *optional*):
            Score of an image that the server's content filter or policy refuses. Defaults to none: it is an error.
        probe (`bool`, *optional*, defaults to `True`):
            Whether two known pictures are shown first, to see that the judge sees.
        cache (`str`, *optional*):
            File in which answers are kept. Defaults to one for the model beside the Hub's cache.
        prices (`tuple[float, float]`, *optional*):
            Price of a million tokens of questions, and of answers.
        provider, api_key_env, concurrency, requests_per_minute, timeout, max_retries (*optional*):
            Arguments of [`EndpointExpander`], of the same meaning.
    """

    model: str
    base_url: str | None = None
    questions: str = ""
    reading: str | None = None
    samples: int | None = None
    temperature: float | None = None
    top: int = 20
    thinking: bool = False
    refused: float | None = None
    probe: bool = True
    cache: str | None = None
    prices: tuple[float, float] | None = None
    provider: str | None = None
    api_key_env: str | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 120.0
    max_retries: int = 6

    @classmethod
    def parse(cls, name: str, source: str) -> "JudgeSpec":
        """
        Read `vlm:MODEL@URL?OPTION=VALUE&...` of a reward `name`, and check all that can be checked without asking. The
        questions are those of the name, if it is one of `BUILT_IN`, unless they are given.
        """
        where = f"Reward {name!r}"
        if TOKENS.search(source) or re.search(r"//[^/?]*@", source):
            raise UsageError(f"{where}: keys do not belong there; name an environment variable, api_key_env=NAME.")
        address, _, query = source.removeprefix("vlm:").partition("?")
        model, at, url = address.rpartition("@") if "@" in address else (address, "", "")
        if not model or at and not _is_url(url):
            raise UsageError(
                f"{where}: a judge is named like {name}=vlm:MODEL@http://host:8000/v1, got 'vlm:{address}'."
            )
        values: dict[str, Any] = {}
        kinds = {f.name: f.type for f in fields(cls) if f.name not in ("model", "base_url")}
        for part in filter(None, query.split("&")):
            key, equals, text = part.partition("=")
            text = unquote(text)
            if key not in kinds or not equals:
                raise UsageError(f"{where}: a judge has no option {key!r}. {suggest(key, kinds)}")
            if key in values:
                raise UsageError(f"{where}: {key} is there twice.")
            values[key] = _convert(where, key, text)
        values.setdefault("questions", name if name in BUILT_IN else "")
        if not values["questions"]:
            raise UsageError(f"{where}: say what it is asked, ?questions=FILE, or one of {', '.join(BUILT_IN)}.")
        spec = cls(model, url.rstrip("/") or None, **values)
        spec.check(where)
        return spec

    def check(self, where: str) -> None:
        """Raise a [`UsageError`] if the options do not go together."""
        template = self.template
        reading = self.reading
        if reading is not None and reading not in READINGS:
            raise UsageError(f"{where}: reading {reading!r}. {suggest(reading, READINGS)}")
        if reading == "score" and template.score is None:
            raise UsageError(
                f"{where}: the reading score needs a template that says its scale, and {template.name} does not."
            )
        if template.reading == "score" and reading not in (None, "score"):
            raise UsageError(f"{where}: {template.name} asks for a number, which reading={reading} does not read.")
        words = (reading or template.reading) not in (*OF_PROBABILITIES, "systemone")
        if (self.temperature is not None or self.thinking or (self.samples or 1) > 1) and not words:
            raise UsageError(
                f"{where}: samples, temperature and thinking are of answers in words: reading=text or score."
            )
        if (self.samples or 1) > 1 and self.temperature == 0:
            raise UsageError(f"{where}: at temperature 0 all samples are the same: leave one of them out.")
        if template.system and reading == "systemone":
            raise UsageError(f"{where}: /v1/systemone has no place for the system message of {template.name}.")
        if self.base_url is None and reading == "systemone":
            raise UsageError(f"{where}: Inference Providers have no /v1/systemone.")
        for key, low, high in (("samples", 1, 100), ("top", 2, 100), ("concurrency", 1, 100)):
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{where}: {key} must be from {low} to {high}, got {value}.")

    @property
    def template(self) -> Template:
        """What it is asked; a [`UsageError`] if its file is not there, or holds no questions."""
        return BUILT_IN[self.questions] if self.questions in BUILT_IN else read_template(self.questions)

    @property
    def host(self) -> str:
        """Where it is, for people."""
        return urlsplit(self.base_url).netloc if self.base_url else f"Inference Providers ({self.provider or 'auto'})"

    def samples_of(self, reading: str) -> int:
        """How often each question is asked."""
        return self.samples or (SAMPLES if reading == "text" else 1)

    def temperature_of(self, reading: str) -> float:
        """Temperature of the sampling."""
        if self.temperature is not None:
            return self.temperature
        return 1.0 if self.samples_of(reading) > 1 else 0.0

    def describe(self, reading: str) -> str:
        """The judge in words, as it stands below every table: model, host, template and reading."""
        template = self.template
        answer = "the right answer" if template.benchmark else template.questions[0][1]
        how = IN_WORDS[reading].format(
            answer=answer, forms="its forms" if template.benchmark else ", ".join(map(repr, forms(answer)))
        )
        samples = self.samples_of(reading)
        times = f", mean of {samples} samples at temperature {self.temperature_of(reading):g}" if samples > 1 else ""
        said = f"{self.model} at {self.host}, template {template.name} ({template.hash}), {how}{times}"
        said += ", thinking" if self.thinking else ""
        if reading in ("mass", "token"):
            said += f"; an answer that is not among the {self.top} likeliest counts as the least of these"
        if template.benchmark == "dpg":
            said += "; yes is a score above 0.5, and published tables are of another judge, mPLUG"
        if self.refused is not None:
            said += f"; an image that it refuses counts {self.refused:g}"
        return said + ("" if self.probe else "; not tried whether it sees")


def _convert(where: str, key: str, text: str) -> Any:
    kinds = {
        "samples": int, "top": int, "concurrency": int, "max_retries": int, "temperature": float, "refused": float,
        "requests_per_minute": float, "timeout": float, "thinking": _flag, "probe": _flag, "prices": _prices,
    }  # fmt: skip
    try:
        value = kinds.get(key, str)(text)
    except (ValueError, KeyError) as error:
        wanted = {_flag: "true or false", _prices: "two numbers, 0.2,0.6", int: "a whole number", float: "a number"}
        raise UsageError(f"{where}: {key} must be {wanted[kinds[key]]}, got {text!r}.") from error
    numbers: Sequence[Any] = value if isinstance(value, tuple) else [value]
    if any(isinstance(x, float) and not (x == x and abs(x) < float("inf")) for x in numbers):
        raise UsageError(f"{where}: {key} must be finite, got {text!r}.")
    if key in ("prices", "temperature") and min(numbers) < 0:
        raise UsageError(f"{where}: {key} must be at least 0, got {text!r}.")
    if not text:
        raise UsageError(f"{where}: {key} is empty.")
    return value


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:  # a port that is no number, or too large
        return False
