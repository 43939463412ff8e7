"""``.bin`` files are read in every form that they come in, and never run."""

from __future__ import annotations

import copyreg
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tests.recipes.programs  # noqa: F401  # isort: skip

import numpy as np

from recipes.data.layout import BrokenData
from recipes.data.pair_files import read_pairs
from tests.recipes.drawn import encoded

PICTURES = [encoded(1, 0), encoded(1, 1), encoded(2, 0), encoded(3, 0)]
SAME = [True, False]


def written(folder: Path, content: bytes) -> Path:
    path = folder / "lfw.bin"
    path.write_bytes(content)
    return path


def arrays(values: list[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(each, np.uint8) for each in values]


FORMS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: (PICTURES, SAME),
    "tuples": lambda: (tuple(PICTURES), tuple(SAME)),
    "a list of both": lambda: [PICTURES, SAME],
    "arrays": lambda: (arrays(PICTURES), SAME),
    "numpy booleans": lambda: (PICTURES, list(np.array(SAME))),
    "an array of booleans": lambda: (PICTURES, np.array(SAME)),
    "integers": lambda: (PICTURES, [1, 0]),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", FORMS)
def test_file_of_any_protocol_is_read(form: str, protocol: int, tmp_path: Path) -> None:
    task = read_pairs(written(tmp_path, pickle.dumps(FORMS[form](), protocol)))
    assert task.name == "lfw"
    assert task.pictures.files == PICTURES
    assert task.same.tolist() == SAME
    assert task.pictures.open(3).size == (32, 32)


def python2_string(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING


def python2_dtype(name: bytes) -> bytes:
    """As numpy of Python 2 writes ``dtype(name)``, in protocol 2."""
    arguments = python2_string(name) + b"K\0K\x01\x87"
    state = b"(K\x03" + python2_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t"
    return b"cnumpy\ndtype\n" + arguments + b"R" + state + b"b"


def python2_scalar(value: bool) -> bytes:
    data = python2_string(bytes([value]))
    return b"cnumpy.core.multiarray\nscalar\n" + python2_dtype(b"b1") + data + b"\x86R"


def python2_array(value: bytes) -> bytes:
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + python2_string(b"b")
    size = b"J" + struct.pack("<i", len(value)) + b"\x85"
    state = b"(K\x01" + size + python2_dtype(b"u1") + b"\x89" + python2_string(value) + b"t"
    return made + b"\x87R" + state + b"b"


@pytest.mark.parametrize("picture", [python2_string, python2_array], ids=["strings", "arrays"])
@pytest.mark.parametrize("flag", [python2_scalar, lambda value: b"\x88" if value else b"\x89"])
def test_file_of_python_2_is_read(
    picture: Callable[[bytes], bytes], flag: Callable[[bool], bytes], tmp_path: Path
) -> None:
    pictures = b"](" + b"".join(map(picture, PICTURES)) + b"e"
    same = b"](" + b"".join(map(flag, SAME)) + b"e"
    task = read_pairs(written(tmp_path, b"\x80\x02" + pictures + same + b"\x86."))
    assert task.pictures.files == PICTURES
    assert task.same.tolist() == SAME


class Calls:
    """Pickled, a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def raw(text: str) -> Callable[[str], bytes]:
    return lambda target: text.format(target=target).encode()


def dumped(build: Callable[[str], Any]) -> Callable[[str], bytes]:
    return lambda target: pickle.dumps(build(target), 2)


# Each would make the folder ``target``, or have numpy or Python do what no such file needs.
HOSTILE: dict[str, Callable[[str], bytes]] = {
    "os.mkdir": dumped(lambda target: Calls(os.mkdir, target)),
    "os.system": dumped(lambda target: Calls(os.system, f"mkdir {target}")),
    "eval": dumped(lambda target: Calls(eval, f"__import__('os').mkdir({target!r})")),
    "exec": dumped(lambda target: Calls(exec, f"import os; os.mkdir({target!r})")),
    "among the pictures": dumped(lambda target: ([*PICTURES, Calls(os.mkdir, target)], SAME)),
    "among the flags": dumped(lambda target: (PICTURES, [True, Calls(os.mkdir, target)])),
    "nested": dumped(lambda target: (PICTURES, [[[Calls(os.mkdir, target)]]])),
    "key of a dict": dumped(lambda target: {"same": Calls(os.mkdir, target)}),
    "copyreg": dumped(lambda target: Calls(copyreg._reconstructor, object, object, None)),
    "getattr": dumped(lambda target: Calls(getattr, target, "join")),
    "dotted name": lambda target: b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    "inst": raw("(S'{target}'\nios\nmkdir\n."),
    "obj": raw("(cos\nmkdir\nS'{target}'\no."),
    "nt and posix": raw("cposix\nsystem\n(S'mkdir {target}'\ntR."),
    "Python 2's builtins": raw("c__builtin__\neval\n(S'1'\ntR."),
    "numpy's loader": raw("cnumpy\nload\n(S'{target}'\ntR."),
    "numpy's test runner": raw("cnumpy.testing._private.utils\nrunstring\n(S'1'\n}}tR."),
    "persistent id": raw("P{target}\n."),
    "extension code": lambda target: b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_and_runs_nothing(name: str, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    path = written(tmp_path, HOSTILE[name](str(target)))
    named = "it names [a-z_.]+, which|persistent id|extension code"
    with pytest.raises(BrokenData, match=f"{re.escape(str(path))} must be a pickle of .*({named})"):
        read_pairs(path)
    assert not target.exists()


def reconstructed(shape: bytes, dtype: bytes, data: bytes) -> bytes:
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R"
    return b"\x80\x03" + made + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb."


SCRIPT = b"cnumpy\ndtype\n"
BYTES = SCRIPT + b"X\x02\0\0\0u1\x85R"
# No such object may be given a state, an item or an attribute, nor sizes that its data do not have.
MALFORMED: dict[str, bytes] = {
    "more than there is": reconstructed(b"J\xff\xff\xff\x7f\x85", BYTES, b"C\x02ab"),
    "negative sizes": reconstructed(b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86", BYTES, b"C\x02ab"),
    "two dimensions": reconstructed(b"K\x01K\x02\x86", BYTES, b"C\x02ab"),
    "objects": reconstructed(b"K\x02\x85", SCRIPT + b"X\x01\0\0\0O\x85R", b"]"),
    "no dtype": reconstructed(b"K\x02\x85", b"N", b"C\x02ab"),
    "state of a function": b"\x80\x03cnumpy.core.multiarray\nscalar\n}b.",
    "attribute of a function": b"\x80\x03c_codecs\nencode\nN}X\x08\0\0\0__code__Ns\x86b.",
    "class of a name": b"\x80\x03cnumpy\nndarray\n)\x81.",
    "item of a name": b"\x80\x03cnumpy\nndarray\nK\0K\0s.",
    "bytes of a number": b"\x80\x03cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "another encoding": b"\x80\x03c_codecs\nencode\nX\x01\0\0\0aX\x03\0\0\0rot\x86R.",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_object_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenData, match="must be a pickle"):
        read_pairs(written(tmp_path, MALFORMED[name]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a pickle"),
        (b"no pickle", "must be a pickle"),
        (pickle.dumps((PICTURES, SAME))[:-9], "must be a pickle"),
        (pickle.dumps(PICTURES), "must be a pickle"),
        (pickle.dumps((PICTURES, [True, 7])), "it has a int where a boolean should be"),
        (pickle.dumps((PICTURES, [True, "x"])), "it has a str where a boolean should be"),
        (pickle.dumps(([*PICTURES[:3], "x"], SAME)), "it has a str where a picture should be"),
        (pickle.dumps(("x", SAME)), "it has a str where a list should be"),
        (pickle.dumps((PICTURES, [True])), "got 4 pictures and 1 pairs"),
        (pickle.dumps(([], [])), "got 0 pictures and 0 pairs"),
    ],
    ids=[
        *("empty", "text", "cut off", "one list", "number", "word", "no picture", "no list"),
        *("odd", "nothing"),
    ],
)
def test_file_with_something_else_says_what(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenData, match=message):
        read_pairs(written(tmp_path, content))
