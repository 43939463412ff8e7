"""Backward pass at small depth: the (R, D) gradient sums stay in registers, the columns pass by."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.triton.gradients import tile_gradient
from circle_kernels.backends.triton.launch import WORKSPACE_BYTES, launch_tiles, split_columns
from circle_kernels.backends.triton.operands import Side
from circle_kernels.backends.triton.primitives import load_block, load_tile, multiply_add
from circle_kernels.backends.triton.settings import Settings


@triton.jit(do_not_specialize=["num_rows", "num_columns", "num_row_blocks", "tiles_per_split"])
def accumulate_gradient_kernel(
    rows_ptr,  # (N, D): the side whose gradient this is
    row_labels_ptr,  # (N,) int64
    row_scales_ptr,  # (N,) float32
    row_table_ptr,  # (7, padded N) float32 where rows are anchors
    columns_ptr,  # (M, D)
    column_labels_ptr,  # (M,) int64
    column_scales_ptr,  # (M,) float32
    column_table_ptr,  # (7, padded M) float32 where columns are anchors
    partial_ptr,  # (splits, N, D) float32: the sums over the columns of each split
    num_rows,
    num_columns,
    depth,
    row_stride,
    column_stride,
    num_row_blocks,
    tiles_per_split,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    slope_scale,
    column_unit,  # what turns a column's scale into the inverse of its operand's norm
    SELF_MODE: tl.constexpr,
    SORTED: tl.constexpr,
    ROW_ANCHORS: tl.constexpr,
    COLUMN_ANCHORS: tl.constexpr,
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,  # covers the whole depth
):
    """Sum the gradients of one block of normalised rows over one split of the columns."""
    row_block = tl.program_id(0) % num_row_blocks
    split = tl.program_id(0) // num_row_blocks
    row_start = row_block * BLOCK_ROWS
    rows = row_start + tl.arange(0, BLOCK_ROWS)
    row_inside = rows < num_rows
    depths = tl.arange(0, BLOCK_DEPTH)
    row_tile = load_tile(rows_ptr, rows, num_rows, row_stride, depths, depth)

    sums = tl.zeros((BLOCK_ROWS, BLOCK_DEPTH), tl.float32)
    first = split * tiles_per_split * BLOCK_COLUMNS
    last = tl.minimum(first + tiles_per_split * BLOCK_COLUMNS, num_columns)
    for column_start in range(first, last, BLOCK_COLUMNS):
        columns = column_start + tl.arange(0, BLOCK_COLUMNS)
        column_tile = load_tile(columns_ptr, columns, num_columns, column_stride, depths, depth)
        products = multiply_add(
            row_tile,
            tl.trans(column_tile),
            tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32),
            INPUT_PRECISION,
        )
        gradient = tile_gradient(
            products,
            row_labels_ptr,
            row_scales_ptr,
            row_table_ptr,
            row_start,
            num_rows,
            column_labels_ptr,
            column_scales_ptr,
            column_table_ptr,
            column_start,
            num_columns,
            vertex_pos,
            floor_pos,
            vertex_neg,
            floor_neg,
            slope_scale,
            SELF_MODE,
            SORTED,
            ROW_ANCHORS,
            COLUMN_ANCHORS,
            FORMULA,
            DETACH_WEIGHTS,
            True,
        )
        column_scales = load_block(column_scales_ptr, column_start, BLOCK_COLUMNS) * column_unit
        weights = (gradient * column_scales[None, :]).to(column_tile.dtype)
        sums = multiply_add(weights, column_tile, sums, INPUT_PRECISION)

    offsets = (split.to(tl.int64) * num_rows + rows)[:, None] * depth + depths[None, :]
    inside = row_inside[:, None] & (depths < depth)[None, :]
    tl.store(partial_ptr + offsets, sums, mask=inside)


def accumulate_in_registers(
    rows: Side,
    columns: Side,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    settings: Settings,
) -> Tensor:  # (splits, N, D)
    """Gradient sums of the normalised rows, one set per split of the columns."""
    num_rows, depth = rows.operand.shape
    row_blocks, splits, tiles_per_split = split_columns(
        num_rows,
        len(columns),
        settings.block_rows,
        settings.block_columns,
        rows.operand.device,
        max_splits=max(1, WORKSPACE_BYTES // (4 * num_rows * depth)),
    )
    partial = rows.scales.new_empty(splits, num_rows, depth)
    launch_tiles(
        accumulate_gradient_kernel,
        row_blocks * splits,
        {
            **arguments,
            "partial_ptr": partial,
            "num_row_blocks": row_blocks,
            "tiles_per_split": tiles_per_split,
        },
        constants,
        settings,
    )
    return partial
