"""Forward pass over every tile, each for its rows."""

from __future__ import annotations

import triton
import triton.language as tl

from circle_kernels.backends.triton.forward_pass.sums import (
    LARGEST_SUM,
    add_tile_exactly,
    empty_shifts,
    mixed_exponentials,
    negative_exponentials,
    store_sums,
)
from circle_kernels.backends.triton.primitives import (
    load_block,
    only_negatives,
    pair_scales,
    store_tile,
    tile_products,
)

# Columns at a time of the tiles that are summed exactly, whose two kinds of logits take registers.
_EXACT_PART = tl.constexpr(64)


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "num_columns",
        "first_row",
        "band_rows",
        "num_row_blocks",
        "num_runs",
        "tiles_per_run",
    ]
)
def sum_rows_kernel(
    rows_ptr,  # (N, D)
    row_labels_ptr,  # (padded N,) int64
    row_scales_ptr,  # (padded N,) float32
    columns_ptr,  # (M, D)
    column_labels_ptr,  # (padded M,) int64
    column_scales_ptr,  # (padded M,) float32
    run_sums_ptr,  # (4, runs, rows of the band) float32
    kept_ptr,  # (padded N, padded M) float32, if KEEP
    num_rows,
    num_columns,
    depth,
    row_stride,
    column_stride,
    kept_stride,
    first_row,  # of the band
    band_rows,
    num_row_blocks,  # in the band
    num_runs,
    tiles_per_run,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    fixed_shift,
    SELF_MODE: tl.constexpr,
    LABELS: tl.constexpr,  # plan.Labels
    KEEP: tl.constexpr,  # products, for the backward pass
    FORMULA: tl.constexpr,
    NORMALIZED: tl.constexpr,  # else products may overflow
    INPUT_PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Sum the exponentials of one block of rows over one run of column tiles."""
    run = tl.program_id(0) // num_row_blocks
    row_start = first_row + tl.program_id(0) % num_row_blocks * BLOCK_ROWS
    row_start = tl.multiple_of(row_start, BLOCK_ROWS)

    shift_pos = empty_shifts(fixed_shift, BLOCK_ROWS, FORMULA)
    shift_neg = empty_shifts(fixed_shift, BLOCK_ROWS, FORMULA)
    sum_pos = tl.zeros((BLOCK_ROWS,), tl.float32)
    sum_neg = tl.zeros((BLOCK_ROWS,), tl.float32)
    first_tile = run * tiles_per_run
    last_tile = tl.minimum(first_tile + tiles_per_run, tl.cdiv(num_columns, BLOCK_COLUMNS))
    for tile in range(first_tile, last_tile):
        start = tile * BLOCK_COLUMNS
        # Whether every pair of the tile counts, and but in any order as a negative one.
        plain = start + BLOCK_COLUMNS <= num_columns
        if SELF_MODE:
            plain = plain & (
                (start >= row_start + BLOCK_ROWS) | (start + BLOCK_COLUMNS <= row_start)
            )
        if LABELS != "any order":
            plain = plain & only_negatives(
                row_labels_ptr,
                row_start,
                column_labels_ptr,
                start,
                LABELS,
                BLOCK_ROWS,
                BLOCK_COLUMNS,
            )
        if FORMULA != "circle":
            plain = False
        finished = False
        if plain:
            products = tile_products(
                rows_ptr,
                row_start,
                num_rows,
                row_stride,
                columns_ptr,
                start,
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
            if KEEP:
                wanted = True
                if SELF_MODE:  # The backward pass asks for tiles on and above the diagonal.
                    wanted = start + BLOCK_COLUMNS > row_start
                store_tile(kept_ptr, kept_stride, row_start, start, products, wanted)
            scales = pair_scales(
                load_block(row_scales_ptr, row_start, BLOCK_ROWS),
                load_block(column_scales_ptr, start, BLOCK_COLUMNS),
            )
            if LABELS != "any order":
                exponentials = negative_exponentials(
                    products, scales, vertex_neg, floor_neg, fixed_shift, FORMULA
                )
                tile_neg = tl.sum(exponentials, axis=1)
                tile_pos = tl.zeros_like(tile_neg)
            else:
                row_labels = load_block(row_labels_ptr, row_start, BLOCK_ROWS)
                column_labels = load_block(column_labels_ptr, start, BLOCK_COLUMNS)
                same = row_labels[:, None] == column_labels[None, :]
                exponentials = mixed_exponentials(
                    products,
                    scales,
                    same,
                    vertex_pos,
                    floor_pos,
                    vertex_neg,
                    floor_neg,
                    fixed_shift,
                    FORMULA,
                )
                tile_pos = tl.sum(tl.where(same, exponentials, 0.0), axis=1)
                tile_neg = tl.sum(tl.where(same, 0.0, exponentials), axis=1)
            finished = tl.max(tile_pos + tile_neg, axis=0) <= LARGEST_SUM
            if finished:
                # Running shifts are never below the fixed one.
                sum_pos += tile_pos * tl.exp2(fixed_shift - shift_pos)
                sum_neg += tile_neg * tl.exp2(fixed_shift - shift_neg)
        if not finished:
            shift_pos, sum_pos, shift_neg, sum_neg = add_tile_exactly(
                shift_pos,
                sum_pos,
                shift_neg,
                sum_neg,
                rows_ptr,
                row_labels_ptr,
                row_scales_ptr,
                row_start,
                num_rows,
                row_stride,
                columns_ptr,
                column_labels_ptr,
                column_scales_ptr,
                start,
                num_columns,
                column_stride,
                kept_ptr,
                kept_stride,
                depth,
                vertex_pos,
                floor_pos,
                vertex_neg,
                floor_neg,
                SELF_MODE,
                KEEP,
                FORMULA,
                NORMALIZED,
                INPUT_PRECISION,
                EVEN_DEPTH,
                BLOCK_ROWS,
                BLOCK_COLUMNS,
                BLOCK_DEPTH,
                _EXACT_PART,
            )

    store_sums(
        run_sums_ptr,
        run,
        num_runs,
        row_start - first_row,
        band_rows,
        shift_pos,
        sum_pos,
        shift_neg,
        sum_neg,
        BLOCK_ROWS,
    )
