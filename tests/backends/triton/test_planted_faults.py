"""Kernels with faults that show on a device only, if at all: interpreted, each of them is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.targets import INTERPRETED

pytest.importorskip("triton", minversion="3.3")
pytest.importorskip("numpy")  # the interpreter's

import triton
import triton.language as tl

from circle_kernels.backends.triton.launch import launch_kernel
from tests.support.interpreter import accesses
from tests.support.interpreter.order import Watched, in_any_order

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]
PROGRAMS, BLOCK = 5, 16
ENTRIES = 70  # the last program has fewer than a block


@triton.jit
def double_kernel(given_ptr, doubled_ptr, entries, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < entries
    tl.store(doubled_ptr + places, 2 * tl.load(given_ptr + places, mask=inside), mask=inside)


@triton.jit
def overlapping_kernel(given_ptr, doubled_ptr, entries, BLOCK: tl.constexpr):
    """One entry more than its own, with the neighbour's value."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, 2 * BLOCK)
    inside = (places < entries) & (tl.arange(0, 2 * BLOCK) <= BLOCK)
    tl.store(doubled_ptr + places, 2 * tl.load(given_ptr + places, mask=inside), mask=inside)


@triton.jit
def exchanging_kernel(given_ptr, doubled_ptr, entries, BLOCK: tl.constexpr):
    """Doubled is also the entry before its own, of which it takes no notice."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < entries
    tl.store(doubled_ptr + places, 2 * tl.load(given_ptr + places, mask=inside), mask=inside)
    before = tl.load(doubled_ptr + places - 1, mask=inside & (places > 0), other=0.0)
    tl.store(doubled_ptr + places, 2 * tl.load(given_ptr + places, mask=inside), mask=before < 0)


@triton.jit
def careless_kernel(given_ptr, doubled_ptr, entries, BLOCK: tl.constexpr):
    """Adds to what is there."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < entries
    there = tl.load(doubled_ptr + places, mask=inside)
    tl.store(doubled_ptr + places, there + tl.load(given_ptr + places, mask=inside), mask=inside)


