"""The problems that kernels are tried on hold tiles of every kind, on every device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends import trial
from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton.conditions import Conditions, Hardware, Limits
from circle_kernels.backends.triton.plan import plan_walk, shape_of
from circle_kernels.backends.triton.settings import Settings
from circle_kernels.backends.triton.settings_table import load_table


def plain_tiles(problem: PairProblem, tile: Settings, *, in_order: bool) -> Tensor:
    """Which tiles (of rows, of columns) are whole, off the diagonal, and in order negative."""
    row = torch.arange(0, len(problem.embeddings), tile.block_rows)[:, None]
    column = torch.arange(0, len(problem.columns), tile.block_columns)[None, :]
    plain = column + tile.block_columns <= len(problem.columns)
    if problem.self_mode:
        beside = column >= row + tile.block_rows
        if not in_order:  # else those below the diagonal are mirror images
            beside = beside | (column + tile.block_columns <= row)
        plain = plain & beside
    if in_order:
        rows = problem.labels.sort().values
        columns = rows if problem.self_mode else problem.ref_labels.sort().values
        last_row = (row + tile.block_rows - 1).clamp(max=len(rows) - 1)
        last_column = (column + tile.block_columns - 1).clamp(max=len(columns) - 1)
        plain = plain & ((columns[column] > rows[last_row]) | (columns[last_column] < rows[row]))
    return plain


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_some_tiles_are_plain_and_some_are_left_over(
    architecture: str, dtype: torch.dtype, in_order: bool
) -> None:
    limits = Limits(small_rows=0, sorted_tiles=0 if in_order else Limits().sorted_tiles)
    conditions = Conditions(Hardware(architecture, 132), limits, load_table())
    for name, problem in trial._problems(dtype):
        problem = problem._replace(embeddings=problem.embeddings.to(dtype))
        shape = shape_of(problem)
        walk = plan_walk(shape, conditions)
        weights = "weights" if in_order else "weights_in_any_order"
        for tile in (walk.settings, conditions.settings(weights, dtype, shape.depth)):
            plain = plain_tiles(problem, tile, in_order=in_order)
            assert plain.any(), (name, tile)
            assert not plain.all(), (name, tile)
