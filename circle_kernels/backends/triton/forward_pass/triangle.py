"""Forward pass of self mode over the tiles above the diagonal, in label order.

Such a tile serves its rows and its columns from one exponential per pair. Sums over columns are
cheap: a thread holds many columns of a row. Sums over rows cross the threads of a warp, so a
program stays with one block of columns and adds up in each thread, until its rows have passed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from circle_kernels.backends.triton.formula.pairs import Kind, pair_distances, shifted_exponentials
from circle_kernels.backends.triton.forward_pass.rectangle import LARGEST_SUM
from circle_kernels.backends.triton.primitives import (
    Pairs,
    Points,
    is_plain,
    pair_scales,
    tile_products,
)

# Matrix instructions leave rows r and r + 8 of a tile to one thread.
_THREAD_ROWS = tl.constexpr(8)


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "first_column",
        "band_columns",
        "num_column_blocks",
        "num_runs",
    ]
)
def sum_triangle_kernel(
    rows_ptr,  # (N, D)
    row_labels_ptr,  # (padded N,) int64, ascending
    row_scales_ptr,  # (padded N,) float32
    left_over_ptr,  # (row tiles, column tiles) int8: not 0 where a tile is left to sum_exactly
    run_sums_ptr,  # (1, runs, columns of the band) float32: of columns
    tile_sums_ptr,  # (column blocks of the band, N) float32: of rows
    num_rows,
    depth,
    row_stride,
    first_column,  # of the band
    band_columns,
    num_column_blocks,  # in the band
    num_runs,
    vertex_neg,
    floor_neg,
    factor,
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
    tl.static_assert(BLOCK_ROWS % BLOCK_COLUMNS == 0)
    rows = Points(rows_ptr, row_labels_ptr, row_scales_ptr, num_rows, row_stride)
    pairs = Pairs(rows, rows, depth)
    column_block = tl.program_id(0) % num_column_blocks
    run = tl.program_id(0) // num_column_blocks
    # The hint joins loads of scales and labels and saves an address for each.
    column = tl.multiple_of(first_column + column_block * BLOCK_COLUMNS, BLOCK_COLUMNS)
    left_over_ptr += column // BLOCK_COLUMNS
    num_tiles = tl.cdiv(num_rows, BLOCK_COLUMNS).to(tl.int64)
    tile_sums_ptr += column_block.to(tl.int64) * num_rows + tl.arange(0, BLOCK_ROWS)

    thread_sums = tl.zeros(
        (BLOCK_ROWS // (2 * _THREAD_ROWS), _THREAD_ROWS, BLOCK_COLUMNS), tl.float32
    )
    # The diagonal's is among them, if only to be left over.
    diagonal_tile = column // BLOCK_ROWS
    for tile in range(run, diagonal_tile + 1, num_runs):
        row = tile * BLOCK_ROWS
        plain = is_plain(pairs, row, column, None, True, "ascending", BLOCK_ROWS, BLOCK_COLUMNS)
        plain = plain & (column + BLOCK_COLUMNS <= num_rows)
        row_sums = tl.zeros((BLOCK_ROWS,), tl.float32)
        if plain:
            products = tile_products(
                pairs,
                row,
                column,
                (INPUT_PRECISION, EVEN_DEPTH, NORMALIZED, BLOCK_DEPTH),
                BLOCK_ROWS,
                BLOCK_COLUMNS,
            )
            scales = pair_scales(pairs, row, column, BLOCK_ROWS, BLOCK_COLUMNS)
            negative = Kind(vertex_neg, floor_neg, factor)
            distances = pair_distances(products, scales, negative, False, FORMULA)
            exponentials = shifted_exponentials(distances, fixed_shift, FORMULA)
            row_sums = tl.sum(exponentials, axis=1)
            plain = tl.max(row_sums, axis=0) <= LARGEST_SUM
            if plain:
                by_thread = tl.reshape(
                    exponentials, (BLOCK_ROWS // (2 * _THREAD_ROWS), 2, _THREAD_ROWS, BLOCK_COLUMNS)
                )
                thread_sums += tl.sum(by_thread, axis=1)
        if tile < diagonal_tile:  # rows on the diagonal have no slot
            tl.store(tile_sums_ptr + row, tl.where(plain, row_sums, 0.0))
        tl.store(left_over_ptr + tile * num_tiles, (plain ^ True).to(tl.int8))

    block = tl.arange(0, BLOCK_COLUMNS)
    column_sums = tl.sum(tl.sum(thread_sums, axis=0), axis=0)
    run_sums_ptr += run.to(tl.int64) * band_columns + (column - first_column) + block
    tl.store(run_sums_ptr, column_sums, mask=block < band_columns - (column - first_column))
