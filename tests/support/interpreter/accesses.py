"""What the programs of one launch do to memory, and which of it no launch may do.

Every tensor that a launch is given gets addresses of its own, far from those of all others, so that
a pointer tells which tensor it was made from, wherever it points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.support.interpreter.poison import is_poison

BEYOND = "reaches beyond"
UNWRITTEN = "loads memory that nobody wrote of"
STORED_TWICE = "has two programs store to one place of"
EXCHANGED = "has one program load what another stores to"
HALF_ATOMIC = "has one program load or store what another changes atomically of"

# Of an address, what is below the number of its tensor; tensors begin in the middle.
_WINDOW_BITS = 44
_MIDDLE = 1 << (_WINDOW_BITS - 1)
_PAGE = 4096  # descriptors ask for addresses that are multiples of 16
# In place of a program's number.
_NOBODY, _SEVERAL = -1, -2


class Fault(NamedTuple):
    """Something that no launch may do."""

    kernel: str
    what: str
    argument: str  # of the kernel; several names where it was given one tensor several times

    def __str__(self) -> str:
        return f"{self.kernel} {self.what} {self.argument}"


class _Window(NamedTuple):
    """A tensor as the kernel sees it, and as it is."""

    argument: str
    start: int  # of the addresses that the kernel sees
    address: int
    size: int  # bytes
    itemsize: int
    elements: np.ndarray | None  # which of those between are the tensor's; None for all of them


class Located(NamedTuple):
    """Where an access goes."""

    addresses: np.ndarray  # as they are, of the shape of the pointers
    within: np.ndarray  # the mask without what lies outside of all tensors
    numbers: np.ndarray  # of the tensor of each address within
    places: np.ndarray  # of each address within, one or several


class Accesses:
    """Who touched which place of the tensors of a launch.

    A program of a kernel that ``may_take_tickets`` may load what others stored, once it has taken
    its ticket: changed something atomically after which the other one, which had stored before it
    did so too, was done. That is how the last program to finish reads what all of them left.
    """

    def __init__(
        self,
        kernel: str,
        programs: int,
        arguments: Sequence[tuple[str, Any]],
        may_take_tickets: bool,
    ) -> None:
        self.faults: Counter[Fault] = Counter()  # and how many places each of them concerned
        self._kernel = kernel
        self._names: dict[Any, list[str]] = {}
        for name, tensor in _tensors(arguments):
            self._names.setdefault(_identity(tensor), []).append(name)
        self._windows = [_Window("a tensor of no one", 0, 0, 0, 1, None)]
        self._may_take_tickets = may_take_tickets
        self._program = _NOBODY
        self._has_ticket = np.zeros(programs, bool)
        self._memory: _Memory | None = None
        self._with_gaps: list[tuple[int, int, np.ndarray]] = []

    def window_of(self, tensor: Tensor) -> int:
        """The address that the kernel is to see in place of the tensor's own."""
        lengths = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in lengths) if tensor.numel() else 0
        elements = None
        if extent > tensor.numel():
            elements = np.zeros(extent, bool)
            torch.from_numpy(elements).as_strided(tensor.shape, tensor.stride()).fill_(True)
        self._windows.append(
            _Window(
                " or ".join(self._names.get(_identity(tensor), ["?"])),
                (len(self._windows) << _WINDOW_BITS) + _MIDDLE + tensor.data_ptr() % _PAGE,
                tensor.data_ptr(),
                extent * tensor.element_size(),
                tensor.element_size(),
                elements,
            )
        )
        return self._windows[-1].start

    def begin(self, program: int) -> None:
        """From here on it is this program that runs."""
        self._program = program

    def load(self, pointers: np.ndarray, mask: np.ndarray, itemsize: int) -> Located:
        """Note a load, and say where it is to load from."""
        located, memory = self._locate(pointers, mask, itemsize)
        stored = memory.stored[located.places]
        others = self._others(stored)
        if self._may_take_tickets and self._has_ticket[self._program]:
            others &= ~self._has_ticket[stored] | memory.stored_after_ticket[located.places]
        self._report(EXCHANGED, located, others)
        self._report(HALF_ATOMIC, located, self._others(memory.atomic[located.places]))
        self._join(memory.loaded, located.places)
        return located

    def loaded(self, located: Located, values: np.ndarray) -> None:
        """Note what was loaded."""
        self._report(UNWRITTEN, located, is_poison(values[located.within]))

    def store(self, pointers: np.ndarray, mask: np.ndarray, itemsize: int) -> Located:
        """Note a store, and say where it is to store to."""
        located, memory = self._locate(pointers, mask, itemsize)
        self._report(STORED_TWICE, located, self._others(memory.stored[located.places]))
        self._report(EXCHANGED, located, self._others(memory.loaded[located.places]))
        self._report(HALF_ATOMIC, located, self._others(memory.atomic[located.places]))
        memory.stored[located.places] = self._program
        memory.stored_after_ticket[located.places] = self._has_ticket[self._program]
        return located

    def change_atomically(self, pointers: np.ndarray, mask: np.ndarray, itemsize: int) -> Located:
        """Note an atomic operation, and say where it is to happen."""
        located, memory = self._locate(pointers, mask, itemsize)
        stored, loaded = memory.stored[located.places], memory.loaded[located.places]
        self._report(HALF_ATOMIC, located, self._others(stored) | self._others(loaded))
        self._join(memory.atomic, located.places)
        self._has_ticket[self._program] = True
        return located

    def _locate(
        self, pointers: np.ndarray, mask: np.ndarray, itemsize: int
    ) -> tuple[Located, _Memory]:
        if self._memory is None:  # the first access comes after the last conversion
            self._memory = _Memory(self._windows)
            self._with_gaps = [
                (number, window.itemsize, window.elements)
                for number, window in enumerate(self._windows)
                if window.elements is not None
            ]
        memory = self._memory
        within = np.array(np.broadcast_to(mask, pointers.shape), bool)
        wanted = pointers[within].astype(np.int64)
        numbers = wanted >> _WINDOW_BITS
        numbers[(numbers < 0) | (numbers >= len(self._windows))] = 0
        offsets = wanted - memory.starts[numbers]
        inside = (offsets >= 0) & (offsets + itemsize <= memory.sizes[numbers])
        for number, size, elements in self._with_gaps:
            chosen = inside & (numbers == number)
            inside[chosen] = elements[offsets[chosen] // size]
        if not inside.all():
            self._report_at(BEYOND, numbers, ~inside)
            within[within] = inside
            offsets, numbers = offsets[inside], numbers[inside]
        addresses = np.zeros(pointers.shape, np.uint64)
        addresses[within] = memory.addresses[numbers] + offsets
        places = (memory.first_bytes[numbers] + offsets) // memory.unit
        if itemsize > memory.unit:
            places = (places[:, None] + np.arange(itemsize // memory.unit)).ravel()
        return Located(addresses, within, numbers, places), memory

    def _others(self, programs: np.ndarray) -> np.ndarray:
        """Where programs are another one than that which runs."""
        return (programs != _NOBODY) & (programs != self._program)

    def _join(self, programs: np.ndarray, places: np.ndarray) -> None:
        programs[places] = np.where(self._others(programs[places]), _SEVERAL, self._program)

    def _report(self, what: str, located: Located, wrong: np.ndarray) -> None:
        if wrong.any():
            # A value may lie in several places.
            numbers = np.repeat(located.numbers, len(wrong) // len(located.numbers))
            self._report_at(what, numbers, wrong)

    def _report_at(self, what: str, numbers: np.ndarray, wrong: np.ndarray) -> None:
        for number, count in zip(*np.unique(numbers[wrong], return_counts=True), strict=True):
            fault = Fault(self._kernel, what, self._windows[number].argument)
            self.faults[fault] += int(count)


class _Memory:
    """All tensors of a launch, and who touched which of their places.

    A place has as many bytes as an element of the smallest dtype. Tensors may share memory.
    """

    def __init__(self, windows: Sequence[_Window]) -> None:
        self.starts, self.addresses, self.sizes = (
            np.array([getattr(window, name) for window in windows], np.int64)
            for name in ("start", "address", "size")
        )
        self.unit = min(window.itemsize for window in windows[1:])
        # Memory that tensors share, and none between, is numbered as one piece.
        self.first_bytes = np.zeros(len(windows), np.int64)
        first = end = length = 0
        for number in np.argsort(self.addresses, kind="stable"):
            address, size = int(self.addresses[number]), int(self.sizes[number])
            if address >= end:
                length += end - first
                first = end = address
            end = max(end, address + size)
            self.first_bytes[number] = length + address - first
        places = (length + end - first) // self.unit
        self.stored, self.loaded, self.atomic = (
            np.full(places, _NOBODY, np.int32) for _ in range(3)
        )
        self.stored_after_ticket = np.zeros(places, bool)


def _tensors(arguments: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for name, value in arguments:
        value = getattr(value, "base", value) if not isinstance(value, Tensor) else value
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from _tensors([(f"{name}[{index}]", each) for index, each in enumerate(value)])


def _identity(tensor: Tensor) -> Any:
    """What is left of a tensor in the one that the interpreter makes of it."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
