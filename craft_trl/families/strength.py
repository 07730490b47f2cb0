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
How strong a tuned model is: a point on the line from the model that its training began with, at 0, to itself, at 1, and on.

Of a full model the line is one of the denoiser's weights, of an adapter one of its scale, which is the same line. Several full models
from one base have a mean, which is such a model too.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import UsageError
from ..ranges import Range
from ..sources import ADAPTER, FACTS, first_line, model_hash
from ..stages import read_record


if TYPE_CHECKING:
    import torch


# Below 0 a model is led away from what it has learnt. Above 1 it is led on, which is a longer training in the rough; at 2 by
# as much again as training has moved it, and nothing that was trained says what lies beyond.
ALLOWED = Range(0, 2)
Strength = Annotated[float, ALLOWED]


def parse_strength(text: str, what: str = "strength") -> float:
    """The number of a strength, or a [`UsageError`] that begins with what is wrong."""
    try:
        strength = float(text)
    except ValueError:
        strength = float("nan")
    if strength not in ALLOWED:
        raise UsageError(f"{what} must be {ALLOWED.wanted(strength)}: 0 is the base, 1 the tuned model; got {text}.")
    return strength


def facts_of(source: str | Path) -> dict[str, Any]:
    """
    What a trainer left beside a model in a folder, or beside the model whose part it is: `base_hash` above all, which is
    [`model_hash`] of the model that the training began with. Nothing of a model that says nothing.
    """
    for folder in (Path(source), Path(source).parent):
        if (folder / FACTS).is_file():
            try:
                facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            except ValueError as error:
                raise UsageError(f"{folder / FACTS} cannot be read ({first_line(error)}).") from error
            # Trainings of earlier versions left the hash in the record of the stage only.
            record = read_record(folder) or {}
            earlier = record.get("settings", {}).get("model") if record.get("stage") == "train" else None
            return {"base_hash": earlier, **facts}
    return {}


def check_base(
    what: str,
    source: str | Path,
    facts: Mapping[str, Any],
    base: str,
    revision: str | None = None,
    remedy: str | None = "",
) -> None:
    """
    Raise a [`UsageError`] if a model was trained from another one than this base.

    Args:
        what (`str`):
            How the message begins.
        source (`str` or `Path`):
            The model.
        facts (`Mapping`):
            What it says of itself, see [`facts_of`].
        base (`str`):
            Folder or Hub id of the base.
        revision (`str`, *optional*):
            Its revision on the Hub.
        remedy (`str`, *optional*, defaults to `""`):
            What to do about a model that does not say what it was trained from; with `None` it may pass.
    """
    if not (expected := facts.get("base_hash")):
        if remedy is not None:
            raise UsageError(f"{what}: {source} has no {FACTS} that says what it was trained from.{remedy}")
    elif expected != (got := model_hash(base, revision)):
        name = facts.get("began_with") or facts.get("base_name") or "another model"
        raise UsageError(
            f"{what}: {source} was trained from another model than {base}: from {name} ({_short(expected)}), and {base} is "
            f"{_short(got)}. A strength is of the way from that one."
        )


def check_average(what: str, folders: Sequence[str]) -> str:
    """
    The hash of the model that all these pipelines say they were trained from, or a [`UsageError`] that begins with `what` where
    they have no mean.
    """
    bases: dict[str, str] = {}
    for folder in folders:
        if (Path(folder) / ADAPTER).is_file():
            raise UsageError(
                f"{what}: {folder} is an adapter, and the mean of two adapters' factors is not that of what they add: name "
                "pipelines."
            )
        if not (Path(folder) / "model_index.json").is_file():
            raise UsageError(
                f"{what}: there is no pipeline in {folder}. It is to be the folder of a finished training."
            )
        if [Path(other).resolve() for other in folders].count(Path(folder).resolve()) > 1:
            raise UsageError(f"{what}: {folder} is there twice.")
        record = read_record(folder)
        if record is not None and not record["finished"]:
            raise UsageError(f"{what}: {folder} is not finished. The same command as before goes on with it.")
        if not (base := facts_of(folder).get("base_hash")):
            raise UsageError(f"{what}: {folder} has no {FACTS} that says what it was trained from.")
        bases.setdefault(base, folder)
    if len(bases) > 1:
        one, other, *_ = bases.values()
        raise UsageError(f"{what}: {one} and {other} were trained from different models, between which there is none.")
    return next(iter(bases))


def _short(digest: str) -> str:
    return digest if "@" in digest else f"{digest[:12]}…"


class Tensors(Mapping):
    """
    Tensors by name in files of safetensors, each read when it is asked for.

    Args:
        files (`Iterable[Path]`):
            The files.
    """

    def __init__(self, files: Iterable[Path]):
        from safetensors import safe_open

        handles = [safe_open(file, "pt") for file in files]
        self.handle_of = {name: handle for handle in handles for name in handle.keys()}

    def __getitem__(self, name: str) -> "torch.Tensor":
        return self.handle_of[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.handle_of)

    def __len__(self) -> int:
        return len(self.handle_of)


class Average(Mapping):
    """
    The mean of models that were trained from one base, tensor by tensor ([arXiv 2203.05482](https://huggingface.co/papers/2203.05482)).
    It is computed in float32 when it is asked for.

    Args:
        models (`Sequence[Mapping[str, torch.Tensor]]`):
            Tensors by name of each model.
        what (`str`):
            How the message of an error begins.
    """

    def __init__(self, models: Sequence[Mapping[str, "torch.Tensor"]], what: str):
        self.models, self.what = models, what
        for model in models[1:]:
            if different := set(models[0]) ^ set(model):
                raise self.error(min(different))

    def __getitem__(self, name: str) -> "torch.Tensor":
        first, *others = (model[name] for model in self.models)
        if any(other.shape != first.shape for other in others):
            raise self.error(name)
        if not first.is_floating_point():
            return first
        return sum((other.float() for other in others), first.float()) / len(self.models)

    def __iter__(self) -> Iterator[str]:
        return iter(self.models[0])

    def __len__(self) -> int:
        return len(self.models[0])

    def error(self, name: str) -> UsageError:
        return UsageError(f"{self.what}: {name} is not in all of them, in one shape, so that they have no mean.")


def between(base: "torch.Tensor", tuned: "torch.Tensor", strength: float) -> "torch.Tensor":
    """The point of this strength between two tensors: each of them as it is at 0 and 1, elsewhere computed in float32."""
    import torch

    if strength in (0, 1) or not tuned.is_floating_point():
        return tuned if strength else base
    return torch.lerp(base.float(), tuned.float(), strength)


def set_strength(
    network: "torch.nn.Module",
    base: Mapping[str, "torch.Tensor"],
    tuned: Mapping[str, "torch.Tensor"],
    strength: float,
    what: str,
) -> None:
    """Give a network the weights of this strength between two, rounded once, to the precision that it has."""
    import torch

    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name not in base and name not in tuned:  # computed, and in no file
                continue
            if name not in base or name not in tuned or base[name].shape != tuned[name].shape:
                raise UsageError(
                    f"{what}: {name} is not in both, in one shape, so that there is no line between them."
                )
            value.copy_(between(base[name], tuned[name], strength))


def scale_adapter(network: "torch.nn.Module", strength: float) -> None:
    """Multiply the scale of the adapters in a network."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            module.scaling = {name: scale * strength for name, scale in module.scaling.items()}