@triton.jit
def overreading_kernel(given_ptr, doubled_ptr, entries, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < entries
    tl.store(doubled_ptr + places, 2 * tl.load(given_ptr + places), mask=inside)


@triton.jit
def overwriting_kernel(given_ptr, doubled_ptr, entries, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(doubled_ptr + places, 2 * tl.load(given_ptr + places, mask=places < entries))


@triton.jit
def accumulating_kernel(given_ptr, doubled_ptr, entries, BLOCK: tl.constexpr):
    """A sum whose order is that of the programs."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < entries
    tl.store(doubled_ptr + places, 0.0, mask=inside & (places > 0))
    tl.atomic_add(doubled_ptr, tl.sum(tl.load(given_ptr + places, mask=inside, other=0.0), axis=0))


@triton.jit
def half_atomic_kernel(given_ptr, doubled_ptr, entries, BLOCK: tl.constexpr):
    """Sets the sum to 0 that others may have added to."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < entries
    tl.store(doubled_ptr + places, 0.0, mask=inside)
    tl.atomic_add(doubled_ptr, tl.sum(tl.load(given_ptr + places, mask=inside, other=0.0), axis=0))


def numbers() -> Tensor:
    values = torch.randn(ENTRIES, generator=torch.Generator().manual_seed(0))
    # Of which the order decides the sum.
    values[::BLOCK] = torch.tensor([1.0, 2.0**30, -(2.0**30), 1.0, 1.0])
    return values


def double(kernel: Any, allocate: str = "new_empty", given: Tensor | None = None) -> Watched:
    """A run of a kernel in any order."""
    given = numbers() if given is None else given

    def run() -> list[Tensor]:
        doubled = getattr(given, allocate)(ENTRIES)
        arguments = {"given_ptr": given, "doubled_ptr": doubled, "entries": ENTRIES}
        constants = {"BLOCK": BLOCK}
        launch_kernel(kernel, PROGRAMS, arguments, constants, num_warps=4, num_stages=1)
        return [doubled]

    return in_any_order(run)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    watched = double(double_kernel)
    assert watched.faults == {}
    assert watched.launches == {"double_kernel": 3}


@pytest.mark.parametrize(
    ("kernel", "what", "argument"),
    [
        (overlapping_kernel, accesses.STORED_TWICE, "doubled_ptr"),
        (exchanging_kernel, accesses.EXCHANGED, "doubled_ptr"),
        (careless_kernel, accesses.UNWRITTEN, "doubled_ptr"),
        (overreading_kernel, accesses.BEYOND, "given_ptr"),
        (overwriting_kernel, accesses.BEYOND, "doubled_ptr"),
        (half_atomic_kernel, accesses.HALF_ATOMIC, "doubled_ptr"),
    ],
)
def test_planted_fault_is_found(kernel: Any, what: str, argument: str) -> None:
    name = kernel.fn.__name__
    assert f"{name} {what} {argument}" in double(kernel).faults


def test_overlap_and_overreading_are_found_though_they_change_no_result() -> None:
    for kernel in (overlapping_kernel, exchanging_kernel, overreading_kernel, overwriting_kernel):
        assert not any("result" in fault for fault in double(kernel).faults)


def test_reading_between_the_rows_of_a_tensor_is_found() -> None:
    """Where another tensor's numbers are, or nobody's."""
    wide = torch.ones(2 * ENTRIES)
    watched = double(double_kernel, given=wide[::2])
    assert list(watched.faults) == [f"double_kernel {accesses.BEYOND} given_ptr"]


def test_sum_in_the_order_of_programs_is_found_by_its_bits() -> None:
    assert list(double(accumulating_kernel, "new_zeros").faults) == [
        "result 0 is another one in reversed order",
        "result 0 is another one in random order",
    ]


@triton.jit
def merging_kernel(given_ptr, parts_ptr, tickets_ptr, sum_ptr, WHEN: tl.constexpr):
    """Each program leaves a part; the last one to finish adds them up, always alike."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    if WHEN != "after its ticket":
        tl.store(parts_ptr + program, 2 * tl.load(given_ptr + program))
    ticket = tl.atomic_add(tickets_ptr, 1)
    if WHEN == "after its ticket":
        tl.store(parts_ptr + program, 2 * tl.load(given_ptr + program))
    last = ticket == programs - 1
    if WHEN == "whether last or not":
        last = ticket >= programs - 3
    if last:
        places = tl.arange(0, 8)
        parts = tl.load(parts_ptr + places, mask=places < programs, other=0.0)
        tl.store(sum_ptr, tl.sum(parts, axis=0))


def merge(when: str, take_tickets: frozenset[str]) -> Watched:
    """A run of the kernel whose last program adds up, in any order."""
    given = torch.randn(PROGRAMS, generator=torch.Generator().manual_seed(0))

    def run() -> list[Tensor]:
        merged = given.new_empty(())
        arguments = {
            "given_ptr": given,
            "parts_ptr": torch.empty_like(given),
            "tickets_ptr": torch.zeros(1, dtype=torch.int32),
            "sum_ptr": merged,
        }
        constants = {"WHEN": when}
        launch_kernel(merging_kernel, PROGRAMS, arguments, constants, num_warps=4, num_stages=1)
        return [merged]

    return in_any_order(run, take_tickets)


def test_last_program_may_load_what_others_stored_before_their_tickets() -> None:
    assert merge("before its ticket", frozenset({"merging_kernel"})).faults == {}


def test_of_kernels_that_are_not_named_no_program_may() -> None:
    faults = merge("before its ticket", frozenset()).faults
    assert f"merging_kernel {accesses.EXCHANGED} parts_ptr" in faults


@pytest.mark.parametrize("when", ["after its ticket", "whether last or not"])
def test_tickets_are_of_no_use_if_taken_too_early(when: str) -> None:
    faults = merge(when, frozenset({"merging_kernel"})).faults
    assert f"merging_kernel {accesses.EXCHANGED} parts_ptr" in faults
