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
Weights of the reward models: how they are found, checked and read.

Tensors are read from safetensors, or from pickles by readers that execute nothing.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors.torch import load_file
from torch import nn

from ..errors import UsageError, out_of_memory
from ..quiet import quiet_bars, quiet_logs
from ..sources import first_line, looks_like_hub_id, sha256
from .weights import KINDS, Weights


def find(source: str | None, published: Weights) -> Path:
    """
    Folder with the files of a source.

    Args:
        source (`str`, *optional*):
            A folder, or a repository on the Hub. Defaults to the published weights, which are downloaded once and
            whose hash is checked, again whenever their file has changed; other sources are taken as they are.
        published ([`Weights`]):
            The published weights.
    """
    if source is not None and source != published.repo_id:
        if Path(source).is_dir():
            return Path(source)
        if not looks_like_hub_id(source):
            raise UsageError(f"Reward weights {source}: there is no such folder.")
        with explain(_download_hint(source)):
            return Path(snapshot_download(source, allow_patterns=list(KINDS)))
    with explain(_download_hint(published.repo_id, published)):
        paths = [Path(hf_hub_download(published.repo_id, f, revision=published.revision)) for f in published.files]
    digest = sha256(paths[0]) if published.sha256 is not None else None
    if digest != published.sha256:
        raise UsageError(
            f"{paths[0]} is not {published.name}: its SHA-256 begins with {digest[:12]}, the published one with "
            f"{published.sha256[:12]}. The download is damaged; delete {paths[0].resolve()} and try again."
        )
    return paths[0].parent


def _download_hint(repo_id: str, weights: Weights | None = None) -> str:
    command = f"hf download {repo_id}"
    if weights is not None:
        command += "".join(f" {file}" for file in weights.files)
        command += f" --revision {weights.revision}" if weights.revision else ""
    return f"{repo_id} is neither a folder nor to be had from the Hub or its cache (with a network: `{command}`)"


def read(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint file, on the CPU. A pickle is read without executing it."""
    _check_file(path)
    with explain(f"{path} cannot be read as weights; download it again"):
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)


def read_module(path: Path, allowed: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """
    Tensors of a module that was pickled whole, without importing or executing anything that the file asks for.

    Every class in the pickle becomes an empty stand-in of the same name. One whose name does not begin with one of
    `allowed` is an error.
    """
    _check_file(path)
    with explain(f"{path} cannot be read as weights; download it again"):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    unknown = sorted(name for name in names if name != "torch._C._nn.gelu" and not name.startswith(allowed))
    if unknown:
        raise UsageError(f"{path} is not read: it asks for {unknown[0]}, which no checkpoint of this model needs.")
    stand_ins = [(F.gelu if name == "torch._C._nn.gelu" else _stand_in(name), name) for name in names]
    with explain(f"{path} cannot be read as weights; download it again"), torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True).state_dict()


def _stand_in(name: str) -> type:
    if "configuration" in name:
        return type(name, (), {"__setstate__": lambda self, state: self.__dict__.update(state)})
    return type(name, (nn.Module,), {})


def read_config(folder: Path, example: Mapping) -> dict:
    """The `config.json` of a folder, with the keys of `example`."""
    _check_file(folder / "config.json")
    with explain(f"{folder / 'config.json'} cannot be read"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        missing = sorted(example.keys() - config.keys())
    if missing:
        raise UsageError(f"{folder / 'config.json'} has no {missing[0]!r}; it needs {', '.join(sorted(example))}.")
    return config


def load_into(network: nn.Module, weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Load a state dict of which every key and shape must fit."""
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in weights.items()}
    check_keys(expected.keys() - given.keys(), given.keys() - expected.keys(), source)
    for key, shape in expected.items():
        if given[key] != shape:
            raise UsageError(f"{source} is of another architecture: {key} has shape {given[key]}, expected {shape}.")
    network.load_state_dict(weights)


def check_keys(missing: Iterable[str], unexpected: Iterable[str], source: str | Path) -> None:
    """Raise a [`UsageError`] unless both are empty."""
    for has, keys in (("lacks", sorted(missing)), ("holds an unknown", sorted(unexpected))):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UsageError(f"{source} is of another architecture: it {has} {keys[0]}{more}.")


def load_pretrained(network_class: type[nn.Module], folder: Path, dtype: torch.dtype) -> nn.Module:
    """A transformers model from a folder of safetensors, of which every weight must be there and fit."""
    with (
        explain(f"{folder} (it holds {_listing(folder)}) cannot be read as a {network_class.__name__}"),
        quiet_logs(),
        quiet_bars(),
    ):
        network, report = network_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    for key, given, expected in sorted(report["mismatched_keys"]):
        given, expected = tuple(given), tuple(expected)
        raise UsageError(f"{folder} is of another architecture: {key} has shape {given}, expected {expected}.")
    # A checkpoint may hold more than is asked for, such as CLIP's text tower; what it lacks would be left random.
    check_keys(report["missing_keys"], (), folder)
    return network


@contextlib.contextmanager
def explain(what: str) -> Iterator[None]:
    """Turn whatever a library raises over a wrong file into a [`UsageError`]: each format has errors of its own."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error) is not None:  # the file is not what is wrong
            raise
        raise UsageError(f"{what}: {first_line(error)[:200]}") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path.parent} has no {path.name}; it holds {_listing(path.parent)}.")


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"
