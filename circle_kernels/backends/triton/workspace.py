"""Backward pass at any depth: ``dL/ds`` goes to a bounded workspace for a matrix product."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.triton.gradients import tile_gradient
from circle_kernels.backends.triton.launch import WORKSPACE_BYTES, launch_tiles
from circle_kernels.backends.triton.operands import ROW_PADDING, Side
from circle_kernels.backends.triton.primitives import load_block, tile_products
from circle_kernels.backends.triton.settings import Settings


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "num_columns",
        "first_row",
        "first_column",
        "last_row",
        "last_column",
        "num_row_blocks",
    ]
)
def write_weights_kernel(
    rows_ptr,  # (N, D): the side whose gradient this is
    row_labels_ptr,  # (N,) int64
    row_scales_ptr,  # (N,) float32
    row_table_ptr,  # (7, padded N) float32 where rows are anchors
    columns_ptr,  # (M, D)
    column_labels_ptr,  # (M,) int64
    column_scales_ptr,  # (M,) float32
    column_table_ptr,  # (7, padded M) float32 where columns are anchors
    weights_ptr,  # (last_row - first_row, last_column - first_column), the dtype of the columns
    num_rows,
    num_columns,
    depth,
    row_stride,
    column_stride,
    weights_stride,
    first_row,
    last_row,
    first_column,
    last_column,
    num_row_blocks,
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
    EVEN_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Write ``dL/ds_ij`` times the column's scale for one tile of the workspace."""
    row_block = tl.program_id(0) % num_row_blocks
    column_block = tl.program_id(0) // num_row_blocks
    # Chunks begin at multiples of operands.ROW_PADDING.
    row_start = tl.multiple_of(first_row + row_block * BLOCK_ROWS, BLOCK_ROWS)
    column_start = tl.multiple_of(first_column + column_block * BLOCK_COLUMNS, BLOCK_COLUMNS)
    rows = row_start + tl.arange(0, BLOCK_ROWS)
    columns = column_start + tl.arange(0, BLOCK_COLUMNS)
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
        INPUT_PRECISION,
        EVEN_DEPTH,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
        BLOCK_DEPTH,
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
        False,
    )
    column_scales = load_block(column_scales_ptr, column_start, BLOCK_COLUMNS) * column_unit
    weights = (gradient * column_scales[None, :]).to(weights_ptr.dtype.element_ty)
    offsets = (rows - first_row).to(tl.int64)[:, None] * weights_stride
    offsets += (columns - first_column)[None, :]
    inside = (rows < last_row)[:, None] & (columns < last_column)[None, :]
    tl.store(weights_ptr + offsets, weights, mask=inside)


def multiply_workspace(
    rows: Side,
    columns: Side,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    settings: Settings,
) -> Tensor:  # (1, N, D)
    """Gradient sums of the normalised rows, as one split."""
    num_rows, depth = rows.operand.shape
    dtype = rows.operand.dtype
    chunk_rows, chunk_columns = workspace_shape(num_rows, len(columns), dtype.itemsize)
    workspace = rows.operand.new_empty(chunk_rows, chunk_columns)
    sums = rows.scales.new_zeros(num_rows, depth)
    for first_row in range(0, num_rows, chunk_rows):
        last_row = min(first_row + chunk_rows, num_rows)
        row_blocks = triton.cdiv(last_row - first_row, settings.block_rows)
        for first_column in range(0, len(columns), chunk_columns):
            last_column = min(first_column + chunk_columns, len(columns))
            column_blocks = triton.cdiv(last_column - first_column, settings.block_columns)
            launch_tiles(
                write_weights_kernel,
                row_blocks * column_blocks,
                {
                    **arguments,
                    "weights_ptr": workspace,
                    "weights_stride": workspace.stride(0),
                    "first_row": first_row,
                    "last_row": last_row,
                    "first_column": first_column,
                    "last_column": last_column,
                    "num_row_blocks": row_blocks,
                },
                {**constants, "EVEN_DEPTH": depth % settings.block_depth == 0},
                settings,
            )
            num_chunk_rows, num_chunk_columns = last_row - first_row, last_column - first_column
            weights = workspace.narrow(0, 0, num_chunk_rows).narrow(1, 0, num_chunk_columns)
            chunk = columns.operand.narrow(0, first_column, num_chunk_columns)
            sums.narrow(0, first_row, num_chunk_rows).add_(_product(weights, chunk))
    return sums.unsqueeze(0)


def workspace_shape(num_rows: int, num_columns: int, itemsize: int) -> tuple[int, int]:
    """Rows and columns of the weights that are in memory at a time, within WORKSPACE_BYTES.

    Whole rows while they leave at least 1,024 of them, since each chunk of columns costs one more
    pass over the sums. Chunks are multiples of ROW_PADDING, as far as tiles load without masks; a
    workspace of one chunk has no more rows than there are.
    """
    entries = WORKSPACE_BYTES // itemsize
    padded_columns = triton.cdiv(num_columns, ROW_PADDING) * ROW_PADDING
    most_columns = entries // min(num_rows, 1024) // ROW_PADDING * ROW_PADDING
    chunk_columns = max(ROW_PADDING, min(padded_columns, most_columns))
    most_rows = entries // chunk_columns
    if most_rows >= num_rows:
        return num_rows, chunk_columns
    return max(ROW_PADDING, most_rows // ROW_PADDING * ROW_PADDING), chunk_columns


def _product(
    weights: Tensor,  # (R, C)
    operand: Tensor,  # (C, D)
) -> Tensor:  # (R, D) float32
    if weights.dtype == torch.float32:
        return weights @ operand
    if weights.is_cuda and torch.version.hip is None and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(weights, operand, out_dtype=torch.float32)
    if weights.is_cuda:
        # The matrix product accumulates in float32 and rounds once, at the end of a chunk.
        return (weights @ operand).float()
    return weights.float() @ operand.float()
