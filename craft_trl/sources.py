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


"""Where models, datasets and prompts come from: a path here, or a repository on the Hub."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


ADAPTER = "pytorch_lora_weights.safetensors"  # the file of a LoRA, as diffusers names it


def looks_like_hub_id(source: str) -> bool:
    """Whether a text could be the id of a repository, `org/name`, rather than a path."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not source.endswith("/")


def first_line(error: Exception) -> str:
    """The first line of what a library says, for an error message of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def content_hash(path: str | Path, parts: Iterable[Path] | None = None) -> str:
    """Hex digest of a file, or of the names and contents of all files below a folder (or below `parts` of it)."""
    path = Path(path)
    digest = hashlib.sha256()
    files = {f for part in (parts or [path]) for f in ([part] if part.is_file() else part.rglob("*")) if f.is_file()}
    for file in sorted(files):
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def source_hash(source: str, revision: str | None = None) -> str:
    """
    What identifies a model, dataset or prompt file in a fingerprint: the content of a local path, else the Hub id with
    its commit.
    """
    if Path(source).exists():
        return content_hash(source)
    return f"{source}@{commit(source, revision)}"


def commit(repo_id: str, revision: str | None = None) -> str:
    """
    Commit that a revision of a model on the Hub is at, `main` by default; without a network the one in the cache. Where
    neither knows it, nothing can be loaded either, and it is the revision itself.
    """
    from huggingface_hub import resolve_revision

    try:
        return resolve_revision(repo_id, revision=revision).resolved
    except Exception:  # the Hub, the network and the cache have errors of their own each
        return revision or "main"


def model_hash(source: str, revision: str | None = None) -> str:
    """What identifies a model in a fingerprint: the content of its components, or its Hub id and commit."""
    path = Path(source)
    if path.suffix == ".safetensors" and path.is_file():
        # With the configuration that may lie beside it, see `load_pipeline`.
        index = path.parent / "model_index.json"
        beside = [file for pattern in ("*/*.json", "*/*.txt") for file in path.parent.glob(pattern)]
        weights = content_hash(path)
        return f"{weights}+{content_hash(path.parent, [index, *beside])}" if index.is_file() else weights
    if not path.is_dir():
        return f"{source}@{commit(source, revision)}"
    # Only the components: a folder that was trained into also holds checkpoints and logs.
    components = sorted(p for p in path.iterdir() if p.name == "model_index.json" or (p / "config.json").is_file())
    tokenizers = sorted(p for p in path.iterdir() if p.name.startswith(("tokenizer", "scheduler")))
    return content_hash(path, [*components, *tokenizers])
