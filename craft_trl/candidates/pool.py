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

"""The pool of candidates: images with their scores in parquet shards, which several processes may fill together."""

import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..errors import UsageError, check_platform
from ..sources import Stamp, remember, sha256, stamp
from ..stages import fingerprint, write_atomically


Key = tuple[str, str, int]  # prompt, expanded prompt, seed: what an image is made from, under one pool's settings


class CandidatePool:
    """
    Images with their scores in append-only parquet shards.

    A row's key is what its image was made from, so a row is found again whatever group or variant number it has, and
    none is made twice. A shard is written under a temporary name, then renamed. Its name holds two hashes, of its rows
    without the images and of the whole file. Nothing is taken from a shard before it was compared with one of them; one
    that does not match its name is set aside, and its rows are made again.

    Several processes may fill one pool: each writes shards of its own. Those of one machine ask
    [`~CandidatePool.claim`] who works on what; tasks on many machines know it beforehand, and need no locks.

    Args:
        folder (`str` or `Path`):
            Where the shards lie.
        rewards (`Sequence[str]`):
            Names of the scores' columns.
        verify (`bool`, *optional*, defaults to `True`):
            Whether to find every damaged shard now. It takes reading all of the images, but of shards that were found
            whole before and have not changed since, see [`remembered`]. Otherwise keys and scores are read and compared
            with their hash, and a shard with images when one of its images is asked for.

    Attributes:
        scores (`dict[Key, np.ndarray]`):
            Scores of each image as the rewards gave them, float32, in the order of `rewards`.
        lower_is_better (`set[str]`):
            The rewards of which less is better. In a pool that does not say, of every reward more is better.
    """

    def __init__(self, folder: str | Path, rewards: Sequence[str], verify: bool = True):
        self.folder = Path(folder)
        self.rewards = list(rewards)
        self.scores: dict[Key, np.ndarray] = {}  # float32, in the order of `rewards`
        self.lower_is_better: set[str] = set()
        self.shard_of: dict[Key, Path] = {}
        self.damaged: list[Path] = []
        self._shards: set[Path] = set()  # read, or written here
        self._whole: set[Path] = set()  # those that match the hash of the whole file
        self.check_owner: Callable[[], None] = lambda: None  # called before a shard is written
        self._written: dict[Stamp, str] = {}  # with the hash of the whole file
        self._claims: BinaryIO | None = None
        self._read(verify)

    def __contains__(self, key: Key) -> bool:
        return key in self.scores

    def __len__(self) -> int:
        return len(self.scores)

    def refresh(self) -> list[Key]:
        """Take in the shards that other processes have written since, and return the keys of their rows."""
        return self._read(verify=False)

    def append(self, keys: Sequence[Key], images: Sequence[Image.Image], scores: dict[str, np.ndarray]) -> None:
        """Write one shard."""
        self.add(keys, scores, self.write(len(self), keys, images, scores))

    def write(
        self, number: int, keys: Sequence[Key], images: Sequence[Image.Image], scores: dict[str, np.ndarray]
    ) -> Path:
        """Write one shard, whose name begins with `number`, and leave it to [`~CandidatePool.add`] to take it in."""
        prompts, expanded_prompts, seeds = zip(*keys, strict=True)
        columns = {
            "prompt": pa.array(prompts, pa.string()),
            "expanded_prompt": pa.array(expanded_prompts, pa.string()),
            "seed": pa.array(seeds, pa.int64()),
            _IMAGE: pa.array([{"bytes": _png(image), "path": None} for image in images], _IMAGE_TYPE),
            "dtype": pa.array([image.info.get("dtype") for image in images], pa.string()),
            **{name: pa.array(scores[name], pa.float32()) for name in self.rewards},
        }
        return self.write_table(number, pa.table(columns))

    def write_table(self, number: int, table: pa.Table) -> Path:
        """As [`~CandidatePool.write`], of rows as a shard has them."""
        if self.lower_is_better:
            table = table.replace_schema_metadata({_LOWER_IS_BETTER: json.dumps(sorted(self.lower_is_better))})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue()
        rows = _digest_rows(table.drop_columns(_IMAGE))
        digest = hashlib.sha256(data).hexdigest()
        shard = self._place(f"shard-{number:08d}-{rows}-{digest[:16]}.parquet")
        self.check_owner()
        self._shards.add(shard)  # before it is there, so that `refresh` leaves it to `add`
        self._put(shard, data, digest)
        self._whole.add(shard)
        return shard

    def remember(self) -> None:
        """Note that what was written here is whole, so that nobody has to read it to find out."""
        for written, digest in self._written.items():
            remember("file", [written], digest)

    def orient(self, lower_is_better: set[str]) -> None:
        """Take note of which rewards less is better, before the first score by them is taken in."""
        if turned := self.lower_is_better - lower_is_better:
            raise UsageError(
                f"In {self.folder}, less of {min(turned)} is better, and now more of it is to be: was higher_is_better "
                "changed? Move the pool away, or choose another output_dir."
            )
        self.lower_is_better |= lower_is_better & set(self.rewards)

    @property
    def signs(self) -> np.ndarray:
        """`-1` for rewards of which less is better, else `1`, in the order of `rewards`."""
        return np.array([-1 if name in self.lower_is_better else 1 for name in self.rewards], dtype=np.float32)

    def quality(self, key: Key) -> np.ndarray:
        """Scores of an image, turned so that larger is better, in the order of `rewards`."""
        return self.scores[key] * self.signs

    def add(self, keys: Sequence[Key], scores: dict[str, np.ndarray], shard: Path) -> None:
        """Take in the rows of a shard."""
        values = np.array([scores[name] for name in self.rewards], dtype=np.float32)
        values = values.reshape(len(self.rewards), len(keys)).T  # also of a pool without rewards
        self.scores.update(zip(keys, values, strict=True))
        self.shard_of.update(dict.fromkeys(keys, shard))

    def images(self, keys: Iterable[Key]) -> Iterator[bytes]:
        """
        PNG bytes of rows, in the order of `keys`; fast when the keys of a shard come together, as after
        [`~CandidatePool.by_shard`].

        Raises a [`UsageError`] at the first image whose shard is damaged or gone.
        """
        shard, rows = None, {}
        for key in keys:
            if self.shard_of[key] != shard:
                shard = self.shard_of[key]
                table = self.read_shard(shard, [*_KEY, _IMAGE])
                rows = {k: image["bytes"] for k, image in zip(_keys(table), table[_IMAGE].to_pylist(), strict=True)}
            yield rows[key]

    def read_shard(self, shard: Path, columns: list[str] | None = None) -> pa.Table:
        """Columns of a shard, all if not said otherwise; a [`UsageError`] if it is damaged or gone."""
        table = self._read_whole(shard, columns)
        if table is None:
            raise UsageError(
                f"{shard} was damaged and is set aside as {shard.with_suffix('.damaged').name}: run the command that filled {self.folder} again, which makes "
                "its images again, then this one."
            )
        return table

    def by_shard(self, keys: Iterable[Key]) -> list[Key]:
        """Keys in an order in which no shard is read twice."""
        return sorted(keys, key=lambda key: self.shard_of[key].name)  # paths would be compared part by part

    def claim(self, key: Key) -> bool:
        """
        Take the work on a group, named by the key of its original, for this process, and say whether that succeeded.

        A claim is a byte of a file that the operating system locks for a process and frees when that process ends, in
        whatever way. Nothing is left over that a later run would have to tell from a living claim.
        """
        if self._claims is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._claims = (self.folder / CLAIMS).open("ab")
        # The byte's place is a hash, so that a claim means the same to a process with another list of groups.
        place = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
        return _lock(self._claims, 1, place)

    def release(self) -> None:
        """Give up all claims."""
        if self._claims is not None:
            self._claims.close()
            self._claims = None

    # What follows is where the shards lie: a folder of this machine, or, in `SharedPool`, one elsewhere.

    def _place(self, name: str) -> Path:
        return self.folder / name

    def _list(self) -> list[Path]:
        """The shards that were not read yet."""
        shards = sorted(set(self.folder.glob("shard-*.parquet")) - self._shards)
        for shard in filter(Path.is_dir, shards):
            self._set_aside(shard)
        return [shard for shard in shards if not shard.is_dir()]

    def _open(self, shard: Path) -> Path | BinaryIO:
        return shard

    def _bytes(self, shard: Path) -> bytes:
        return shard.read_bytes()

    def _put(self, shard: Path, data: bytes, digest: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(shard, data)
        except OSError as error:
            raise UsageError(
                f"Cannot write {shard}: {error.strerror}. What the pool holds is whole: make room, then run the same "
                "command again."
            ) from error
        self._written[stamp(shard)] = digest

    def _rename(self, shard: Path, aside: Path) -> None:
        shard.rename(aside)

    def _read(self, verify: bool) -> list[Key]:
        shards = self._list()
        if not shards:
            return []
        added = []
        # The hashing of one shard goes on while the next one is read from the disk.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            tables = threads.map(lambda shard: self._read_shard(shard, verify), shards)
            for shard, table in zip(shards, tables, strict=True):
                if table is None:
                    continue
                keys = _keys(table)
                self.add(keys, {name: table[name].to_pylist() for name in self.rewards}, shard)
                self.lower_is_better |= _lower_is_better(table) & set(self.rewards)
                self._shards.add(shard)
                added += keys
        return added

    def _read_shard(self, shard: Path, verify: bool) -> pa.Table | None:
        """The columns of a shard but the images; `None` if it is damaged, and now set aside."""
        with _gone_or_readable(shard):
            if verify and not _matches(sha256(shard), shard):
                self._set_aside(shard)
        # Where this fails for any reason, such as an older shard with one hash only, the whole file decides.
        with suppress(OSError, ValueError, pa.ArrowException), pq.ParquetFile(self._open(shard)) as file:
            table = file.read([name for name in file.schema_arrow.names if name != _IMAGE])
            if _digest_rows(table) in shard.stem.split("-")[2:-1]:
                return table
        return self._read_whole(shard, [*_KEY, *self.rewards])

    def _read_whole(self, shard: Path, columns: list[str] | None) -> pa.Table | None:
        """Columns of a shard that matches the hash of the whole file; `None` if it does not, and is now set aside."""
        with _gone_or_readable(shard):
            if shard in self._whole:
                return pq.read_table(self._open(shard), columns=columns)
            data = self._bytes(shard)
            if _matches(hashlib.sha256(data).hexdigest(), shard):
                self._whole.add(shard)
                return pq.read_table(io.BytesIO(data), columns=columns)
            self._set_aside(shard)
        return None

    def _set_aside(self, shard: Path) -> None:
        aside = shard.with_suffix(".damaged")
        self._rename(shard, aside)
        self.damaged.append(aside)

    def matrices(self, groups: Sequence) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """
        Scores of [`Group`]s as the arrays of [`crf`], turned so that larger is better: one of shape `(G, 1 + n)` per
        reward, NaN where there is no image, and the mask `generated` of the same shape.
        """
        nothing = np.full(len(self.rewards), np.nan, dtype=np.float32)
        table = np.array([[self.scores.get(key, nothing) for key in group.keys] for group in groups])  # (G, 1 + n, R)
        generated = np.array([[key in self.scores for key in group.keys] for group in groups])
        return {
            name: table[:, :, i] * sign for i, (name, sign) in enumerate(zip(self.rewards, self.signs, strict=True))
        }, generated


CLAIMS = "claims.lock"


def in_use(folder: Path) -> bool:
    """Whether another process has claimed work in a pool's folder."""
    path = Path(folder) / CLAIMS
    if not path.exists():
        return False
    with path.open("ab") as file:
        return not _lock(file)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing. Only where the pool is not [`in_use`]."""
    for path in Path(folder).glob(".shard-*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def _gone_or_readable(shard: Path) -> Iterator[None]:
    """Pass over a shard that another process has just set aside; say it in a line if it cannot be read."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"Cannot read {shard}: {error.strerror}.") from error


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same file."""
    with path.open("ab") as file:
        _lock(file, wait=True)
        yield  # closing the file frees it


def _lock(file: BinaryIO, length: int = 0, start: int = 0, wait: bool = False) -> bool:
    """Lock bytes of a file, all of them if `length` is 0, unless another process holds one of them, or once it does not."""
    check_platform()
    import fcntl  # not on every platform

    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise UsageError(
            f"{file.name} cannot be locked ({error.strerror}), so nothing keeps two processes from the same work: put "
            "output_dir on a file system with locks."
        ) from error
    return True


_KEY = ["prompt", "expanded_prompt", "seed"]
_IMAGE = "image"
_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # how `datasets.Image` stores an image


_LOWER_IS_BETTER = b"lower_is_better"  # of a shard's metadata; its value is a list of names as JSON


def _keys(table: pa.Table) -> list[Key]:
    return list(zip(*(table[name].to_pylist() for name in _KEY), strict=True))


def _lower_is_better(table: pa.Table) -> set[str]:
    return set(json.loads((table.schema.metadata or {}).get(_LOWER_IS_BETTER, "[]")))


def _matches(sha256: str, shard: Path) -> bool:
    return sha256[:16] == shard.stem.rpartition("-")[2]


def _digest_rows(table: pa.Table) -> str:
    # Of the values: how parquet writes them may change with its version.
    values = table.to_pydict()
    if lower := _lower_is_better(table):
        values[_LOWER_IS_BETTER.decode()] = sorted(lower)
    return fingerprint(values)[:16]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
