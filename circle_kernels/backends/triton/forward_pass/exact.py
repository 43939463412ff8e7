"""Forward pass over the tiles that sums against the fixed shift cannot hold, each for its rows.

Sums carry a shift of their own, which rises to the largest exponent.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from circle_kernels.backends.triton.formula.pairs import (
    Formula,
    Kind,
    pair_distances,
    shifted_exponents,
)
from circle_kernels.backends.triton.primitives import (
    Pairs,
    Points,
    pair_kinds,
    pair_scales,
    tile_products,
)


class Sum(NamedTuple):
    """Sums of exponentials: total * 2^shift of each anchor; an empty one is 0 with any shift."""

    shift: tl.tensor  # (R,)
    total: tl.tensor  # (R,)


@triton.jit
def no_sum(BLOCK: tl.constexpr):
    """Sums of nothing yet."""
    return Sum(tl.full((BLOCK,), -float("inf"), tl.float32), tl.zeros((BLOCK,), tl.float32))


@triton.jit
def merge_sums(one, other):
    """Add two sums of exponentials, whatever their shifts."""
    larger = tl.maximum(one.shift, other.shift)
    # Nothing in either: any finite shift keeps the sum at 0, where -inf would make it NaN.
    finite = tl.where(larger == -float("inf"), 0.0, larger)
    total = one.total * tl.exp2(one.shift - finite) + other.total * tl.exp2(other.shift - finite)
    return Sum(larger, total)


@triton.jit
def add_pairs(
    sums,  # Sum of R rows
    products,  # (R, C)
    scales,  # (R, C)
    mask,  # (R, C): the pairs of this kind
    kind,  # Kind
    POSITIVE: tl.constexpr,
    FORMULA: tl.constexpr,
):
    """Take one kind of pair into its rows' sums."""
    distances = pair_distances(products, scales, kind, POSITIVE, FORMULA)
    exponents = shifted_exponents(distances, tl.zeros(products.shape, tl.float32), FORMULA)
    exponents = tl.where(mask, exponents, -float("inf"))
    shift = tl.maximum(sums.shift, tl.max(exponents, axis=1))
    finite = tl.where(shift == -float("inf"), 0.0, shift)
    total = tl.sum(tl.exp2(exponents - finite[:, None]), axis=1)
    return Sum(shift, sums.total * tl.exp2(sums.shift - finite) + total)


@triton.jit
def is_left_over(
    left_over_ptr,  # (row tiles, column tiles) int8; in a triangle those on and above its diagonal
    row,
    column,
    num_tiles,  # of columns
    TRIANGLE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """Say whether the other kernels have left the tile of a pair, or of its mirror image."""
    if TRIANGLE:
        below = row // TILE_ROWS > column // TILE_ROWS
        row, column = tl.where(below, column, row), tl.where(below, row, column)
    tile = (row // TILE_ROWS).to(tl.int64) * num_tiles + column // TILE_COLUMNS
    return tl.load(left_over_ptr + tile) != 0


@triton.jit(do_not_specialize=["num_rows", "num_columns", "num_row_blocks", "num_runs"])
def sum_exactly_kernel(
    rows_ptr,  # (N, D)
    row_labels_ptr,  # (padded N,) int64
    row_scales_ptr,  # (padded N,) float32
    columns_ptr,  # (M, D)
    column_labels_ptr,  # (padded M,) int64
    column_scales_ptr,  # (padded M,) float32
    listed_ptr,  # (padded N, padded M) uint8, or None
    copies_ptr,  # (padded N,) int64, or (padded M,): operands.own_copies; or None
    left_over_ptr,  # (row tiles, column tiles) int8: not 0 where a tile is wanted; None: every one
    exact_sums_ptr,  # (4, slots, N) float32: shifts and totals of positives, then of negatives
    num_rows,
    num_columns,
    depth,
    row_stride,
    column_stride,
    listed_stride,
    num_row_blocks,
    num_runs,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    factor,
    fixed_shift,
    SELF_MODE: tl.constexpr,
    TRIANGLE: tl.constexpr,
    LABELS: tl.constexpr,  # plan.Labels
    COPIED: tl.constexpr,  # the side that has copies: "rows" or "columns"
    FORMULA: tl.constexpr,
    NORMALIZED: tl.constexpr,  # else products may overflow
    INPUT_PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    TILE_ROWS: tl.constexpr,  # of left_over
    TILE_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Sum the exponentials of one block of rows over one part of the wanted tiles of a run."""
    rows = Points(rows_ptr, row_labels_ptr, row_scales_ptr, num_rows, row_stride)
    columns = Points(columns_ptr, column_labels_ptr, column_scales_ptr, num_columns, column_stride)
    pairs = Pairs(rows, columns, depth)
    formula = Formula(
        Kind(vertex_pos, floor_pos, factor), Kind(vertex_neg, floor_neg, factor), fixed_shift
    )
    tl.static_assert((TILE_COLUMNS if TRIANGLE else TILE_ROWS) % BLOCK_ROWS == 0)
    PARTS: tl.constexpr = TILE_COLUMNS // BLOCK_COLUMNS
    row = tl.multiple_of(tl.program_id(0) % num_row_blocks * BLOCK_ROWS, BLOCK_ROWS)
    slot = tl.program_id(0) // num_row_blocks
    num_tiles = tl.cdiv(num_columns, TILE_COLUMNS)
    positives = no_sum(BLOCK_ROWS)
    negatives = no_sum(BLOCK_ROWS)
    for tile in range(slot // PARTS, num_tiles, num_runs):
        tile_column = tile * TILE_COLUMNS
        wanted = True
        if left_over_ptr is not None:
            wanted = is_left_over(
                left_over_ptr, row, tile_column, num_tiles, TRIANGLE, TILE_ROWS, TILE_COLUMNS
            )
        if wanted:
            column = tl.multiple_of(tile_column + slot % PARTS * BLOCK_COLUMNS, BLOCK_COLUMNS)
            products = tile_products(
                pairs,
                row,
                column,
                (INPUT_PRECISION, EVEN_DEPTH, NORMALIZED, BLOCK_DEPTH),
                BLOCK_ROWS,
                BLOCK_COLUMNS,
            )
            scales = pair_scales(pairs, row, column, BLOCK_ROWS, BLOCK_COLUMNS)
            positive, counts, _ = pair_kinds(
                pairs,
                row,
                column,
                listed_ptr,
                listed_stride,
                copies_ptr,
                COPIED,
                SELF_MODE,
                LABELS,
                BLOCK_ROWS,
                BLOCK_COLUMNS,
            )
            # One kind after the other: together they would take twice the registers.
            positives = add_pairs(
                positives, products, scales, positive & counts, formula.positive, True, FORMULA
            )
            negatives = add_pairs(
                negatives,
                products,
                scales,
                (positive ^ True) & counts,
                formula.negative,
                False,
                FORMULA,
            )
    indices = row + tl.arange(0, BLOCK_ROWS)
    inside = indices < num_rows
    plane = num_runs.to(tl.int64) * PARTS * num_rows
    sums_ptr = exact_sums_ptr + slot.to(tl.int64) * num_rows + indices
    tl.store(sums_ptr, positives.shift, mask=inside)
    tl.store(sums_ptr + plane, positives.total, mask=inside)
    tl.store(sums_ptr + 2 * plane, negatives.shift, mask=inside)
    tl.store(sums_ptr + 3 * plane, negatives.total, mask=inside)
