"""Own copies and columns that count pairs, on the ways that only large problems take."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from circle_kernels import CircleFormula, UnifiedFormula
from circle_kernels.formula import PairFormula
from circle_kernels.operation.batch import Operation
from circle_kernels.operation.eager import logsumexps
from tests.operation.numbers import test_other_pairs as pairs
from tests.support.formulas import FUNCTIONS
from tests.support.targets import INTERPRETED, Target

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.triton.conditions import Limits, assuming
from circle_kernels.backends.triton.launch import Launch, observe_launches

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]

TARGET = Target("triton", "cpu", (torch.float32,))
SORTED = Limits(sorted_tiles=0, sides_bytes=0)
# Each weight in a chunk of few, and partial sums in bands.
IN_CHUNKS = Limits(
    sorted_tiles=0, partial_bytes=0, smallest_band=1, workspace_bytes=4 * 256 * 256, sides_bytes=0
)
FORMULAS = {
    "circle": CircleFormula(m=0.25, gamma=64.0),
    "unified": UnifiedFormula(m=0.1, gamma=30.0),
    "of functions": FUNCTIONS["with where"],
}


@pytest.mark.parametrize("limits", [Limits(), SORTED, IN_CHUNKS], ids=["given", "sorted", "chunks"])
@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_copies_and_both_sides_together(limits: Limits, formula: PairFormula) -> None:
    sizes = (130, 300) if limits is IN_CHUNKS else (67, 100)
    for copied, both_sides in ((True, False), (False, True), (True, True)):
        batch = pairs._drawn(*sizes, torch.float32, "cpu", of_others=True)
        if not copied:
            batch = batch._replace(own_columns=None)
        with assuming(limits=limits):
            pairs._hold(TARGET, batch, Operation(formula, True, 0.0, "triton", both_sides))


@pytest.mark.parametrize("limits", [Limits(), SORTED], ids=["given", "sorted"])
def test_rows_may_share_a_copy(limits: Limits) -> None:
    """Which is then, as a column, the own copy of several rows."""
    batch = pairs._drawn(67, 100, torch.float32, "cpu", of_others=False)
    batch = batch._replace(own_columns=torch.arange(67) // 3 * 4)
    for formula, both_sides in itertools.product(FORMULAS.values(), (False, True)):
        with assuming(limits=limits):
            pairs._hold(TARGET, batch, Operation(formula, True, 0.0, "triton", both_sides))


@pytest.mark.parametrize("limits", [Limits(), IN_CHUNKS], ids=["given", "in bands"])
@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_both_sides_take_one_product(limits: Limits, formula: PairFormula) -> None:
    """One walk over the tiles serves rows and columns; bands share the rows among themselves."""
    launches: list[Launch] = []

    def observe(launch: Launch, proceed: Callable[[Launch], Any]) -> None:
        launches.append(launch)
        proceed(launch)

    batch = pairs._drawn(130, 300, torch.float32, "cpu", of_others=True)
    with assuming(limits=limits), observe_launches(observe), torch.no_grad():
        logsumexps(batch, Operation(formula, True, 0.0, "triton", both_sides=True))
    walks = [each for each in launches if each.kernel.__name__.startswith("sum_")]
    assert {each.kernel.__name__ for each in walks} == {"sum_exactly_kernel"}
    assert sum(each.arguments["num_row_blocks"] for each in walks) == 3  # of 64 rows
    assert len(walks) == (3 if limits is IN_CHUNKS else 1)
