"""Rows of one batch in blocks: sums that are known, and pairs that count for their columns, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula
from tests.support.cases import Case
from tests.support.targets import INTERPRETED

pytest.importorskip("triton", minversion="3.3")
pytest.importorskip("numpy")  # the interpreter's

from circle_kernels.backends import reference
from circle_kernels.backends import triton as triton_backend
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.backends.triton.conditions import Limits, assuming
from circle_kernels.backends.triton.launch import observe_launches
from circle_kernels.formula import PairFormula
from tests.backends.triton.one_batch import (
    assert_rows_are_exact,
    blocks_of,
    gradient_of_rows,
    problem_of,
    upstream_of,
)
from tests.support.interpreter.order import in_any_order
from tests.support.interpreter.poison import ZERO, empties_filled_with

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]

LIMITS = {
    "small": Limits(),
    "any-order": Limits(small_rows=0),
    "sides-anew": Limits(small_rows=0, sides_bytes=0),
    "by-label": Limits(sorted_tiles=0),
}
for_every_way = pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
# With and without kinds of their own for tiles, and a small batch against itself.
for_two_ways = pytest.mark.parametrize(
    "limits", [LIMITS[name] for name in ("small", "by-label")], ids=["small", "by-label"]
)
HALF, BFLOAT = torch.float16, torch.bfloat16
FACES = CircleFormula(m=0.25, gamma=256.0)  # whose positives no fixed shift serves
UNDETACHED = CircleFormula(m=0.25, gamma=64.0, detach_weights=False)
UNIFIED = UnifiedFormula(m=0.35, gamma=64.0)
# No multiple of a tile on any side.
ROWS = slice(37, 104)
CASES = [
    Case("random", n=150),
    Case("random", n=150, d=32, formula=FACES),
    Case("clusters", n=150, formula=CircleFormula(m=0.25, gamma=128.0)),
    Case("random", n=150, formula=UNDETACHED),
    Case("random", n=150, formula=UNIFIED),
    Case("random", n=150, normalize=False),
    Case("mixed_empty_rows", n=150, formula=FACES),
    Case("unlike_norms", n=150, d=48),
]
# Sets that are empty everywhere.
EXTREMES = [Case("one_class", n=150), Case("distinct_classes", n=150, formula=UNDETACHED)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("way", LIMITS)
def test_blocks_add_up_to_the_batch(way: str, case: Case) -> None:
    if way in ("small", "sides-anew") and case not in CASES[:2]:
        pytest.skip("blocks beside the rows go the way of any order")
    with assuming(limits=LIMITS[way]):
        assert_rows_are_exact(case, ROWS, torch.float32)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
@pytest.mark.parametrize("case", [CASES[1], CASES[4]], ids=str)
@for_two_ways
def test_blocks_add_up_in_half_types(limits: Limits, case: Case, dtype: torch.dtype) -> None:
    with assuming(limits=limits):
        assert_rows_are_exact(case, ROWS, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("formula", [FACES, UNDETACHED], ids=["faces", "undetached"])
def test_sorted_blocks_with_tiles_of_negatives_add_up(
    formula: PairFormula, dtype: torch.dtype
) -> None:
    with assuming(limits=LIMITS["by-label"]):
        assert_rows_are_exact(Case("random", n=360, formula=formula), slice(0, 170), dtype)


@pytest.mark.parametrize("case", EXTREMES, ids=str)
@for_two_ways
def test_sets_that_are_empty_everywhere_add_nothing(limits: Limits, case: Case) -> None:
    problem = problem_of(case, torch.float32)
    with assuming(limits=limits):
        *sums, _ = triton_backend.forward(problem)
        assert any((each == -torch.inf).all() for each in sums)
        upstream = upstream_of(case).float()
        truth = _truth(problem, upstream)[ROWS]
        for known in (True, False):
            found = gradient_of_rows(problem, ROWS, upstream, torch.stack(sums), known=known)
            scale = truth.abs().max().item()
            torch.testing.assert_close(found, truth, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("rows", [slice(0, 150), slice(0, 1), slice(149, 150)], ids=str)
@for_two_ways
def test_blocks_of_one_row_and_of_all(limits: Limits, rows: slice) -> None:
    with assuming(limits=limits):
        assert_rows_are_exact(CASES[0], rows, torch.float32)


@pytest.mark.parametrize("sorted_tiles", [0, 24])
def test_chunks_of_the_workspace_change_nothing(sorted_tiles: int) -> None:
    # A small gamma, or no tile with a positive would be left to one exponential.
    case = Case("random", n=600, d=24, formula=CircleFormula(m=0.25, gamma=16.0))
    limits = Limits(workspace_bytes=4 * 256 * 256, small_rows=0, sorted_tiles=sorted_tiles)
    with assuming(limits=limits):
        assert_rows_are_exact(case, slice(10, 290), torch.float32)


@for_two_ways
def test_columns_that_no_fixed_shift_holds_leave_their_tiles_to_exact_weights(
    limits: Limits,
) -> None:
    """Gradients are huge for one block of columns only, which no row's statistics tell."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(600, 256, generator=generator)  # far apart: small log-sum-exps
    problem = PairProblem(embeddings, torch.arange(600) % 150, None, None, CircleFormula(), True)
    upstream = torch.ones(2, 600)
    upstream[:, 350:] = 1e25  # the second block of columns behind the rows
    rows = slice(0, 90)
    truth = _truth(problem, upstream)[rows]
    with assuming(limits=limits):
        sums = torch.stack(triton_backend.forward(problem)[:2])
        found = gradient_of_rows(problem, rows, upstream, sums, known=True)
    torch.testing.assert_close(found, truth, rtol=0, atol=2e-5 * truth.abs().max().item())


