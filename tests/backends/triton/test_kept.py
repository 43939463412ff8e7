"""What the Triton forward pass leaves for the backward: how much, and that it is used right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from circle_kernels import CircleFormula, UnifiedFormula, pair_logsumexp
from tests.support.cases import Case
from tests.support.regimes import REGIMES
from tests.support.targets import INTERPRETED
from tests.support.yardstick import gradients, yardsticks

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton import saved as saved_module
from circle_kernels.backends.triton.conditions import (
    Conditions,
    Hardware,
    Limits,
    assuming,
    conditions_on,
)
from circle_kernels.backends.triton.forward_pass import forward as forward_module
from circle_kernels.backends.triton.forward_pass.forward import forward
from circle_kernels.backends.triton.launch import observe_launches
from circle_kernels.backends.triton.plan import Shape, plan_walk, shape_of
from circle_kernels.backends.triton.settings_table import load_table

KEEPING = Limits(kept_depth_of_halves=1, kept_depth_of_singles=1)

SIZES = ((150, None), (128, 200))
CASES = [Case(regime, n=n, m=m) for regime in REGIMES for n, m in SIZES]
CASES += [
    Case("random", n=n, m=m, formula=formula)
    for n, m in SIZES
    for formula in (
        CircleFormula(m=0.25, gamma=256.0),
        CircleFormula(m=0.25, gamma=1.0, detach_weights=False),
        UnifiedFormula(m=0.35, gamma=64.0),
    )
]


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
class TestInterpreted:
    @pytest.fixture(autouse=True)
    def keep_at_any_depth(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        # Memory that was freed may hold what an earlier test left there, which is the same. Bytes
        # of ones are NaN to floats.
        monkeypatch.setattr(
            forward_module, "new_saved", lambda *args: saved_module.new_saved(*args).fill_(255)
        )
        with assuming(limits=KEEPING):
            yield

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_gradients_are_as_exact_as_eager(self, case: Case) -> None:
        inputs = case.tensors(torch.float32)
        statistics = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
        results = [*statistics, *gradients(*statistics, inputs)]
        expected = [yardstick for kind in yardsticks(case, torch.float32) for yardstick in kind]
        for ours, yardstick in zip(results, expected, strict=True):
            yardstick.assert_close(ours, torch.finfo(torch.float32).eps, case.formula.gamma)

    @pytest.mark.parametrize("sorted_tiles", [0, 24])
    @pytest.mark.parametrize(("n", "m"), SIZES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_kept_products_give_the_same_bits_as_computing_them_again(
        self, dtype: torch.dtype, n: int, m: int | None, sorted_tiles: int
    ) -> None:
        case = Case("random", n=n, m=m)
        keeping = replace(KEEPING, sorted_tiles=sorted_tiles)
        results = []
        for limits in (keeping, replace(keeping, kept_bytes=0)):
            inputs = case.tensors(dtype)
            with assuming(limits=limits):
                statistics = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
                results.append(gradients(*statistics, inputs))
        for kept, again in zip(*results, strict=True):
            torch.testing.assert_close(kept, again, rtol=0, atol=0)

    @pytest.mark.parametrize(("n", "m"), SIZES)
    def test_what_is_kept_are_the_products(self, n: int, m: int | None) -> None:
        case = Case("random", n=n, m=m)
        inputs = [
            value if value is None else value.detach() for value in case.tensors(torch.float32)
        ]
        problem = PairProblem(*inputs, case.formula, normalize=False)
        *_, saved = forward(problem)
        walk = plan_walk(shape_of(problem), conditions_on(inputs[0].device))
        kept = saved_module.view_saved(saved, problem, walk).products
        assert kept is not None
        products = kept[:n, : m or n]
        expected = inputs[0].double() @ problem.columns.T.double()
        upper = torch.ones_like(expected, dtype=torch.bool)
        if m is None:
            upper = upper.triu()
        torch.testing.assert_close(products[upper], expected[upper].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_columns", [None, 100, 2000, 1_000_000])
@pytest.mark.parametrize("num_rows", [1, 256, 2816, 2817, 5000, 100_000])
def test_what_is_kept_is_bounded(
    num_rows: int, num_columns: int | None, dtype: torch.dtype
) -> None:
    def kept(depth: int, keep_for_backward: bool = True) -> int:
        shape = Shape(
            num_rows,
            num_columns or num_rows,
            num_columns is None,
            dtype,
            depth,
            keep_for_backward,
        )
        return 4 * math.prod(plan_walk(shape, h100).kept)

    h100 = Conditions(Hardware("sm_90", 132), Limits(), load_table())
    most = h100.limits.kept_bytes
    assert kept(1024) <= most
    # All or nothing: padding takes the rest.
    fits = 4 * num_rows * (num_columns or num_rows) <= most / 2.9
    assert (kept(1024) > 0) >= (fits and min(num_rows, num_columns or num_rows) >= 256)
    assert kept(16) == 0
    assert kept(1024, keep_for_backward=False) == 0


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sides_left_by_the_forward_pass_give_the_same_bits_as_prepared_again(
    dtype: torch.dtype, n: int, m: int | None
) -> None:
    def note(launch: Any, proceed: Any) -> Any:
        launched.append(launch.kernel.__name__)
        return proceed(launch)

    case = Case("random", n=n, m=m, d=21)
    results, prepared = [], []
    for limits in (Limits(), Limits(sides_bytes=0)):
        launched: list[str] = []
        inputs = case.tensors(dtype)
        with assuming(limits=limits), observe_launches(note):
            statistics = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
            results.append(gradients(*statistics, inputs))
        prepared.append(launched.count("prepare_operand_kernel"))
    sides = 1 if m is None else 2
    assert prepared == [sides, 2 * sides]
    for left, again in zip(*results, strict=True):
        torch.testing.assert_close(left, again, rtol=0, atol=0)
