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

"""Pools that lie where many machines reach them: in a folder of a common file system, or anywhere behind fsspec."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fsspec.core import url_to_fs
from fsspec.implementations.dirfs import DirFileSystem

from ..errors import UsageError
from ..progress import progress_bar
from ..sources import first_line
from ..stages import RECORD, Stage, write_atomically
from .pool import CandidatePool
from .shares import Share


class SharedFolder:
    """
    A folder behind fsspec, such as `s3://bucket/run`, `hf://buckets/org/bucket/run` or a path.

    What goes wrong with it is one line, whatever the library behind it raises.

    Args:
        url (`str`):
            The folder.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        try:
            files, path = url_to_fs(self.url)
        except (ImportError, ValueError) as error:  # a package that is missing, or no such protocol
            raise UsageError(f"shared_dir {self.url}: {first_line(error)}.") from error
        self.files = DirFileSystem(path=path, fs=files)

    @property
    def path(self) -> Path | None:
        """The folder as a path of this machine, or `None` if it is elsewhere."""
        return Path(self.files.path) if "file" in _protocols(self.files.fs) else None

    def __truediv__(self, name: str) -> str:
        return f"{self.url}/{name}"

    @contextmanager
    def reached(self) -> Iterator[None]:
        """What a file system raises inside, as a [`UsageError`]; but [`FileNotFoundError`], which may be no fault."""
        try:
            yield
        except (UsageError, FileNotFoundError):
            raise
        except Exception as error:  # s3fs, gcsfs, huggingface_hub and the others have errors of their own each
            raise UsageError(
                f"{self.url} cannot be reached: {first_line(error)}. What it holds is whole: run the same command again "
                "to go on."
            ) from error

    def names(self, pattern: str) -> list[str]:
        """Names of the files that match a pattern."""
        with suppress(FileNotFoundError), self.reached():
            self.files.fs.invalidate_cache()  # other machines write there too
            return sorted(self.files.glob(pattern))
        return []

    def read(self, name: str) -> bytes | None:
        """Content of a file, or `None` if there is none."""
        with suppress(FileNotFoundError), self.reached():
            return self.files.cat_file(name)
        return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file. Object stores show it when it is whole."""
        with self.reached():
            try:
                if self.path is not None:
                    (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(self.path / name, data)
                else:
                    self.files.pipe_file(name, data)
            except FileNotFoundError as error:  # no such bucket
                raise UsageError(f"Cannot write to {self.url}: {first_line(error)}.") from error

    def check_writable(self) -> None:
        """Raise a [`UsageError`] unless files can be written here."""
        self.write(".writable", b"")
        self.remove(".writable")

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it."""
        with suppress(FileNotFoundError), self.reached():
            self.files.rm(name, recursive=True)


class SharedPool(CandidatePool):
    """
    A [`CandidatePool`] in a folder behind fsspec, which tasks on many machines fill. It knows no claims: it needs no locks.

    Args:
        folder ([`SharedFolder`]):
            Where the shards lie.
        rewards (`Sequence[str]`):
            Names of the scores' columns.
        share ([`Share`], *optional*):
            The share of a task.
    """

    def __init__(self, folder: SharedFolder, rewards: Sequence[str], share: Share | None = None):
        self.shared = folder
        super().__init__(folder.url, rewards, verify=False, share=share)
        self.folder = folder.url

    def claim(self, key):
        raise NotImplementedError(f"{self.shared.url} has no locks: give each process a task.")

    def _place(self, name: str) -> PurePosixPath:
        return PurePosixPath(name)

    def _list(self) -> list[PurePosixPath]:
        return sorted(set(map(PurePosixPath, self.shared.names("shard-*.parquet"))) - self._shards)

    def _open(self, shard: PurePosixPath) -> BinaryIO:
        with self.shared.reached():
            return self.shared.files.open(str(shard), "rb", block_size=1 << 16)  # of its megabytes few are read

    def _bytes(self, shard: PurePosixPath) -> bytes:
        with self.shared.reached():
            return self.shared.files.cat_file(str(shard))

    def _put(self, shard: PurePosixPath, data: bytes, digest: str) -> None:
        self.shared.write(str(shard), data)

    def _rename(self, shard: PurePosixPath, aside: PurePosixPath) -> None:
        with suppress(FileNotFoundError), self.shared.reached():  # another task may have been faster
            self.shared.files.mv(str(shard), str(aside))


def open_shared(url: str | Path, rewards: Sequence[str], share: Share | None = None) -> CandidatePool:
    """The pool in a folder that other machines reach too, whose shards are read when they are asked for."""
    folder = SharedFolder(str(url))
    if folder.path is None:
        return SharedPool(folder, rewards, share)
    return CandidatePool(folder.path, rewards, verify=False, share=share)


def fetch(url: str, folder: Path) -> int:
    """
    Copy the shards of a shared pool that a folder of this machine lacks, and return their number. A shard's name holds its
    hashes, so that nothing is copied twice, and what arrives damaged is found when it is read.
    """
    shared = SharedFolder(url)
    missing = [name for name in shared.names("shard-*.parquet") if not (folder / name).exists()]
    for name in progress_bar(missing, desc="Shards fetched", disable=not missing):
        if (data := shared.read(name)) is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / name, data)
            except OSError as error:
                raise UsageError(
                    f"Cannot write {folder / name}: {error.strerror}. Nothing is lost: make room, then run the same command "
                    "again."
                ) from error
    return len(missing)


def publish(folder: Path, url: str) -> None:
    """Copy the shards of a pool of this machine that a shared one lacks."""
    shared = SharedFolder(url)
    there = set(shared.names("shard-*.parquet"))
    missing = [path for path in sorted(folder.glob("shard-*.parquet")) if path.name not in there]
    for path in progress_bar(missing, desc="Shards shared", disable=not missing):
        shared.write(path.name, path.read_bytes())


def check_record(folder: SharedFolder, stage: Stage) -> bool:
    """Whether a folder is of a stage; a [`UsageError`] if it is of another."""
    record = folder.read(RECORD)
    difference = stage.difference_from(json.loads(record)) if record is not None else None
    if difference is not None:
        raise UsageError(f"{folder.url} was filled under other settings ({difference}): choose another folder.")
    return record is not None


def owner(folder: SharedFolder, fingerprint: str) -> Callable[[], None]:
    """What a task asks before it writes: whether the pool is still of the settings that it draws under."""

    def check() -> None:
        record = folder.read(RECORD)
        if record is None or json.loads(record)["fingerprint"] != fingerprint:
            raise UsageError(
                f"{folder.url} is not, or no longer, of the settings that this task draws under (its {RECORD} has another "
                "fingerprint): are the model, the rewards and craft_trl here those of the machine that started the tasks?"
            )

    return check


def _protocols(files) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