@pytest.mark.parametrize("larger", ["rows", "columns"])
@for_two_ways
def test_float16_weights_hold_gradients_of_either_side(limits: Limits, larger: str) -> None:
    problem = problem_of(Case("random", n=150), torch.float16)
    upstream = torch.full((2, 150), 2.0**6 if larger == "columns" else 2.0**-10)
    upstream[:, ROWS] = 2.0**6 if larger == "rows" else 2.0**-10
    truth = _truth(problem, upstream)[ROWS]
    with assuming(limits=limits):
        sums = torch.stack(triton_backend.forward(problem)[:2])
        found = gradient_of_rows(problem, ROWS, upstream, sums, known=True)
    torch.testing.assert_close(found, truth, rtol=0, atol=4e-3 * truth.abs().max().item())


@pytest.mark.parametrize("with_references", [False, True])
@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[6]], ids=str)
@for_every_way
def test_known_sums_are_saved_as_the_forward_pass_saves_its_own(
    limits: Limits, case: Case, with_references: bool
) -> None:
    blocks = blocks_of(problem_of(case, torch.float16), ROWS)
    problem = [block for _, block in blocks][with_references]
    with assuming(limits=limits), empties_filled_with(ZERO):
        *sums, saved = triton_backend.forward(problem)
        ours = triton_backend.save(problem, *sums)
    ends = 4 * 2 * len(problem.embeddings)  # where the log-sum-exps do
    assert torch.equal(ours[ends:], saved[ends:])
    converted, own = (each[:ends].view(torch.float32) for each in (ours, saved))
    torch.testing.assert_close(converted, own, rtol=4e-7, atol=4e-7 * case.formula.gamma)


@for_two_ways
def test_any_order_over_any_memory_gives_the_same_bits(limits: Limits) -> None:
    case = replace(CASES[1], n=100)
    problem, upstream = problem_of(case, HALF), upstream_of(case).float()

    def run() -> list[Tensor]:
        sums = torch.stack(triton_backend.forward(problem)[:2])
        return [gradient_of_rows(problem, slice(30, 100), upstream, sums, known=True)]

    with assuming(limits=limits):
        assert in_any_order(run).faults == {}


def test_negatives_of_a_sorted_rectangle_take_one_exponential() -> None:
    """Of columns, too, the log-sum-exps of positives do not matter there."""
    blocks = list(blocks_of(problem_of(replace(CASES[1], n=360), torch.float32), slice(0, 180)))
    problem = blocks[-1][1]
    served = []

    def watch(launch: Any, proceed: Any) -> Any:
        if launch.constants.get("TILES") != "served":
            return proceed(launch)
        weights = launch.arguments["weights_ptr"].fill_(torch.nan)
        result = proceed(launch)
        served.append((~weights.isnan()).float().mean().item())
        return result

    with assuming(limits=LIMITS["by-label"]):
        lse_pos, lse_neg, saved = triton_backend.forward(problem)
        statistics = torch.stack([lse_pos + 200, lse_neg, *torch.ones(2, 180)])
        passed = Passed(saved, *torch.ones(2, 180), statistics)
        with observe_launches(watch):
            triton_backend.backward(problem, passed, Needs(True, False))
    assert len(served) == 1
    assert served[0] > 0.2


def _truth(batch: PairProblem, upstream: Tensor) -> Tensor:  # (N, D) float64
    """The gradient of the whole batch, by the oracle."""
    batch = batch._replace(embeddings=batch.embeddings.double())
    passed = Passed(torch.empty(0, dtype=torch.uint8), *upstream.double())
    gradient, _ = reference.backward(batch, passed, Needs(True, False))
    assert gradient is not None
    return gradient
