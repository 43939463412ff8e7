"""The bounded workspace of the Triton backward pass: its bound, and that chunks change nothing."""

from __future__ import annotations

import pytest
import torch
from cases import INTERPRETED, Case, gradients

from circle_kernels import pair_logsumexp

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.triton import workspace
from circle_kernels.backends.triton.operands import ROW_PADDING


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("num_columns", [1, 100, 8192, 1_000_000, 2_000_000_000])
@pytest.mark.parametrize("num_rows", [1, 100, 8192, 10_000_000])
def test_workspace_never_exceeds_its_bound(num_rows: int, num_columns: int, itemsize: int) -> None:
    rows, columns = workspace.workspace_shape(num_rows, num_columns, itemsize)
    assert 1 <= rows <= num_rows
    # Tiles load whole blocks of padded vectors, and the matrix product wants aligned rows.
    assert rows == num_rows or rows % ROW_PADDING == 0
    assert columns >= 1
    assert columns % ROW_PADDING == 0
    assert rows * columns * itemsize <= workspace.WORKSPACE_BYTES


def test_workspace_is_no_larger_than_the_problem() -> None:
    assert workspace.workspace_shape(300, 500, 2) == (300, 512)


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("m", [None, 300])
@pytest.mark.parametrize("entries", [256 * 256, 256 * 512])
def test_chunks_of_the_workspace_change_nothing(
    monkeypatch: pytest.MonkeyPatch, m: int | None, entries: int
) -> None:
    case = Case("random", n=530, m=m, d=300)
    results = []
    for budget in (workspace.WORKSPACE_BYTES, 4 * entries):
        monkeypatch.setattr(workspace, "WORKSPACE_BYTES", budget)
        inputs = case.tensors(torch.float32)
        statistics = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
        results.append(gradients(*statistics, inputs))
    for whole, chunked in zip(*results, strict=True):
        scale = whole.abs().max().item()
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5 * scale)
