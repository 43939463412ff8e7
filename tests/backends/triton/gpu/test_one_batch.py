"""Rows of one batch in blocks, as each process of several computes them, at a device's sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.backends.triton.gpu.lanes import ON_DEVICE, Lane, skip_without_memory
from tests.backends.triton.gpu.steps import for_every_dtype
from tests.backends.triton.gpu.test_ways import CASES, sized
from tests.support.cases import Case
from tests.support.targets import ON_GPU

pytestmark = ON_GPU
_OF_ONE_BATCH = [
    *(case for case in CASES if case.m is None),
    dataclasses.replace(CASES[0], formula=dataclasses.replace(CASES[0].formula, gamma=256.0)),
    dataclasses.replace(CASES[0], regime="mixed_empty_rows"),
]


@for_every_dtype
@pytest.mark.parametrize("case", _OF_ONE_BATCH, ids=str)
@pytest.mark.parametrize("lane", ON_DEVICE, ids=str)
def test_blocks_add_up_to_the_batch(lane: Lane, case: Case, dtype: torch.dtype) -> None:
    pytest.importorskip("triton", minversion="3.3")
    from tests.backends.triton.one_batch import assert_rows_are_exact

    case = sized(case, lane)
    skip_without_memory(lane, case.n)
    rows = slice(case.n // 4 + 1, 2 * case.n // 3)
    with lane.limits():
        assert_rows_are_exact(case, rows, dtype, lane.device)
