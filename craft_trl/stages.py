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
How a stage knows its own work: each output folder holds a `stage.json` that says what it was made from.

The fingerprint of a stage is a hash of its settings and of the content of its inputs, not of their names or dates. A
folder with the same fingerprint is finished work (skip) or unfinished work (go on); a folder with another one is set
aside, never overwritten, and taken back when its settings return.
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from . import __version__
from .errors import UsageError
from .masking import mask_settings


RECORD = "stage.json"
TIMINGS = "timings.json"


class Stage:
    """
    One stage of a run, tied to its output folder.

    Args:
        name (`str`):
            Name of the stage, such as `"filter"`.
        folder (`str` or `Path`):
            Output folder. Nothing but this stage writes there.
        settings (`dict`):
            Every setting that changes the result; JSON values. What a path holds belongs in as its hash, see [`sources`].
        cache (`str`, *optional*):
            Folder in `folder` whose content is good under all settings. It stays when the rest is set aside.
    """

    def __init__(self, name: str, folder: str | Path, settings: dict[str, Any], cache: str | None = None):
        self.name = name
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))
        self.fingerprint = fingerprint({"stage": name, **self.settings})
        self.cache = cache

    @property
    def record(self) -> dict | None:
        """Content of `stage.json`, or `None` where there is none."""
        return read_record(self.folder)

    @property
    def finished(self) -> bool:
        record = self.record
        return record is not None and record["fingerprint"] == self.fingerprint and record["finished"]

    def difference(self) -> str | None:
        """
        What keeps the folder from being this stage's work: `None` if nothing does (or it is empty), else the settings
        that differ, in one line.
        """
        record = self.record
        if record is None:
            foreign = self.folder.exists() and any(self.folder.iterdir())
            return "it holds files that no stage made" if foreign else None
        return self.difference_from(record)

    def difference_from(self, record: dict) -> str | None:
        """What keeps a record from being this stage's, in one line; `None` if nothing does."""
        if record["fingerprint"] == self.fingerprint:
            return None
        if record["stage"] != self.name:
            return f"it was made by the stage {record['stage']!r}"
        old, new = _flatten(record["settings"]), _flatten(self.settings)
        changed = [key for key in sorted({**old, **new}) if old.get(key) != new.get(key)]
        old, new = ({key: mask_settings(value, key) for key, value in part.items()} for part in (old, new))
        return ", ".join(f"{key} was {_short(old.get(key))}, is now {_short(new.get(key))}" for key in changed)

    def begin(self) -> str | None:
        """
        Make the folder this stage's own and return what was said about it, for the user's eyes.

        Work of other settings is moved to `set_aside/` beside the folder, and work of these settings that was set
        aside before is moved back. A folder that no stage made is never touched.
        """
        check_writable(self.folder)
        message = None
        difference = self.difference()
        if difference is not None:
            if self.record is None:
                raise UsageError(f"{self.folder} is not empty and no stage made it: choose another output_dir.")
            aside = self._aside(self.record)
            aside.parent.mkdir(exist_ok=True)
            if aside.exists():  # the same work twice: the copy set aside earlier is redundant
                shutil.rmtree(aside)
            self.folder.rename(aside)
            message = f"{self.folder} was made under other settings ({difference}): set aside as {aside}."
        mine = self._aside({"fingerprint": self.fingerprint})
        if self.record is None and mine.exists():
            mine.rename(self.folder)
            message = f"{self.folder} with these settings was set aside before: taken back."
        if self.record is None:
            # The folder appears with its record in it: killed in between, it would belong to no stage.
            new = self.folder.with_name(f".{self.folder.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            self._write(new, finished=False, summary={})
            new.rename(self.folder)
        if difference is not None and self.cache is not None:
            there, here = aside / self.cache, self.folder / self.cache
            if there.is_dir() and not here.exists():
                there.rename(here)
        return message

    def finish(self, **summary: Any) -> None:
        """Mark the work as finished, with what is worth telling about it."""
        self._write(self.folder, finished=True, summary=summary)

    def content(self, finished: bool = False, summary: dict | None = None) -> str:
        """What `stage.json` says of this stage."""
        record = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "finished": finished,
            "summary": summary or {},
            "settings": self.settings,
            "craft_trl_version": __version__,
        }
        return json.dumps(record, indent=2) + "\n"

    def _write(self, folder: Path, finished: bool, summary: dict) -> None:
        write_atomically(folder / RECORD, self.content(finished, summary))

    def _aside(self, record: dict) -> Path:
        return self.folder.parent / "set_aside" / f"{self.folder.name}-{record['fingerprint'][:8]}"


