"""Forward pass over every tile, each for its rows, with sums against the fixed shift."""

from __future__ import annotations

import triton
import triton.language as tl

from circle_kernels.backends.triton.formula.pairs import (
    Formula,
    Kind,
    mixed_distances,
    pair_distances,
    shifted_exponentials,
)
from circle_kernels.backends.triton.primitives import (
    Pairs,
    Points,
    column_slice,
    is_plain,
    listed_kinds,
    pair_scales,
    same_labels,
    tile_products,
)

# Sums up to this one hold no exponential that a float32 cannot.
LARGEST_SUM = tl.constexpr(2.0**107)  # 2^100 from each of 128 pairs


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "num_columns",
        "first_row",
        "band_rows",
        "num_row_blocks",
        "num_runs",
    ]
)
def sum_rows_kernel(
    rows_ptr,  # (N, D)
    row_labels_ptr,  # (padded N,) int64
    row_scales_ptr,  # (padded N,) float32
    columns_ptr,  # (M, D)
    column_labels_ptr,  # (padded M,) int64
    column_scales_ptr,  # (padded M,) float32
    listed_ptr,  # (padded N, padded M) uint8, or None
    copies_ptr,  # (padded N,) int64: operands.own_copies; or None
    left_over_ptr,  # (row tiles, column tiles) int8: not 0 where a tile is left to sum_exactly
    run_sums_ptr,  # (kinds, runs, rows of the band) float32: positives, where they are; negatives
    num_rows,
    num_columns,
    depth,
    row_stride,
    column_stride,
    listed_stride,
    first_row,  # of the band
    band_rows,
    num_row_blocks,  # in the band
    num_runs,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    factor,
    fixed_shift,
    SELF_MODE: tl.constexpr,
    LABELS: tl.constexpr,  # plan.Labels
    FORMULA: tl.constexpr,
    NORMALIZED: tl.constexpr,  # else products may overflow
    INPUT_PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    COLUMN_SLICES: tl.constexpr,  # of a tile, from products to sums one after the other
):
    """Sum the exponentials of one block of rows over one run of column tiles."""
    SLICE_COLUMNS: tl.constexpr = BLOCK_COLUMNS // COLUMN_SLICES
    BOTH_KINDS: tl.constexpr = LABELS == "any order" or LABELS == "listed"
    rows = Points(rows_ptr, row_labels_ptr, row_scales_ptr, num_rows, row_stride)
    columns = Points(columns_ptr, column_labels_ptr, column_scales_ptr, num_columns, column_stride)
    pairs = Pairs(rows, columns, depth)
    formula = Formula(
        Kind(vertex_pos, floor_pos, factor), Kind(vertex_neg, floor_neg, factor), fixed_shift
    )
    run = tl.program_id(0) // num_row_blocks
    row = first_row + tl.program_id(0) % num_row_blocks * BLOCK_ROWS
    row = tl.multiple_of(row, BLOCK_ROWS)
    num_tiles = tl.cdiv(num_columns, BLOCK_COLUMNS)
    left_over_ptr += (row // BLOCK_ROWS).to(tl.int64) * num_tiles

    positives = tl.zeros((BLOCK_ROWS,), tl.float32)
    negatives = tl.zeros((BLOCK_ROWS,), tl.float32)
    for tile in range(run, num_tiles, num_runs):
        column = tile * BLOCK_COLUMNS
        plain = is_plain(
            pairs,
            row,
            column,
            copies_ptr,
            SELF_MODE,
            LABELS,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
        if LABELS != "listed":
            plain = plain & (column + BLOCK_COLUMNS <= num_columns)
        if plain:
            products = tile_products(
                pairs,
                row,
                column,
                (INPUT_PRECISION, EVEN_DEPTH, NORMALIZED, BLOCK_DEPTH),
                BLOCK_ROWS,
                BLOCK_COLUMNS,
            )
            tile_positives = tl.zeros((BLOCK_ROWS,), tl.float32)
            tile_negatives = tl.zeros((BLOCK_ROWS,), tl.float32)
            for slice in tl.static_range(COLUMN_SLICES):
                part = column_slice(products, slice, COLUMN_SLICES)
                first = column + slice * SLICE_COLUMNS
                scales = pair_scales(pairs, row, first, BLOCK_ROWS, SLICE_COLUMNS)
                if BOTH_KINDS:
                    if LABELS == "listed":
                        positive, counts, _ = listed_kinds(
                            pairs, row, first, listed_ptr, listed_stride, BLOCK_ROWS, SLICE_COLUMNS
                        )
                    else:
                        positive = same_labels(pairs, row, first, BLOCK_ROWS, SLICE_COLUMNS)
                    distances = mixed_distances(part, scales, positive, formula, FORMULA)
                    exponentials = shifted_exponentials(distances, fixed_shift, FORMULA)
                    if LABELS == "listed":
                        exponentials = tl.where(counts, exponentials, 0.0)
                    tile_positives += tl.sum(tl.where(positive, exponentials, 0.0), axis=1)
                    exponentials = tl.where(positive, 0.0, exponentials)
                else:
                    distances = pair_distances(part, scales, formula.negative, False, FORMULA)
                    exponentials = shifted_exponentials(distances, fixed_shift, FORMULA)
                tile_negatives += tl.sum(exponentials, axis=1)
            plain = tl.max(tile_positives + tile_negatives, axis=0) <= LARGEST_SUM
            positives += tl.where(plain, tile_positives, 0.0)
            negatives += tl.where(plain, tile_negatives, 0.0)
        tl.store(left_over_ptr + tile, (plain ^ True).to(tl.int8))

    block = tl.arange(0, BLOCK_ROWS)
    inside = block < band_rows - (row - first_row)
    run_sums_ptr += run.to(tl.int64) * band_rows + (row - first_row) + block
    if BOTH_KINDS:
        tl.store(run_sums_ptr, positives, mask=inside)
        run_sums_ptr += num_runs.to(tl.int64) * band_rows
    tl.store(run_sums_ptr, negatives, mask=inside)
