"""Forward pass of self mode over the tiles on and above the diagonal, in label order.

A tile above the diagonal serves its rows and its columns from one exponential per pair. Sums over
columns are cheap: a thread holds many columns of a row. Sums over rows cross the threads of a warp,
so a program stays with one block of columns and adds up in each thread, until its rows have passed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from circle_kernels.backends.triton.forward_pass.sums import (
    LARGEST_SUM,
    add_tile_exactly,
    empty_shifts,
    negative_exponentials,
    store_sums,
)
from circle_kernels.backends.triton.primitives import (
    load_block,
    merge_sums,
    pair_scales,
    tile_products,
)

# Matrix instructions leave rows r and r + 8 of a tile to one thread.
_THREAD_ROWS = tl.constexpr(8)
# Columns at a time of the tiles that are summed exactly: few, beside the sums held in each thread.
_EXACT_PART = tl.constexpr(32)


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "first_column",
        "band_columns",
        "num_column_blocks",
        "num_runs",
        "tiles_per_run",
    ]
)
def sum_triangle_kernel(
    rows_ptr,  # (N, D)
    row_labels_ptr,  # (padded N,) int64, ascending
    row_scales_ptr,  # (padded N,) float32
    run_sums_ptr,  # (4, runs, columns of the band) float32: of columns
    tile_sums_ptr,  # (4, column blocks of the band, N) float32: of rows
    num_rows,
    depth,
    row_stride,
    first_column,  # of the band
    band_columns,
    num_column_blocks,  # in the band
    num_runs,
    tiles_per_run,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    fixed_shift,
    FORMULA: tl.constexpr,
    NORMALIZED: tl.constexpr,  # else products may overflow
    INPUT_PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Sum the exponentials of one block of columns, and of each row tile in one run of them."""
    tl.static_assert(BLOCK_ROWS == BLOCK_COLUMNS)
    column_block = tl.program_id(0) % num_column_blocks
    run = tl.program_id(0) // num_column_blocks
    # The hint joins loads of scales and labels and saves an address for each.
    column_start = tl.multiple_of(first_column + column_block * BLOCK_COLUMNS, BLOCK_COLUMNS)
    whole = column_start + BLOCK_COLUMNS <= num_rows

    # What add_tile_exactly finds, and what the other tiles do.
    shift_pos = empty_shifts(fixed_shift, BLOCK_COLUMNS, FORMULA)
    shift_neg = empty_shifts(fixed_shift, BLOCK_COLUMNS, FORMULA)
    sum_pos = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    sum_neg = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    thread_sums = tl.zeros(
        (BLOCK_ROWS // (2 * _THREAD_ROWS), _THREAD_ROWS, BLOCK_COLUMNS), tl.float32
    )
    first_tile = run * tiles_per_run
    last_tile = tl.minimum(first_tile + tiles_per_run, column_start // BLOCK_COLUMNS + 1)
    for tile in range(first_tile, last_tile):
        row_start = tile * BLOCK_ROWS
        # Whether all pairs are negative; rows come before columns, so they are all there.
        plain = whole & (
            tl.load(row_labels_ptr + row_start + BLOCK_ROWS - 1)
            < tl.load(row_labels_ptr + column_start)
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
                rows_ptr,
                column_start,
                num_rows,
                row_stride,
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
                load_block(row_scales_ptr, column_start, BLOCK_COLUMNS),
            )
            exponentials = negative_exponentials(
                products, scales, vertex_neg, floor_neg, fixed_shift, FORMULA
            )
            row_sums = tl.sum(exponentials, axis=1)
            finished = tl.max(row_sums, axis=0) <= LARGEST_SUM
            if finished:
                by_thread = tl.reshape(
                    exponentials, (BLOCK_ROWS // (2 * _THREAD_ROWS), 2, _THREAD_ROWS, BLOCK_COLUMNS)
                )
                thread_sums += tl.sum(by_thread, axis=1)
                fixed = tl.zeros((BLOCK_ROWS,), tl.float32) + fixed_shift
                store_sums(
                    tile_sums_ptr,
                    column_block,
                    num_column_blocks,
                    row_start,
                    num_rows,
                    fixed,
                    tl.zeros_like(row_sums),
                    fixed,
                    row_sums,
                    BLOCK_ROWS,
                )
        if not finished:
            shift_pos, sum_pos, shift_neg, sum_neg = add_tile_exactly(
                shift_pos,
                sum_pos,
                shift_neg,
                sum_neg,
                rows_ptr,
                row_labels_ptr,
                row_scales_ptr,
                column_start,
                num_rows,
                row_stride,
                rows_ptr,
                row_labels_ptr,
                row_scales_ptr,
                row_start,
                num_rows,
                row_stride,
                rows_ptr,
                row_stride,
                depth,
                vertex_pos,
                floor_pos,
                vertex_neg,
                floor_neg,
                True,
                False,
                FORMULA,
                NORMALIZED,
                INPUT_PRECISION,
                EVEN_DEPTH,
                BLOCK_COLUMNS,
                BLOCK_ROWS,
                BLOCK_DEPTH,
                _EXACT_PART,
            )
            if row_start != column_start:
                none = empty_shifts(fixed_shift, BLOCK_ROWS, FORMULA)
                zero = tl.zeros((BLOCK_ROWS,), tl.float32)
                row_shift_pos, row_sum_pos, row_shift_neg, row_sum_neg = add_tile_exactly(
                    none,
                    zero,
                    none,
                    zero,
                    rows_ptr,
                    row_labels_ptr,
                    row_scales_ptr,
                    row_start,
                    num_rows,
                    row_stride,
                    rows_ptr,
                    row_labels_ptr,
                    row_scales_ptr,
                    column_start,
                    num_rows,
                    row_stride,
                    rows_ptr,
                    row_stride,
                    depth,
                    vertex_pos,
                    floor_pos,
                    vertex_neg,
                    floor_neg,
                    True,
                    False,
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
                    tile_sums_ptr,
                    column_block,
                    num_column_blocks,
                    row_start,
                    num_rows,
                    row_shift_pos,
                    row_sum_pos,
                    row_shift_neg,
                    row_sum_neg,
                    BLOCK_ROWS,
                )

    fixed = tl.zeros((BLOCK_COLUMNS,), tl.float32) + fixed_shift
    column_sums = tl.sum(tl.sum(thread_sums, axis=0), axis=0)
    shift_neg, sum_neg = merge_sums(shift_neg, sum_neg, fixed, column_sums)
    store_sums(
        run_sums_ptr,
        run,
        num_runs,
        column_start - first_column,
        band_columns,
        shift_pos,
        sum_pos,
        shift_neg,
        sum_neg,
        BLOCK_COLUMNS,
    )
