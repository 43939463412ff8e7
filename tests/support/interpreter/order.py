"""Launches whose programs run in any order, over memory that nobody has written."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from circle_kernels.backends.triton.launch import Launch, observe_launches
from tests.support.interpreter.accesses import Accesses
from tests.support.interpreter.poison import POISON, ZERO, empties_filled_with

# Kernels whose last program to finish loads what the others stored, and how it knows that it is the
# last: accesses.Accesses. None of the others may.
TAKE_TICKETS: frozenset[str] = frozenset()


@dataclass
class Watched:
    """What launches did."""

    faults: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)  # of each kernel


def in_any_order(
    run: Callable[[], Sequence[Tensor]], take_tickets: frozenset[str] = TAKE_TICKETS
) -> Watched:
    """What the launches of a run are and do wrong.

    ``run()`` gives tensors, the same bits whenever it is asked. That they stay the same in other
    orders of programs, over other memory, is part of what is to be right.
    """
    watched = Watched()
    expected: Sequence[Tensor] | None = None
    for name, order in _ORDERS.items():
        # Zeros are what careless kernels count on.
        filled = empties_filled_with(ZERO if expected is None else POISON)
        with filled, _watching(watched, order, take_tickets):
            results = run()
        for place, (ours, theirs) in enumerate(zip(results, expected or results, strict=True)):
            if not _same_bits(ours, theirs):
                watched.faults[f"result {place} is another one in {name} order"] += 1
        expected = expected or results
    return watched


_ORDERS: dict[str, Callable[[int], list[int]]] = {
    "plain": lambda programs: list(range(programs)),
    "reversed": lambda programs: list(range(programs))[::-1],
    "random": lambda programs: random.Random(programs).sample(range(programs), programs),
}


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(*(each.detach().reshape(-1).view(torch.uint8) for each in (one, other)))


@contextlib.contextmanager
def _watching(
    watched: Watched, order: Callable[[int], list[int]], take_tickets: frozenset[str]
) -> Iterator[None]:
    def launch_watched(launch: Launch, proceed: Callable[[Launch], Any]) -> Any:
        kernel = launch.kernel.fn.__name__
        arguments = list(launch.arguments.items())
        accesses = Accesses(kernel, launch.programs, arguments, kernel in take_tickets)
        with _interpreter_that_tells(accesses, order(launch.programs)):
            result = proceed(launch)
        watched.launches[kernel] += 1
        watched.faults.update({str(fault): count for fault, count in accesses.faults.items()})
        return result

    with observe_launches(launch_watched):
        yield


@contextlib.contextmanager
def _interpreter_that_tells(accesses: Accesses, order: list[int]) -> Iterator[None]:
    """Have the interpreter run programs in this order, and ask ``accesses`` for each address."""
    builder = interpreter.interpreter_builder
    convert, set_grid_idx = interpreter._implicit_cvt, builder.set_grid_idx
    load, store = builder.create_masked_load, builder.create_masked_store
    change, exchange = builder.create_atomic_rmw, builder.create_atomic_cas

    def convert_to_window(argument: Any) -> Any:
        converted = convert(argument)
        if hasattr(argument, "data_ptr"):
            start = accesses.window_of(interpreter._unwrap_tensor(argument))
            converted.handle.data = np.array([start], np.uint64)
        return converted

    def begin(x: int, y: int, z: int) -> None:
        accesses.begin(order[x])
        set_grid_idx(order[x], y, z)

    def watched_load(pointers: Any, mask: Any, *others: Any) -> Any:
        located = accesses.load(pointers.data, mask.data, _itemsize(pointers))
        loaded = load(_at(pointers, located), replace(mask, data=located.within), *others)
        accesses.loaded(located, loaded.data)
        return loaded

    def watched_store(pointers: Any, values: Any, mask: Any, *others: Any) -> Any:
        located = accesses.store(pointers.data, mask.data, _itemsize(pointers))
        return store(_at(pointers, located), values, replace(mask, data=located.within), *others)

    def watched_change(operation: Any, pointers: Any, values: Any, mask: Any, *others: Any) -> Any:
        located = accesses.change_atomically(pointers.data, mask.data, _itemsize(pointers))
        within = replace(mask, data=located.within)
        before = change(operation, _at(pointers, located), values, within, *others)
        accesses.loaded(located, before.data)
        return before

    def watched_exchange(pointers: Any, *others: Any) -> Any:
        everywhere = np.ones(pointers.data.shape, bool)
        located = accesses.change_atomically(pointers.data, everywhere, _itemsize(pointers))
        assert located.within.all(), accesses.faults  # it has no mask
        before = exchange(_at(pointers, located), *others)
        accesses.loaded(located, before.data)
        return before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_implicit_cvt", convert_to_window)
        patch.setattr(builder, "set_grid_idx", begin)
        patch.setattr(builder, "create_masked_load", watched_load)
        patch.setattr(builder, "create_masked_store", watched_store)
        patch.setattr(builder, "create_atomic_rmw", watched_change)
        patch.setattr(builder, "create_atomic_cas", watched_exchange)
        yield


def _itemsize(pointers: Any) -> int:
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)


def _at(pointers: Any, located: Any) -> Any:
    return replace(pointers, data=located.addresses)
