"""The bounded workspace of the Triton backward pass: its bound, and that chunks change nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from circle_kernels import CircleFormula, pair_logsumexp
from tests.support.cases import Case
from tests.support.targets import INTERPRETED
from tests.support.yardstick import gradients

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.triton.backward_pass.backward import adds_onto_float32
from circle_kernels.backends.triton.backward_pass.chunks import Chunks, plan_chunks
from circle_kernels.backends.triton.conditions import Limits, assuming
from circle_kernels.backends.triton.launch import Launch, observe_launches
from circle_kernels.backends.triton.plan import Shape
from circle_kernels.backends.triton.settings_table import load_table
from circle_kernels.backends.triton.sides import ROW_PADDING

SORTED, UNSORTED = Limits(sorted_tiles=0), Limits(small_rows=0)
SMALL_WORKSPACE = Limits(workspace_bytes=4 * 256 * 256, small_rows=0)


def chunks_of(
    num_rows: int,
    num_columns: int | None,
    dtype: torch.dtype,
    limits: Limits = Limits(),  # noqa: B008, a frozen value
) -> Chunks:
    shape = Shape(num_rows, num_columns or num_rows, num_columns is None, dtype, 64)
    return plan_chunks(shape, limits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_columns", [None, 1, 100, 8192, 1_000_000, 2_000_000_000])
@pytest.mark.parametrize("num_rows", [1, 100, 8192, 1_000_000])
def test_chunks_stay_within_their_bound(
    num_rows: int, num_columns: int | None, dtype: torch.dtype
) -> None:
    most = Limits().workspace_bytes
    chunks = chunks_of(num_rows, num_columns, dtype)
    # Tiles load whole blocks of padded vectors, and are stored whole.
    assert chunks.rows % ROW_PADDING == chunks.columns % ROW_PADDING == 0
    assert chunks.rows * chunks.columns * dtype.itemsize <= most
    # And no smaller than need be: half of the bound is used where there are pairs enough.
    if num_rows * (num_columns or num_rows) * dtype.itemsize > most:
        assert chunks.rows * chunks.columns * dtype.itemsize > most / 4
    for chunk in itertools.islice(chunks, 9):
        assert 0 < chunk.num_rows <= num_rows - chunk.first_row
        assert 0 < chunk.num_columns <= chunks.num_columns - chunk.first_column


@pytest.mark.parametrize(("num_rows", "num_columns"), [(700, None), (700, 1500), (1500, 700)])
def test_every_pair_of_chunks_is_visited_once(num_rows: int, num_columns: int | None) -> None:
    chunks = chunks_of(num_rows, num_columns, torch.float32, SMALL_WORKSPACE)
    every = set(itertools.product(range(chunks.row_chunks), range(chunks.column_chunks)))
    assert len(every) >= 9
    visited = [(chunk.row_index, chunk.column_index) for chunk in chunks]
    assert len(visited) == len(set(visited))
    if num_columns is None:
        visited += [(column, row) for row, column in visited]
    assert set(visited) == every
    # Sums of the larger side are complete one chunk after the other.
    larger = [pair[0] if chunks.row_chunks >= chunks.column_chunks else pair[1] for pair in visited]
    if num_columns is not None:
        assert larger == sorted(larger)


def test_workspace_is_no_larger_than_the_problem() -> None:
    chunks = chunks_of(300, 500, torch.bfloat16)
    assert (chunks.rows, chunks.columns) == (512, 512)


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("m", [None, 300])
@pytest.mark.parametrize("sorted_tiles", [0, 24])
def test_chunks_of_the_workspace_change_nothing(m: int | None, sorted_tiles: int) -> None:
    # A small gamma, or no tile with a positive would be left to one exponential.
    case = Case("random", n=400, m=m, d=40, formula=CircleFormula(m=0.25, gamma=16.0))
    results = []
    for limits in (Limits(small_rows=0), SMALL_WORKSPACE):
        inputs = case.tensors(torch.float32)
        with assuming(limits=replace(limits, sorted_tiles=sorted_tiles)):
            statistics = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
            results.append(gradients(*statistics, inputs))
    for whole, chunked in zip(*results, strict=True):
        scale = whole.abs().max().item()
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5 * scale)


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("m", [None, 150])
def test_far_positives_leave_negatives_to_one_exponential(m: int | None) -> None:
    """At this gamma positives of random embeddings are beyond the fixed shift."""
    case = Case("random", n=200, m=m, formula=CircleFormula(m=0.25, gamma=256.0))
    inputs = case.tensors(torch.float32)
    served = []

    def watch(launch: Launch, proceed: Callable[[Launch], Any]) -> Any:
        if launch.constants.get("TILES") != "served":
            return proceed(launch)
        weights = launch.arguments["weights_ptr"].fill_(math.nan)
        result = proceed(launch)
        served.append((~weights.isnan()).float().mean().item())
        return result

    with assuming(limits=SORTED), observe_launches(watch):
        gradients(*pair_logsumexp(*inputs, formula=case.formula, backend="triton"), inputs)
    assert len(served) == 1
    assert served[0] > 0.25


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("limits", [SORTED, UNSORTED])
def test_slices_of_tiles_change_no_bit_of_a_gradient(limits: Limits) -> None:
    case = Case("clusters", n=270, formula=CircleFormula(m=0.25, gamma=128.0))
    inputs = case.tensors(torch.float32)
    found = []
    for slices in (1, 2, 4):
        table = {
            (kernel, *key): tuple(
                (depth, replace(each, column_slices=slices if "weights" in kernel else 1))
                for depth, each in settings
            )
            for (kernel, *key), settings in load_table().items()
        }
        with assuming(limits=limits, table=table):
            statistics = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
            found.append(gradients(*statistics, inputs)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("failure", [RuntimeError, TypeError])
def test_products_are_added_apart_where_pytorch_refuses(
    failure: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some versions want sums of a half type, others have no such argument."""

    def refuse(*arguments: object, **options: object) -> None:
        raise failure("no sums in float32")

    adds_onto_float32.cache_clear()
    monkeypatch.setattr(torch, "addmm", refuse)
    assert not adds_onto_float32(torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch, "addmm", lambda sums, *factors, **options: sums)
    adds_onto_float32.cache_clear()
    assert adds_onto_float32(torch.device("cpu"), torch.bfloat16)
    adds_onto_float32.cache_clear()
