"""Weights: ``dL/ds`` of a chunk of pairs, in a bounded workspace that matrix products read."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.triton.backward_pass.gradients import (
    exact_weights,
    fixed_shift_serves,
    weights_by_fixed_shift,
)
from circle_kernels.backends.triton.conditions import Hardware
from circle_kernels.backends.triton.launch import launch_tiles
from circle_kernels.backends.triton.primitives import (
    load_block,
    load_tile_inside,
    only_negatives,
    pair_scales,
    store_tile,
    tile_products,
)
from circle_kernels.backends.triton.settings import Settings
from circle_kernels.backends.triton.sides import ceil_div

# Columns at a time of the tiles that take the exact body.
_EXACT_PART = tl.constexpr(32)
# Column tiles that a program passes at most.
_LONGEST_RUN = 4


@triton.jit
def store_weights(
    weights_ptr,  # (rows of the chunk, columns of the chunk)
    weights_stride,
    row,  # of the tile, within the chunk
    column,
    weights,  # (R, C)
    mirror,
):
    """Store a tile of weights, and if ``mirror`` its transpose; workspaces hold whole tiles."""
    weights = weights.to(weights_ptr.dtype.element_ty)
    store_tile(weights_ptr, weights_stride, row, column, weights)
    if mirror:
        store_tile(weights_ptr, weights_stride, column, row, tl.trans(weights))


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "num_columns",
        "first_row",
        "first_column",
        "num_row_blocks",
        "num_column_blocks",
        "tiles_per_run",
    ]
)
def write_weights_kernel(
    rows_ptr,  # (N, D)
    row_labels_ptr,  # (padded N,) int64
    row_scales_ptr,  # (padded N,) float32
    columns_ptr,  # (M, D)
    column_labels_ptr,  # (padded M,) int64
    column_scales_ptr,  # (padded M,) float32
    table_ptr,  # (blocks, 7, STATISTICS_BLOCK) float32: of rows, and in self mode of columns
    kept_ptr,  # (padded N, padded M) float32, if KEPT
    weights_ptr,  # (rows of the chunk, columns of the chunk), the dtype of the operands
    num_rows,
    num_columns,
    depth,
    row_stride,
    column_stride,
    kept_stride,
    weights_stride,
    first_row,
    first_column,
    num_row_blocks,
    num_column_blocks,
    tiles_per_run,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    fixed_shift,
    SELF_MODE: tl.constexpr,
    MIRROR: tl.constexpr,  # the chunk lies on the diagonal: only tiles on and above it, and theirs
    LABELS: tl.constexpr,  # plan.Labels
    KEPT: tl.constexpr,  # whether the forward pass kept the products
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
    NORMALIZED: tl.constexpr,  # else products may overflow
    INPUT_PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Write the weights of one block of rows and one run of column tiles."""
    PART: tl.constexpr = _EXACT_PART if BLOCK_COLUMNS > _EXACT_PART else BLOCK_COLUMNS
    row = tl.program_id(0) % num_row_blocks * BLOCK_ROWS
    run = tl.program_id(0) // num_row_blocks
    # Chunks begin at multiples of operands.ROW_PADDING.
    row_start = tl.multiple_of(first_row + row, BLOCK_ROWS)
    first_tile = run * tiles_per_run
    last_tile = tl.minimum(first_tile + tiles_per_run, num_column_blocks)
    if MIRROR:
        tl.static_assert(BLOCK_ROWS % BLOCK_COLUMNS == 0)
        first_tile = tl.maximum(first_tile, row // BLOCK_COLUMNS)
    for tile in range(first_tile, last_tile):
        column = tile * BLOCK_COLUMNS
        mirror = False
        if MIRROR:
            mirror = column >= row + BLOCK_ROWS
        column_start = tl.multiple_of(first_column + column, BLOCK_COLUMNS)
        # Whether every pair counts, but in any order as a negative one, and the fixed shift serves.
        plain = (row_start + BLOCK_ROWS <= num_rows) & (column_start + BLOCK_COLUMNS <= num_columns)
        plain = plain & fixed_shift_serves(table_ptr, row_start, fixed_shift)
        if SELF_MODE:
            plain = plain & fixed_shift_serves(table_ptr, column_start, fixed_shift)
            plain = plain & (
                (column_start >= row_start + BLOCK_ROWS)
                | (row_start >= column_start + BLOCK_COLUMNS)
            )
        if LABELS != "any order":
            plain = plain & only_negatives(
                row_labels_ptr,
                row_start,
                column_labels_ptr,
                column_start,
                LABELS,
                BLOCK_ROWS,
                BLOCK_COLUMNS,
            )
        if FORMULA != "circle":
            plain = False
        if plain:
            if KEPT:
                products = load_tile_inside(
                    kept_ptr, kept_stride, row_start, column_start, BLOCK_ROWS, BLOCK_COLUMNS
                )
            else:
                products = tile_products(
                    rows_ptr,
                    row_start,
                    num_rows,
                    row_stride,
                    columns_ptr,
                    column_start,
                    num_columns,
                    column_stride,
                    depth,
                    NORMALIZED,
                    INPUT_PRECISION,
                    EVEN_DEPTH,
                    BLOCK_ROWS,
                    BLOCK_COLUMNS,
                    BLOCK_DEPTH,
                )
            scales = pair_scales(
                load_block(row_scales_ptr, row_start, BLOCK_ROWS),
                load_block(column_scales_ptr, column_start, BLOCK_COLUMNS),
            )
            same = tl.zeros((1, 1), tl.int32) != 0
            if LABELS == "any order":
                row_labels = load_block(row_labels_ptr, row_start, BLOCK_ROWS)
                column_labels = load_block(column_labels_ptr, column_start, BLOCK_COLUMNS)
                same = row_labels[:, None] == column_labels[None, :]
            weights = weights_by_fixed_shift(
                products,
                scales,
                same,
                table_ptr,
                row_start,
                column_start,
                vertex_pos,
                floor_pos,
                vertex_neg,
                floor_neg,
                fixed_shift,
                LABELS != "any order",
                SELF_MODE,
                DETACH_WEIGHTS,
            )
            store_weights(weights_ptr, weights_stride, row, column, weights, mirror)
        else:
            rows = row_start + tl.arange(0, BLOCK_ROWS)
            row_labels = load_block(row_labels_ptr, row_start, BLOCK_ROWS)
            row_scales = load_block(row_scales_ptr, row_start, BLOCK_ROWS)
            for part in range(0, BLOCK_COLUMNS, PART):
                part_start = column_start + part
                if KEPT:
                    products = load_tile_inside(
                        kept_ptr, kept_stride, row_start, part_start, BLOCK_ROWS, PART
                    )
                else:
                    products = tile_products(
                        rows_ptr,
                        row_start,
                        num_rows,
                        row_stride,
                        columns_ptr,
                        part_start,
                        num_columns,
                        column_stride,
                        depth,
                        NORMALIZED,
                        INPUT_PRECISION,
                        EVEN_DEPTH,
                        BLOCK_ROWS,
                        PART,
                        BLOCK_DEPTH,
                    )
                scales = pair_scales(row_scales, load_block(column_scales_ptr, part_start, PART))
                columns = part_start + tl.arange(0, PART)
                counts = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
                same = (
                    row_labels[:, None] == load_block(column_labels_ptr, part_start, PART)[None, :]
                )
                positive = same & counts
                if SELF_MODE:
                    positive = positive & (rows[:, None] != columns[None, :])
                weights = exact_weights(
                    products,
                    scales,
                    positive,
                    (same ^ True) & counts,
                    table_ptr,
                    row_start,
                    part_start,
                    vertex_pos,
                    floor_pos,
                    vertex_neg,
                    floor_neg,
                    SELF_MODE,
                    FORMULA,
                    DETACH_WEIGHTS,
                )
                store_weights(weights_ptr, weights_stride, row, column + part, weights, mirror)


def write_weights(
    workspace: Tensor,  # (rows, columns) of a chunk, whole tiles
    first_row: int,
    first_column: int,
    num_rows: int,  # of the chunk
    num_columns: int,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    settings: Settings,
    hardware: Hardware,
) -> None:
    """Write the weights of the pairs of one chunk of rows and one of columns."""
    row_blocks = ceil_div(num_rows, settings.block_rows)
    column_blocks = ceil_div(num_columns, settings.block_columns)
    tiles_per_run = row_blocks * column_blocks // (2 * hardware.multiprocessors)
    tiles_per_run = max(1, min(_LONGEST_RUN, tiles_per_run))
    launch_tiles(
        write_weights_kernel,
        row_blocks * ceil_div(column_blocks, tiles_per_run),
        {
            **arguments,
            "weights_ptr": workspace,
            "weights_stride": workspace.stride(0),
            "first_row": first_row,
            "first_column": first_column,
            "num_row_blocks": row_blocks,
            "num_column_blocks": column_blocks,
            "tiles_per_run": tiles_per_run,
        },
        {**constants, "EVEN_DEPTH": arguments["depth"] % settings.block_depth == 0},
        settings,
    )


def multiply(
    weights: Tensor,  # (R, C)
    operand: Tensor,  # (C, D)
    hardware: Hardware,
) -> Tensor:  # (R, D) float32
    """Matrix product with float32 sums; half types are never rounded between chunks."""
    if weights.dtype == torch.float32:
        return weights @ operand
    if weights.is_cuda and not hardware.is_amd and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(weights, operand, out_dtype=torch.float32)
    if weights.is_cuda:
        # The matrix product accumulates in float32 and rounds once, at the end of a chunk.
        return (weights @ operand).float()
    return weights.float() @ operand.float()
