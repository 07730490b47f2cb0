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


"""Encoded images and prompts on the disk, row by row: those of a large dataset are more than the memory holds."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch


# As safetensors names them.
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


class Row(NamedTuple):
    """Where a row of a tensor lies in a file, and what it is."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


# Rows by the name of the tensor that they are of.
Index = dict[str, list[Row]]


class RowWriter:
    """
    A file of bytes to which rows of tensors are added as they come. A context manager.

    Args:
        path (`Path`):
            The file.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.index = path.open("wb"), Index()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *raised: object) -> None:
        self.file.close()

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add a row to the tensor of this name."""
        self.index.setdefault(name, []).append(Row(self.file.tell(), value.dtype, tuple(value.shape)))
        self.file.write(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def join(parts: Sequence[Path], indices: Sequence[Index], path: Path, metadata: Mapping[str, str]) -> None:
    """
    Make a safetensors file of rows that several processes have written. Texts of different lengths, rows of shape `(T, ...)` of
    tensors named `prompt/...`, are filled up with zeros at their end to the longest of all.

    Args:
        parts (`Sequence[Path]`):
            Files of the rows, in order.
        indices (`Sequence[Index]`):
            What is in them.
        path (`Path`):
            File to write.
        metadata (`Mapping[str, str]`):
            Its metadata.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(part.open("rb")) for part in parts]
        rows: dict[str, list[tuple]] = {}
        for file, index in zip(files, indices, strict=True):
            for name, held in index.items():
                rows.setdefault(name, []).extend((file, row) for row in held)
        longest: dict[str, Row] = {}
        # As safetensors orders them, by which each begins where its numbers may.
        for name in sorted(rows, key=lambda name: (-rows[name][0][1].dtype.itemsize, name)):
            longest[name] = max((row for _, row in rows[name]), key=lambda row: row.shape[:1])
            fixed = 1 if name.startswith("prompt/") else 0
            if others := {row.shape for _, row in rows[name] if row.shape[fixed:] != longest[name].shape[fixed:]}:
                raise ValueError(f"{name} is of shape {longest[name].shape} in one row and {min(others)} in another.")
        header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items(), reverse=True))}
        end = 0
        for name, row in longest.items():
            start, end = end, end + len(rows[name]) * row.nbytes
            shape = [len(rows[name]), *row.shape]
            header[name] = {"dtype": DTYPES[row.dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        with path.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name, row in longest.items():
                for file, held in rows[name]:
                    file.seek(held.offset)
                    out.write(file.read(held.nbytes).ljust(row.nbytes, b"\0"))
