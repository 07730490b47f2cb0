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
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from .errors import UsageError, out_of_memory


ADAPTER = "pytorch_lora_weights.safetensors"  # the file of a LoRA, as diffusers names it
FACTS = "training.json"  # what a trainer says of the model beside it
# Said where a dataset is wanted and there is none.
WHAT_MAKES_DATASETS = "`craft filter` makes one of a pool, `craft import` one of images or pairs, `craft transitions` that of `craft spo`."


@dataclass(frozen=True)
class HubFiles:
    """
    Files of a repository on the Hub that something is loaded from.

    Args:
        repo_id (`str`):
            Repository.
        files (`tuple[str, ...]`):
            Their names, or patterns of them.
        revision (`str`, *optional*):
            Revision. Defaults to the newest.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.
        ignored (`tuple[str, ...]`, *optional*):
            Patterns of those that are not taken.
        optional (`bool`, *optional*, defaults to `False`):
            Whether files that are named may be missing.
    """

    repo_id: str
    files: tuple[str, ...]
    revision: str | None = None
    repo_type: str = "model"
    ignored: tuple[str, ...] = ()
    optional: bool = False


def looks_like_hub_id(source: str) -> bool:
    """Whether a text could be the id of a repository, `org/name`, rather than a path."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not source.endswith("/")


def first_line(error: Exception) -> str:
    """The first line of what a library says, for an error message of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def loading(what: str) -> Iterator[None]:
    """What a library raises that loads a file of a user's inside, as one line: they have errors of all kinds for a damaged one."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise UsageError(f"{what} cannot be loaded: {first_line(error)}") from error


def sha256(path: Path) -> str:
    """Hex digest of a file's content; see [`remembered`]."""

    def read() -> str:
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()

    return remembered("file", [path], read)


def content_hash(path: str | Path, parts: Iterable[Path] | None = None) -> str:
    """
    Hex digest of a file, or of the names and contents of all files below a folder (or below `parts` of it); see
    [`remembered`].
    """
    path = Path(path)
    found = {f for part in (parts or [path]) for f in ([part] if part.is_file() else part.rglob("*")) if f.is_file()}
    files = sorted(found)

    def read() -> str:
        digest = hashlib.sha256()
        for file in files:
            digest.update(str(file.relative_to(path)).encode() + b"\0")
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    return remembered(f"folder {path.absolute()}", files, read)


MEMORY = Path(HF_HOME) / "craft_trl" / "hashes"  # may be deleted at any time
WORTH_REMEMBERING = 1 << 24  # bytes: less is read again in no time
SETTLED = 2.0  # seconds: within the resolution of a file system's clock, a second change would look like the first

Stamp = tuple[str, int, int, int, int]


def stamp(path: Path) -> Stamp:
    """What of a file is other once its content is: path, inode, size, and when content and inode were last changed."""
    status = path.stat()
    return str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def remembered(what: str, files: Sequence[Path], work: Callable[[], str]) -> str:
    """
    A hex digest that `work` makes of the content of files: the one that it made before, in whatever process, if none of the
    files has changed since by its [`stamp`].

    So 14 GB of a model or 39 GB of a pool are read once, and not by every command and in every process; processes that ask
    at the same time wait for the first. What changes a file without a trace in its stamp, as a bit that rots on a disk, is
    not seen.
    """
    stamps = [stamp(file) for file in files]
    if sum(size for _, _, size, _, _ in stamps) < WORTH_REMEMBERING:
        return work()
    name = _name(what, stamps)
    if (digest := _recall(name)) is None:
        with _alone(name):
            if (digest := _recall(name)) is None:
                digest = work()
                if [stamp(file) for file in files] == stamps:
                    remember(what, stamps, digest)
    return digest


def remember(what: str, stamps: Sequence[Stamp], digest: str) -> None:
    """Keep a digest of files of these stamps for [`remembered`], unless they have only just been written."""
    if sum(size for _, _, size, _, _ in stamps) < WORTH_REMEMBERING:
        return
    if time.time() - max(max(modified, changed) for *_, modified, changed in stamps) / 1e9 < SETTLED:
        return
    name = _name(what, stamps)
    _recalled[name] = digest
    temporary = MEMORY / f".{name}.{os.getpid()}.{threading.get_ident()}"
    with suppress(OSError):  # a memory that cannot be written is none, and no more
        MEMORY.mkdir(parents=True, exist_ok=True)
        temporary.write_text(digest, encoding="utf-8")
        temporary.replace(MEMORY / name)


_recalled: dict[str, str] = {}  # also where there is no place to write to


def _name(what: str, stamps: Sequence[Stamp]) -> str:
    return hashlib.sha256(json.dumps([what, stamps]).encode()).hexdigest()


def _recall(name: str) -> str | None:
    if name not in _recalled:
        with suppress(OSError, UnicodeDecodeError):
            digest = (MEMORY / name).read_text(encoding="utf-8")
            if re.fullmatch("[0-9a-f]{64}", digest):  # else the machine went down while it was written
                _recalled[name] = digest
    return _recalled.get(name)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Inside, no other process makes the digest of this name, where files can be locked."""
    file = None
    with suppress(OSError, ImportError):  # without locks the digest is made twice, and no more
        import fcntl  # here: not on Windows

        MEMORY.mkdir(parents=True, exist_ok=True)
        file = (MEMORY / f"{name[:2]}.lock").open("ab")
        fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if file is not None:
            file.close()


def source_hash(source: str, revision: str | None = None) -> str:
    """
    What identifies a model, dataset or prompt file in a fingerprint: the content of a local path, else the Hub id with
    its commit.
    """
    if Path(source).exists():
        return content_hash(source)
    return f"{source}@{commit(source, revision)}"


def adapter_hash(source: str) -> str:
    """What identifies an adapter in a fingerprint: the content of its file, else its place on the Hub with the commit."""
    path = Path(source)
    if path.exists():
        return content_hash(path / ADAPTER if (path / ADAPTER).is_file() else path)
    return f"{source}@{commit('/'.join(source.split('/')[:2]))}"


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
