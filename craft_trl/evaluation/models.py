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

"""The models of a comparison: whole pipelines, and denoisers or LoRA adapters that go into the base model's pipeline."""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.models.model_loading_utils import load_state_dict
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..candidates.config import CandidatesConfig, SamplingConfig
from ..candidates.loading import load_network, load_pipeline
from ..errors import UsageError
from ..families import get_family
from ..families.adapters import attach_adapter, lora_loader, merge_adapter
from ..families.checks import check_model, read_header
from ..families.files import ModelFiles, find_files
from ..families.strength import Tensors, check_base, facts_of, scale_adapter, set_strength
from ..quiet import quiet_logs
from ..sources import ADAPTER, FACTS, content_hash, first_line, model_hash
from .specs import WEIGHT_FILES, ModelSpec


# A layer of a LoRA, in kohya's, peft's, XLabs' and diffusers' names; there are two to a module.
LAYER = re.compile(r"(lora_(A|B|up|down)|lora(_linear_layer|\d)?\.(up|down))\.weight$")
DOWN = re.compile(r"(lora_(A|down)|lora(_linear_layer|\d)?\.down)\.weight$")  # the first of them, as high as the rank


@dataclass(frozen=True)
class Model(ModelSpec):
    """
    A [`ModelSpec`] with what it names: its files, found and checked, and the pipeline made of them.
    """

    @classmethod
    def of_candidates(cls, config: CandidatesConfig) -> "Model":
        """What draws a recipe's candidates: its model, or that with the draft adapter."""
        base, revision = config.model_name_or_path, config.model_revision
        if config.draft_adapter is None:
            return cls("candidates", "pipeline", base, base, revision)
        return cls("draft_adapter", "lora", config.draft_adapter, base, revision)

    def check(self, drawing: SamplingConfig | None = None) -> None:
        """
        Raise a [`UsageError`] unless the model is there and, if it is a part, fits the base model, and it can be drawn
        from as `drawing` says. It loads no network, but downloads what it must look into: the configuration of a
        denoiser, and the file of a state dict or adapter.
        """
        whole = self.kind in ("pipeline", "results")
        if not (whole and self.strength == 1) and Path(self.base).is_file():
            what = self.kind if self.strength == 1 else f"model of strength {self.strength:g}"
            raise UsageError(
                f"Model {self.name}: a {what} goes into a base that is a folder or on the Hub, and {self.base} is a file."
            )
        check_model(*self.whole, drawing)
        if self.strength != 1:
            self.check_base()
        if whole:
            if self.strength != 1:
                self.denoiser_alone.check(drawing)
            return
        if self.kind == "lora":
            self.attach(self.empty_pipeline())
            return
        if self.family.denoiser != self.kind:
            raise UsageError(f"Model {self.name}: a {self.base_class.__name__} has no {self.kind}.")
        if self.path.is_file():
            given = {key: value.shape for key, value in self.state_dict().items()}
        else:
            given = _shapes(_on_meta(self.denoiser_class, self.denoiser_class.load_config(self.path)))
        self.check_architecture(given)

    def hash(self) -> str:
        """Content of the model: of its files if they are here, else repository and commit."""
        whole = model_hash(*self.whole)
        if self.kind == "pipeline" and self.strength == 1:
            return whole
        base = model_hash(self.base, self.base_revision)
        if self.strength == 0:
            return base
        strength = "" if self.strength == 1 else f"*{self.strength}"
        if self.kind == "pipeline":
            return f"{base}+{self.kind}:{whole}{strength}"
        part = content_hash(self.path) if Path(self.source).exists() else f"{self.source}@{_commit(self.path)}"
        return f"{base}+{self.kind}:{part}{strength}"

    def load(self, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
        """The pipeline, ready to draw."""
        if self.kind == "pipeline" and self.strength != 1:
            return self.denoiser_alone.load(dtype)
        source, revision = self.whole
        pipeline = load_pipeline(source, dtype=dtype, revision=revision)
        if self.strength == 0:
            return pipeline
        if self.kind == "lora":
            self.attach(pipeline)
            for network in pipeline.components.values() if self.strength != 1 else ():
                if isinstance(network, nn.Module):
                    scale_adapter(network, self.strength)
        elif self.strength != 1:
            base = Tensors(self.base_files.read_weights()[self.kind])
            set_strength(getattr(pipeline, self.kind), base, self.tensors(), self.strength, f"Model {self.name}")
        elif self.kind != "pipeline" and self.path.is_file():
            getattr(pipeline, self.kind).load_state_dict(self.state_dict())
        elif self.kind != "pipeline":
            denoiser = load_network(self.denoiser_class, str(self.path), dtype)
            pipeline.register_modules(**{self.kind: denoiser})
        return pipeline

    @property
    def denoiser_alone(self) -> "Model":
        """A whole pipeline's denoiser in the pipeline of the base: of a model that was trained from it, all there is to it."""
        denoiser = self.family.denoiser
        return replace(self, kind=denoiser, source=f"{self.source}/{denoiser}")

    def check_base(self) -> None:
        """Raise a [`UsageError`] if the model says that it was trained from another one than the base."""
        source: str | Path = self.source
        if not Path(source).exists():
            try:
                source = hf_hub_download(self.repository[0], FACTS)
            except RemoteEntryNotFoundError:  # it says nothing
                pass
            except Exception as error:  # the Hub, the network and the cache have errors of their own each
                if self.kind == "pipeline":
                    raise UsageError(
                        f"Model {self.name}: the {FACTS} of {self.source}, which says what it was trained from, cannot be had from the "
                        f"Hub: {first_line(error)}"
                    ) from error
        remedy = None
        if self.kind == "pipeline":
            part = f"{self.family.denoiser}:{self.source}/{self.family.denoiser}"
            remedy = f" If it is a model of {self.base}, name its denoiser alone: strength:{self.strength:g}:{part}."
        check_base(f"Model {self.name}", self.source, facts_of(source), self.base, self.base_revision, remedy)

    @cached_property
    def base_files(self) -> ModelFiles:
        return find_files(self.base, self.base_revision)

    @property
    def base_class(self) -> type[DiffusionPipeline]:
        return getattr(diffusers, self.base_files.index["_class_name"])

    @property
    def family(self) -> Any:
        return get_family(self.base_class.__name__)

    @property
    def denoiser_class(self) -> type[nn.Module]:
        return getattr(diffusers, self.base_files.components[self.family.denoiser][1])

    def empty_denoiser(self) -> nn.Module:
        """The base model's denoiser without weights."""
        return _on_meta(self.denoiser_class, self.base_files.json(f"{self.family.denoiser}/config.json"))

    def empty_pipeline(self) -> DiffusionPipeline:
        """The base model's pipeline without weights, and with nothing but what an adapter can be for."""
        parts = dict.fromkeys(name for name, entry in self.base_files.index.items() if isinstance(entry, list))
        parts[self.family.denoiser] = self.empty_denoiser()
        for name, (_, class_name) in self.base_files.networks.items():
            if name.startswith("text_encoder"):
                network_class = getattr(transformers, class_name)
                config = network_class.config_class.from_dict(self.base_files.json(f"{name}/config.json"))
                with torch.device("meta"):
                    parts[name] = network_class(config)
        options = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        return self.base_class(**parts, **options)

    @cached_property
    def path(self) -> Path:
        """The folder or file of a part, downloaded if it is on the Hub."""
        path = Path(self.source)
        if not path.exists():
            repo_id, inside = self.repository
            try:
                if inside.endswith(WEIGHT_FILES):
                    path = Path(hf_hub_download(repo_id, inside))
                else:
                    for wanted in self.hub_files:
                        options = {"allow_patterns": [*wanted.files], "ignore_patterns": [*wanted.ignored]}
                        path = Path(snapshot_download(repo_id, **options)) / inside
                        if any(path.glob("*.safetensors")):
                            break
            except Exception as error:  # the Hub, the network and the cache have errors of their own each
                raise UsageError(
                    f"Model {self.name}: there is no {self.source} here, and the Hub says: {first_line(error)}"
                ) from error
        if self.kind != "lora":
            if path.is_dir() and not (path / "config.json").is_file():
                raise UsageError(
                    f"Model {self.name}: {self.source} has no config.json, so it is not the folder of a {self.kind}. "
                    f"A folder in a repository is named like org/name/{self.kind}."
                )
            if path.is_dir() and not any(path.glob("*.safetensors")):
                raise UsageError(
                    f"Model {self.name}: {self.source} has no .safetensors. Another file is named in full, like "
                    f"{self.kind}:org/name/{self.kind}/diffusion_pytorch_model.bin; it is read without executing it."
                )
            if path.is_dir():
                find_files(str(path)).weights("", "diffusers")
            return path
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        standard = [file for file in files if file.name == ADAPTER]
        if len(standard or files) != 1 or files[0].suffix != ".safetensors":
            found = ", ".join(file.name for file in files) or "none"
            raise UsageError(
                f"Model {self.name}: {self.source} must hold one .safetensors file, found {found}. Name it."
            )
        return (standard or files)[0]

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Tensors of a file, mapped into memory. A pickle is read without executing it."""
        try:
            return load_state_dict(str(self.path))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"Model {self.name}: {self.source} cannot be read as weights: {first_line(error)}"
            ) from error

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Tensors of a denoiser, of a folder or a file."""
        if self.path.is_file():
            return self.state_dict()
        held = find_files(str(self.path)).weights("", "diffusers")
        return Tensors(self.path / name for name in held[min(held, key=lambda variant: variant or "")])

    def lora_state_dict(
        self, tensors: dict[str, torch.Tensor] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Tensors of an adapter, or others in their place, in diffusers' names, and its alphas where they are not among them."""
        # UNets' adapters are renamed by the blocks of the UNet.
        options = {"unet_config": self.empty_denoiser().config} if self.family.denoiser == "unet" else {}
        if tensors is None:
            options |= {"weight_name": self.path.name, "use_safetensors": True}
        source = self.path.parent if tensors is None else tensors
        try:
            with quiet_logs():
                layers, *others = lora_loader(self.base_class).lora_state_dict(
                    source, return_lora_metadata=True, **options
                )
        except Exception as error:  # diffusers has converters for many formats, which fail in many ways
            said = " ".join(str(error).split())[:300]  # it names the keys that it does not know on a line of their own
            raise UsageError(f"Model {self.name}: {self.source} cannot be read as a LoRA: {said}") from error
        return layers, (others[0] or {}) if len(others) > 1 else {}

    def lora_tensors_read(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """
        Names of an adapter's tensors of which something is left in diffusers' names. Converters split some, and drop what they do
        not know without a word: so all are filled with a number of their own, and the numbers looked for.
        """
        ranks = {
            name[: match.start()].rstrip("._"): shapes[name][0] for name in shapes if (match := DOWN.search(name))
        }
        numbered = {name: torch.full(shape, float(number)) for number, (name, shape) in enumerate(shapes.items(), 1)}
        # Not scaled, so that a number stays what it is.
        numbered |= {n: torch.tensor(float(ranks.get(n[:-6], 1))) for n in shapes if n.endswith(".alpha")}
        found = set()
        for value in self.lora_state_dict(numbered)[0].values():
            found |= {*value.flatten(1)[0].tolist(), *value.flatten(1)[:, 0].tolist()} if value.ndim > 1 else set()
        return [name for number, name in enumerate(shapes, 1) if number in found and not name.endswith(".alpha")]

    def attach(self, pipeline: DiffusionPipeline) -> None:
        """
        Put the adapter onto the base model's pipeline, its denoiser and its text encoders, and raise a [`UsageError`]
        unless all of it is there then.
        """
        what = f"Model {self.name}: {self.source} is not a LoRA for {self.base}"
        # Before anything of diffusers reads the file: what it cannot use it drops, with a warning at most.
        shapes = read_header(self.path, self.source).shapes
        names = [name for name in shapes if not name.endswith(".alpha")]
        self._check_all_read(what, names, [name for name in names if LAYER.search(name)])
        (layers, alphas), denoiser = self.lora_state_dict(), getattr(pipeline, self.family.denoiser)
        if not any(name.startswith(f"{self.family.denoiser}.") for name in layers):
            raise UsageError(f"{what}: it has nothing for a {self.family.denoiser}.")
        if scale := next((name for name in layers if name.endswith(".alpha")), None):
            raise UsageError(
                f"{what}: diffusers does not read the scales of its layers, such as {scale}, for a {self.base_class.__name__}."
            )
        self._check_all_read(what, layers, [name for name in layers if name.split(".")[0] in pipeline.components])
        self._check_all_read(what, names, self.lora_tensors_read(shapes))
        try:
            # diffusers and peft warn of what does not fit and go on without it, or log the error that they raise.
            with quiet_logs(logging.ERROR):
                attach_adapter(pipeline, self.path)
        # A wrong shape, or target modules that are not there, each with an error of its own.
        except Exception as error:
            # PyTorch names the shapes after its first line, peft all modules that are not there.
            detail = next((line.strip() for line in str(error).splitlines() if "mismatch" in line), first_line(error))
            detail = re.sub(r"\{('[^']+'), .*\}", r"\1 and others", detail)
            raise UsageError(f"{what}: {detail[:300]}") from error
        networks = [part for part in pipeline.components.values() if getattr(part, "peft_config", None)]
        attached = [
            module for network in networks for module in network.modules() if isinstance(module, BaseTunerLayer)
        ]
        wanted = len(layers) // 2
        if len(attached) != wanted:
            raise UsageError(f"{what}: {len(attached)} of its {wanted} modules are there.")
        # Where alphas differ, diffusers (0.42) gives the attention of a UNet the one that most modules have. Delete when it does not.
        got = sorted(float(module.scaling[name] * module.r[name]) for module in attached for name in module.scaling)
        if len(set(alphas.values())) > 1 and not np.allclose(
            got, sorted(alphas.values()) if len(alphas) == wanted else 0
        ):
            raise UsageError(f"{what}: diffusers reads other scales than it says, which differ from module to module.")
        options = {"save_embedding_layers": False}
        read = [get_peft_model_state_dict(n, adapter_name=a, **options) for n in networks for a in n.peft_config]
        sizes = [sum(value.numel() for part in parts for value in part.values()) for parts in (read, [layers])]
        # FLUX's loader makes layers larger that are smaller than the adapter's, and an adapter that is smaller than they are.
        if sizes[0] != sizes[1] or getattr(denoiser, "_overwritten_params", None):
            raise UsageError(f"{what}: its layers are of other sizes.")

    def _check_all_read(self, what: str, names: Collection[str], read: Collection[str]) -> None:
        if other := next((name for name in names if name not in read), None):
            raise UsageError(
                f"{what}: {len(read)} of its {len(names)} tensors are read. Not read are those such as {other}."
            )

    def check_architecture(self, given: Mapping[str, torch.Size]) -> None:
        """Raise a [`UsageError`] unless tensors of these shapes are those of the base model's denoiser."""
        expected = _shapes(self.empty_denoiser())
        for what, keys in (("lacks", expected.keys() - given.keys()), ("has", given.keys() - expected.keys())):
            if keys:
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                raise UsageError(
                    f"Model {self.name}: {self.source} is not for {self.base}: it {what} {min(keys)}{more}."
                )
        for key, shape in expected.items():
            if tuple(given[key]) != tuple(shape):
                raise UsageError(
                    f"Model {self.name}: {self.source} is not for {self.base}: {key} has shape {tuple(given[key])}, "
                    f"expected {tuple(shape)}."
                )


def load_drawing(config: CandidatesConfig) -> str | DiffusionPipeline:
    """What an [`ImageGenerator`] of candidates draws from: the model's name, or its pipeline with the draft adapter merged into it."""
    if config.draft_adapter is None:
        return config.model_name_or_path
    pipeline = Model.of_candidates(config).load(getattr(torch, config.dtype))
    merge_adapter(pipeline)
    return pipeline


def _commit(path: str | Path) -> str:
    """Commit that a file or folder in the Hub's cache is of."""
    parts = Path(path).parts
    return parts[parts.index("snapshots") + 1]


def _on_meta(denoiser_class: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return denoiser_class.from_config(config)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}