def read_record(folder: str | Path) -> dict | None:
    """Content of a folder's `stage.json`, or `None` where there is none; a [`UsageError`] if it is damaged."""
    path = Path(folder) / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = all(isinstance(record[key], kind) for key, kind in KEYS.items())
    except (OSError, ValueError, LookupError, TypeError):
        whole = False
    if not whole:
        raise UsageError(
            f"{path} is damaged, the record of what {folder} was made from: put it back from a copy, or move {folder} away "
            "to make it again."
        )
    return record


KEYS = {"stage": str, "fingerprint": str, "finished": bool, "summary": dict, "settings": dict}


def read_timings(folder: str | Path) -> dict[str, dict]:
    """By stage the fingerprint and the seconds in a run's `timings.json`; nothing where that is missing or damaged."""
    try:
        timings = json.loads((Path(folder) / TIMINGS).read_text(encoding="utf-8"))
        return {name: entry for name, entry in timings.items() if float(entry["seconds"]) >= 0}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


class stopwatch:
    """
    Context manager that adds the seconds spent inside to `timings.json` beside the stage's folder, also when it ends in
    an error. They are kept out of `stage.json` so that equal work makes equal files.

    Args:
        stage ([`Stage`]):
            The stage.
        write (`bool`, *optional*, defaults to `True`):
            Whether this process is the one that writes.
    """

    def __init__(self, stage: Stage, write: bool = True):
        self.stage, self.write = stage, write
        self.seconds = 0.0

    def __enter__(self) -> "stopwatch":
        self.start = time.monotonic()
        return self

    def __exit__(self, *error) -> None:
        self.seconds = time.monotonic() - self.start
        if not self.write:
            return
        path = self.stage.folder.parent / TIMINGS
        timings = read_timings(path.parent)
        before = timings.get(self.stage.name, {})
        spent = before["seconds"] if before.get("fingerprint") == self.stage.fingerprint else 0.0
        timings[self.stage.name] = {
            "fingerprint": self.stage.fingerprint,
            "seconds": round(spent + self.seconds, 2),
        }
        try:
            write_atomically(path, json.dumps(timings, indent=2) + "\n")
        except OSError:
            if error[0] is None:
                raise  # else the error that is on its way, such as a full disk, says what matters


def fingerprint(value: Any) -> str:
    """Hex digest of a JSON value, the same on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it would stand in the way of what comes next
        raise


def move_into(temporary: Path, folder: Path) -> None:
    """Move what is in a folder into another one, where a run that was killed while it did so has left some of it."""
    for path in temporary.iterdir():
        there = folder / path.name
        if there.is_dir():
            shutil.rmtree(there)
        path.replace(there)
    temporary.rmdir()


def check_writable(folder: Path, needed_bytes: int = 0) -> None:
    """Raise a [`UsageError`] unless `folder` can be made and written to and its disk has the bytes that are needed."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise UsageError(f"Cannot write to {folder}: {existing} is a file.")
    probe = existing / f".craft_trl.{os.getpid()}.tmp"
    try:
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        raise UsageError(f"Cannot write to {folder}: {error.strerror} ({existing}).") from error
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise UsageError(
            f"{folder} needs about {needed_bytes / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: free some, or "
            "choose another output_dir."
        )


def _flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {prefix: settings}
    return {k: v for key, value in settings.items() for k, v in _flatten(value, f"{prefix}.{key}".strip(".")).items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]}..."
