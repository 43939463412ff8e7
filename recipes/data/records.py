"""Pictures in one file: MXNet's record files, as the large sets of faces are published."""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, overload

import torch

from recipes.data.layout import BrokenData, lines
from recipes.data.pictures import Encoded, Pictures

_MAGIC = struct.pack("<I", 0xCED7230A)
_LENGTH_BITS = 29  # the three above say whether a record goes on
_WHOLE, _LAST = 0, 3
_WITH_LABELS = 1024  # bytes that a record's labels are among; most of a picture is behind them
_HEADER = struct.Struct("<IfQQ")  # how many labels follow, the label if none, two numbers


@dataclass(frozen=True)
class Records(Sequence[Encoded]):
    """The pictures of a record file, read when they are asked for.

    The file is opened each time: workers that were forked would share the place in it.
    """

    path: Path
    offsets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Encoded | Records:
        if isinstance(index, slice):
            return Records(self.path, self.offsets[index])
        with self.path.open("rb") as file:
            return _split(_record(file, self.offsets[index], self.path), self.path)[1]


def read_records(path: Path) -> Pictures:
    """The pictures of a record file with an index beside it, such as ``train.rec``.

    Where the first record says how many pictures there are, those behind, which list the pictures
    of each person, are left out.

    Raises:
        BrokenData: something else stands where the index says that a record begins.
    """
    index = [(int(key), int(offset)) for key, offset in lines(path.with_suffix(".idx"), 2)]
    offsets, labels = [], []
    end = float("inf")
    with path.open("rb", buffering=0) as file:  # which would read what is skipped here
        for key, offset in sorted(index):
            if key >= end:
                break
            own, _ = _split(_record(file, offset, path, most=_WITH_LABELS), path)
            if key == 0 and len(own) > 1:
                end = own[0]
                continue
            offsets.append(offset)
            labels.append(int(own[0]))
    if not labels:
        raise BrokenData(f"{path} must have pictures, got none")
    return Pictures(Records(path, tuple(offsets)), torch.tensor(labels))


def _record(file: IO[bytes], offset: int, path: Path, most: int = sys.maxsize) -> bytes:
    """The content of the record that begins at an offset, or its first bytes."""
    file.seek(offset)
    parts: list[bytes] = []
    while True:
        start = file.read(8)
        if len(start) < 8 or start[:4] != _MAGIC:
            raise BrokenData(f"{path} has no record at byte {offset}, where its index has one")
        kind, length = divmod(int.from_bytes(start[4:], "little"), 1 << _LENGTH_BITS)
        part = file.read(min(length, most))
        if len(part) < min(length, most):
            raise BrokenData(f"{path} ends within the record at byte {offset}")
        file.seek(-length % 4, 1)
        parts.append(part)
        if kind in (_WHOLE, _LAST) or length >= most:
            return _MAGIC.join(parts)  # cut where the content has the magic number itself


def _split(record: bytes, path: Path) -> tuple[tuple[float, ...], bytes]:
    """The labels of a record and its picture."""
    if len(record) < _HEADER.size:
        raise BrokenData(f"{path} has a record of {len(record)} bytes, too few for a label")
    count, label, _, _ = _HEADER.unpack_from(record)
    end = _HEADER.size + 4 * count
    if not count:
        return (label,), record[end:]
    if end > len(record):
        raise BrokenData(f"{path} has a record of {len(record)} bytes with {count} labels")
    return struct.unpack_from(f"<{count}f", record, _HEADER.size), record[end:]
