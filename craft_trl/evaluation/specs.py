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

"""The models of a comparison, as a recipe names them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..families import DENOISERS
from ..families.strength import parse_strength
from ..parser import suggest
from ..sources import ADAPTER, FACTS, HubFiles, looks_like_hub_id


KINDS = (*DENOISERS, "lora", "results")
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class ModelSpec:
    """
    A model as a recipe names it.

    - `NAME=FOLDER` or `NAME=org/name`: a whole pipeline,
    - `NAME=unet:SOURCE`, or `NAME=transformer:SOURCE`: the base model's pipeline with another denoiser. `SOURCE` is a folder
      of diffusers, such as `org/name/unet`, or a state dict, such as `org/name/path/unet.pth`, which is read without
      executing it,
    - `NAME=lora:SOURCE`: the base model with an adapter, a folder or a `.safetensors` file, in any format that diffusers
      reads,
    - `NAME=strength:0.7:MODEL`: the base moved by 0.7 of the way to any of the models above, see [`strength`]. A folder or
      `.safetensors` file of an adapter needs no `lora:` here,
    - `NAME=results:FOLDER`: the model of that name in an earlier comparison under the same settings.

    A `SOURCE` is a path here, or a repository on the Hub with or without a path in it.

    Args:
        name (`str`):
            Name in the tables.
        kind (`str`):
            `"pipeline"` or one of `KINDS`.
        source (`str`):
            Where it is.
        base (`str`):
            Folder or Hub id of the base model's pipeline.
        base_revision (`str`, *optional*):
            Revision of the base model on the Hub.
        strength (`float`, *optional*, defaults to `1.0`):
            How far the way from the base to it is gone.
    """

    name: str
    kind: str
    source: str
    base: str
    base_revision: str | None = None
    strength: float = 1.0

    @property
    def whole(self) -> tuple[str, str | None]:
        """Folder or Hub id, and revision, of the pipeline that draws: of a part, that of the base."""
        source = self.source if self.kind == "pipeline" else self.base
        return source, self.base_revision if source == self.base else None

    @property
    def repository(self) -> tuple[str, str]:
        """Repository and path in it of a source on the Hub."""
        repo_id, inside = "/".join(self.source.split("/")[:2]), "/".join(self.source.split("/")[2:])
        if not looks_like_hub_id(repo_id):
            raise UsageError(
                f"Model {self.name}: there is no {self.source}. A source on the Hub is named like org/name/path."
            )
        return repo_id, inside.strip("/")

    @property
    def hub_files(self) -> list[HubFiles]:
        """
        Of a part that is on the Hub, what is read: of a folder the weights of no variant if there are any, else, the second,
        a variant's.
        """
        if self.kind in ("pipeline", "results") or Path(self.source).exists():
            return []
        repo_id, inside = self.repository
        if inside.endswith(WEIGHT_FILES):
            return [HubFiles(repo_id, (inside,))]
        prefix = f"{inside}/" if inside else ""
        patterns = (f"{prefix}*.json", f"{prefix}*.safetensors")
        return [HubFiles(repo_id, patterns, ignored=ignored) for ignored in (("*.fp16.*",), ())]

    @property
    def facts_file(self) -> HubFiles | None:
        """What is read of a model that is on the Hub, where it is one of another strength: what it was trained from."""
        if self.strength == 1 or Path(self.source).exists():
            return None
        return HubFiles(self.repository[0], (FACTS,), optional=True)

    @classmethod
    def parse_all(
        cls, texts: list[str], base_revision: str | None = None, strengths: Sequence[float] = ()
    ) -> "dict[str, ModelSpec]":
        """Models of a recipe's list by name, the base first; the last one at these strengths too, as `NAME-0.5`, before itself."""
        specs: dict[str, ModelSpec] = {}
        for text in [*texts[:-1], *at_strengths(texts, strengths), *texts[-1:]]:
            name, equals, source = text.partition("=")
            if not (equals and source and re.fullmatch(r"\w[\w.@+-]*", name)):
                raise UsageError(f"models must be NAME=FOLDER or NAME=HUB_ID, got {text!r}.")
            if name.endswith("+expansion"):
                raise UsageError(
                    f"models: {name} is what the base with expanded prompts is called: choose another name."
                )
            strength, kind = 1.0, "pipeline"
            if match := re.fullmatch(r"strength:([^:]*):(.+)", source):
                strength, source = parse_strength(match[1], f"models: the strength in {text!r}"), match[2]
                # Of the models that have a strength, only adapters are single files.
                if source.endswith(".safetensors") or (Path(source) / ADAPTER).is_file():
                    kind = "lora"
                if source.startswith(("results:", "strength:")):
                    raise UsageError(
                        f"models: {text!r}: a strength is of a model, not of its results or of another strength."
                    )
            if match := re.fullmatch(r"(\w+):(.+)", source):
                kind, source = match.groups()
            if kind == "strength":
                raise UsageError(
                    f"models: {text!r} must be NAME=strength:NUMBER:MODEL, such as {name}=strength:0.7:{source}."
                )
            if kind not in ("pipeline", *KINDS):
                remedy = suggest(kind, KINDS)
                raise UsageError(f"models: {text!r} is of no known kind, {kind!r} before the colon. {remedy}")
            if not specs and (kind != "pipeline" or strength != 1):
                raise UsageError(f"models: the first is the base, a whole pipeline; got {text!r}.")
            if name in specs:
                raise UsageError(f"Every model needs a name of its own, got {name} twice.")
            base = next(iter(specs.values())).source if specs else source
            specs[name] = cls(name, kind, source, base, base_revision, strength)
        return specs


def at_strengths(texts: Sequence[str], strengths: Sequence[float]) -> list[str]:
    """The last model of a recipe's list at other strengths than 1, as models of the list."""
    if not strengths:
        return []
    name, _, source = texts[-1].partition("=")
    if len(texts) < 2 or source.startswith(("results:", "strength:")):
        raise UsageError(
            f"strengths are of the last of models, beside a base and with weights of its own; it is {texts[-1]!r}."
        )
    return [f"{name}-{strength:g}=strength:{strength}:{source}" for strength in strengths if strength != 1]
