"""Verification sets as ``.bin`` files: pickles of encoded pictures and of which pairs are the same.

Unpickling runs what a file says. Here nothing that is imported can be called: the few names that
such files use stand for classes of this module, which keep bytes and check sizes; numpy is never
asked, and every other name is refused. Files of Python 2 and 3, of any protocol.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch

from recipes.data.layout import BrokenData
from recipes.data.pictures import Encoded, Pictures, Verification


def read_pairs(path: Path) -> Verification:
    """The set in a ``.bin`` file, called as the file is.

    Raises:
        BrokenData: the file is no pickle of (pictures, whether pairs are the same), or names
            something that such files have no need of. Nothing of the file was run.
    """
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        pictures, same = content
        files: list[Encoded] = [_picture(each) for each in _listed(pictures)]
        flags = [_flag(each) for each in _listed(same)]
    except Exception as error:  # a broken pickle raises anything
        raise BrokenData(
            f"{path} must be a pickle of a list of encoded pictures and a list of booleans, and "
            f"nothing else; it is not read, since {error or type(error).__name__}"
        ) from error
    if len(files) != 2 * len(flags) or not files:
        raise BrokenData(
            f"{path} must have two pictures for each pair, got {len(files)} pictures and "
            f"{len(flags)} pairs"
        )
    labels = torch.zeros(len(files), dtype=torch.int64)  # persons have no numbers
    return Verification(path.stem, Pictures(files, labels), torch.tensor(flags))


class _StandIn:
    """What a pickle may make in place of numpy's objects; it cannot be given attributes."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"it sets the state of a {type(self).__name__}")


class _Dtype(_StandIn):
    """numpy.dtype, of bytes or booleans."""

    __slots__ = ("kind",)

    def __init__(self, name: object) -> None:
        text = name.decode("ascii") if isinstance(name, bytes) else name
        if text not in ("u1", "b1", "|u1", "|b1"):
            raise pickle.UnpicklingError(f"it has an array of dtype {text!r}")
        self.kind = str(text)[-2]

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which bytes do not have."""


class _Array(_StandIn):
    """numpy.ndarray of one dimension."""

    __slots__ = ("data", "kind")

    def __init__(self) -> None:
        self.data, self.kind = b"", "u"

    def fill(self, shape: object, dtype: object, data: object) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
            raise pickle.UnpicklingError("it has an array of something else than bytes")
        if not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
            raise pickle.UnpicklingError(f"it has an array of shape {shape!r}")
        if math.prod(shape) != len(data) or len(shape) > 1:
            raise pickle.UnpicklingError(
                f"it has an array of shape {shape} with {len(data)} bytes; wanted one dimension"
            )
        self.data, self.kind = bytes(data), dtype.kind

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("it has an array without shape, dtype and data")
        _, shape, dtype, _, data = state
        self.fill(shape, dtype, data)


class _Name(_StandIn):
    """A name that is no more than itself: an argument."""

    __slots__ = ()


class _MakeDtype(_StandIn):
    __slots__ = ()

    def __call__(self, name: object, *flags: object) -> _Dtype:
        return _Dtype(name)


class _MakeArray(_StandIn):
    """``_reconstruct``, whose arguments the state repeats."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> _Array:
        return _Array()


class _MakeArrayOfBuffer(_StandIn):
    """``_frombuffer`` of protocol 5."""

    __slots__ = ()

    def __call__(self, data: object, dtype: object, shape: object, order: object) -> _Array:
        array = _Array()
        array.fill(shape, dtype, data)
        return array


class _MakeScalar(_StandIn):
    """``scalar``, a boolean."""

    __slots__ = ()

    def __call__(self, dtype: object, data: object) -> bool:
        array = _Array()
        array.fill((), dtype, data)
        return _flag(array)


class _Encode(_StandIn):
    """``_codecs.encode``, by which Python 3 writes bytes for Python 2."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"it encodes {type(text).__name__} as {encoding!r}")
        return text.encode("latin1")


_KNOWN: dict[tuple[str, str], _StandIn] = {
    ("_codecs", "encode"): _Encode(),
    ("numpy", "dtype"): _MakeDtype(),
    ("numpy", "ndarray"): _Name(),
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _MakeArray()
    _KNOWN[f"{_core}.multiarray", "scalar"] = _MakeScalar()
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _MakeArrayOfBuffer()


class _Unpickler(pickle.Unpickler):
    """Knows the names above and no others."""

    def find_class(self, module: str, name: str) -> _StandIn:
        known = _KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no such file needs")
        return known


def _listed(values: Any) -> list[Any] | tuple[Any, ...]:
    """A list, or the entries of an array of booleans."""
    if isinstance(values, _Array) and values.kind == "b":
        return [byte != 0 for byte in values.data]
    if not isinstance(values, (list, tuple)):
        raise pickle.UnpicklingError(f"it has a {type(values).__name__} where a list should be")
    return values


def _picture(value: object) -> bytes:
    if isinstance(value, _Array) and value.kind == "u":
        return value.data
    if not isinstance(value, bytes):
        raise pickle.UnpicklingError(f"it has a {type(value).__name__} where a picture should be")
    return value


def _flag(value: object) -> bool:
    if isinstance(value, _Array) and value.kind == "b" and len(value.data) == 1:
        return value.data != b"\0"
    if type(value) is int and value in (0, 1):
        return value == 1
    if not isinstance(value, bool):
        raise pickle.UnpicklingError(f"it has a {type(value).__name__} where a boolean should be")
    return value
