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

"""The files of a pipeline, in a folder here or in a repository on the Hub: which there are, and which of them are read."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import UsageError
from ..sources import ADAPTER, first_line, looks_like_hub_id
from . import DENOISERS


# All of a repository that is downloaded to look at it.
CONFIGURATION = ["model_index.json", "config.json", "*/*config.json", "*.index*.json"]
# What a pipeline may have and neither drawing nor training uses. It is not loaded.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
# Name of the weights of a network, by the library of its class.
WEIGHTS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
# A folder of a tokenizer holds one of these sets of files.
VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"})


@dataclass(frozen=True)
class ModelFiles:
    """
    Files of a pipeline, or of a part of one.

    Args:
        source (`str`):
            Folder or Hub id, as the user names it.
        folder (`Path`):
            Where the configurations lie.
        names (`frozenset[str]`):
            Paths of all files in it, or in the repository.
        reachable (`bool`, *optional*, defaults to `True`):
            `False` where only the Hub's cache could be looked at: there may be more files than it holds.
    """

    source: str
    folder: Path
    names: frozenset[str]
    reachable: bool = True

    def json(self, name: str) -> dict:
        """Content of a file of JSON."""
        if name not in self.names:
            raise UsageError(f"Model {self.source}: {name} is missing.")
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"Model {self.source}: its {name} cannot be read ({first_line(error)}).") from error
        if not isinstance(content, dict):
            raise UsageError(f"Model {self.source}: its {name} is no configuration.")
        return content

    @cached_property
    def index(self) -> dict:
        """Content of `model_index.json`, which says what the pipeline is made of."""
        if "model_index.json" not in self.names:
            raise UsageError(
                f"Model {self.source}: it has no model_index.json, so it is not the folder of a diffusers pipeline.{self._what()}"
            )
        try:
            index = self.json("model_index.json")
        except UsageError:
            index = {}
        if not isinstance(index.get("_class_name"), str):
            # diffusers would raise a `KeyError` for a file without a class, when much else has been loaded.
            raise UsageError(f"Model {self.source}: its model_index.json does not describe a diffusers pipeline.")
        return index

    def _what(self) -> str:
        """What a folder without a `model_index.json` is, and how it is named where there is a use for it."""
        if self.names & {ADAPTER, "adapter_config.json"}:
            return f" It is an adapter, which goes onto a model: `craft evaluate` takes it as NAME=lora:{self.source}."
        if "config.json" in self.names:
            class_name = self.json("config.json").get("_class_name") or "part of a model"
            kind = next((name for name in DENOISERS if name in class_name.lower()), None)
            hint = f" `craft evaluate` takes a denoiser as NAME={kind}:{self.source}." if kind else ""
            return f" It is a {class_name} alone.{hint}"
        files = sorted(name for name in self.names if name.endswith(".safetensors") and "/" not in name)
        return f" A single file is named itself, such as {self.folder / files[0]}." if files else ""

    @property
    def components(self) -> dict[str, tuple[str, str]]:
        """Library and class of each part that drawing and training use, by its name."""
        entries = {name: value for name, value in self.index.items() if isinstance(value, list) and len(value) == 2}
        return {name: (lib, cls) for name, (lib, cls) in entries.items() if cls is not None and name not in UNUSED}

    @property
    def absent(self) -> dict[str, None]:
        """
        Parts that the index says are not there, as arguments of `from_pretrained`: it misses those that a class does not call
        optional, such as the third text encoder of a Stable Diffusion 3 (diffusers 0.42).
        """
        return {name: None for name, value in self.index.items() if value == [None, None]}

    @property
    def networks(self) -> dict[str, tuple[str, str]]:
        """The components that have weights."""
        return {n: part for n, part in self.components.items() if not n.startswith(("tokenizer", "scheduler"))}

    @cached_property
    def variant(self) -> str | None:
        """
        Variant of the weights that is read: `None` where every network has the files without one, else one that all
        others have, as `"fp16"` of a repository that holds half precision only. They are cast to what is asked for.
        """
        held = {name: self.weights(name, library) for name, (library, _) in self.networks.items()}
        lacking = {name: set(weights) for name, weights in held.items() if weights and None not in weights}
        if not lacking:
            return None
        if not (common := set.intersection(*lacking.values())):
            said = ", ".join(f"{name} as {' or '.join(sorted(variants))}" for name, variants in lacking.items())
            raise UsageError(f"Model {self.source}: no variant is there of all its weights, but {said}.")
        return "fp16" if "fp16" in common else min(common)

    def weights(self, component: str, library: str) -> dict[str | None, list[str]]:
        """
        Files of a network's weights by variant, `None` for those without one. Of a part by itself, `component` is `""`.

        Raises a [`UsageError`] if a shard or its index is missing, or if there are none in the format that is read.
        """
        here, stem = f"{component}/" if component else "", WEIGHTS[library]
        inside = [n.removeprefix(here) for n in self.names if n.startswith(here) and "/" not in n.removeprefix(here)]
        single, sharded, shards = {}, {}, {}
        for name in sorted(inside):
            if match := re.fullmatch(rf"{stem}(?:\.(\w+))?\.safetensors", name):
                single[match[1]] = [here + name]
            elif match := re.fullmatch(rf"{stem}(?:\.(\w+))?-\d+-of-\d+(?:\.(\w+))?\.safetensors", name):
                shards.setdefault(match[1] or match[2], []).append(name)
            elif match := re.fullmatch(rf"{stem}\.safetensors(?:\.(\w+))?\.index(?:\.(\w+))?\.json", name):
                sharded[match[1] or match[2]] = here + name
        for variant, index in sharded.items():
            # Beside a whole file, transformers does not look at an index and diffusers does.
            if variant not in single or library == "diffusers":
                single[variant] = sorted(
                    here + shard for shard in set(self.json(index).get("weight_map", {}).values())
                )
                if missing := sorted(set(single[variant]) - self.names):
                    if self.reachable:
                        raise UsageError(f"Model {self.source}: {missing[0]} is missing, which {index} names.")
                    del single[variant]
        for variant in shards.keys() - sharded.keys() - single.keys() if self.reachable else ():
            suffix = f".{variant}" if variant else ""
            raise UsageError(
                f"Model {self.source}: {here}{stem}.safetensors.index{suffix}.json is missing, without which the shards "
                f"beside it, such as {shards[variant][0]}, cannot be read."
            )
        if not single and self.reachable:
            raise UsageError(
                f"Model {self.source}: {here}{stem}.safetensors is missing.{self._instead(inside, component)}"
            )
        return single

    def _instead(self, inside: list[str], component: str) -> str:
        """What lies where weights should, and what to do with it."""
        others = sorted(n for n in inside if n.endswith((".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".safetensors")))
        if not others:
            return ""
        said = f" There is {others[0]}, and only files of that name are read."
        if others[0].endswith(".bin"):
            loader = "DiffusionPipeline" if component else "AutoModel"
            said = (
                f' There is {others[0]}, and only safetensors are read. To convert it: python -c "from diffusers import '
                f"{loader} as M; M.from_pretrained('{self.source}').save_pretrained('FOLDER')\"."
            )
        return said

    def read_weights(self) -> dict[str, list[Path]]:
        """Files of the weights that are read, by network: those that are here."""
        read = {}
        for name, (library, _) in self.networks.items():
            held = self.weights(name, library)
            files = [self.folder / file for file in held.get(self.variant, held.get(None, []))]
            read[name] = [file for file in files if file.is_file()]
        return read

    def model_max_length(self, tokenizer: str, stated: int, asked: int | None = None) -> int:
        """
        How many tokens of a text the model reads: as many as its tokenizer states, and no more than its text encoder
        has positions; other encoders than CLIP's no more than they are asked to. A tokenizer that states nothing has 1e30, and
        77 is the default of `CLIPTextConfig`; T5's positions are relative.
        """
        config = self.json(f"{tokenizer.replace('tokenizer', 'text_encoder')}/config.json")
        is_clip = config.get("model_type", "clip_text_model").startswith("clip")
        read = min(stated, config.get("max_position_embeddings", 77 if is_clip else stated))
        return read if is_clip or asked is None else min(read, asked)


def find_files(source: str, revision: str | None = None) -> ModelFiles:
    """Files of a folder, or of a repository on the Hub; a [`UsageError`] if there is neither."""
    path = Path(source)
    if path.is_dir():
        # Not below the components: a folder that was trained into also holds checkpoints.
        files = (file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.is_file())
        return ModelFiles(source, path, frozenset(file.relative_to(path).as_posix() for file in files))
    if path.exists():
        raise UsageError(
            f"Model {source}: a file, and no .safetensors. A checkpoint of another format is to be converted to it."
        )
    if not looks_like_hub_id(source):
        raise UsageError(f"Model {source}: there is no such folder. A model on the Hub is named like org/name.")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError
    from tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": True})

    def download(patterns: list[str]) -> Path:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns, tqdm_class=NoBar))

    try:
        try:
            folder = download(CONFIGURATION)
        except IncompleteSnapshotError:  # offline, and the cache lacks those of parts that nothing here is made of
            folder = download([])
    except Exception as error:  # the Hub, the network and the cache have errors of their own each
        raise UsageError(f"Model {source}: there is no such folder, and the Hub says: {first_line(error)}") from error
    try:
        return ModelFiles(source, folder, frozenset(HfApi().list_repo_files(source, revision=folder.name)))
    except Exception:  # offline: what can be loaded is what is in the cache
        names = frozenset(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        return ModelFiles(source, folder, names, reachable=False)
