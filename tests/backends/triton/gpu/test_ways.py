"""Each formula on every way that plans take: small, in any order, by label, in bands and chunks."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from circle_kernels import CircleFormula, UnifiedFormula, pair_logsumexp
from tests.backends.triton.gpu.lanes import (
    Lane,
    for_every_lane,
    for_few_dtypes,
    skip_without_memory,
)
from tests.backends.triton.gpu.steps import assert_bitwise_equal
from tests.support.cases import Case
from tests.support.yardstick import gradients, yardsticks

_UNIFIED = UnifiedFormula(m=0.35, gamma=64.0)
_UNDETACHED = CircleFormula(m=0.25, gamma=64.0, detach_weights=False)
CASES = [
    Case("random", d=40),
    Case("clusters", d=40, formula=_UNIFIED),
    Case("random", d=64, formula=_UNDETACHED),
    Case("random", d=40, normalize=False),
    Case("clusters", m=1, d=40, formula=_UNIFIED),
    Case("clusters", m=1, d=64, formula=_UNDETACHED),
    Case("random", m=1, d=40, normalize=False),
]
for_every_case = pytest.mark.parametrize("case", CASES, ids=str)


def sized(case: Case, lane: Lane) -> Case:
    """With the lane's rows, and somewhat more references where it has any."""
    return dataclasses.replace(case, n=lane.rows, m=case.m and lane.rows + 41)


def results(case: Case, lane: Lane, dtype: torch.dtype) -> list[torch.Tensor]:
    """Both log-sum-exps and the gradients of what has one."""
    inputs = case.tensors(dtype, lane.device)
    with lane.limits():
        statistics = pair_logsumexp(
            *inputs,
            formula=case.formula,
            normalize=case.normalize,
            backend="triton",
        )
        return [each.detach() for each in (*statistics, *gradients(*statistics, inputs))]


@for_few_dtypes
@for_every_case
@for_every_lane
def test_as_exact_as_eager(lane: Lane, case: Case, dtype: torch.dtype) -> None:
    case = sized(case, lane)
    skip_without_memory(lane, case.m or case.n)
    of_sums, of_gradients = yardsticks(case, dtype, lane.device)
    float_eps, eps = torch.finfo(torch.float32).eps, torch.finfo(dtype).eps
    ours = results(case, lane, dtype)
    for value, yardstick in zip(ours[:2], of_sums, strict=True):
        yardstick.assert_close(value, float_eps, case.formula.gamma)
    for value, yardstick in zip(ours[2:], of_gradients, strict=True):
        yardstick.assert_close(value, eps, case.formula.gamma)


@for_few_dtypes
@for_every_case
@for_every_lane
def test_twice_the_same_bits(lane: Lane, case: Case, dtype: torch.dtype) -> None:
    case = sized(case, lane)
    first, second = (
        [value.nan_to_num(neginf=-1e30) for value in results(case, lane, dtype)] for _ in range(2)
    )
    assert_bitwise_equal(second, first)
