"""Forward pass over the tiles that sums against the fixed shift cannot hold, each for its rows.

Sums carry a shift of their own, which rises to the largest exponent. Where columns count pairs as
rows do, every tile is summed here, and one product serves both.
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
def pair_exponents(
    products,  # (R, C)
    scales,  # (R, C)
    mask,  # (R, C): the pairs of this kind
    kind,  # Kind
    POSITIVE: tl.constexpr,
    FORMULA: tl.constexpr,
):
    """Compute the exponents of one kind of pair, -inf of all others."""
    distances = pair_distances(products, scales, kind, POSITIVE, FORMULA)
    exponents = shifted_exponents(distances, tl.zeros(products.shape, tl.float32), FORMULA)
    return tl.where(mask, exponents, -float("inf"))


@triton.jit
def add_exponents(
    sums,  # Sum of R rows, or of C columns
    exponents,  # (R, C)
    AXIS: tl.constexpr,  # that is summed over: 1 for rows, 0 for columns
):
    """Take exponents into the sums of their rows, or of their columns."""
    shift = tl.maximum(sums.shift, tl.max(exponents, axis=AXIS))
    finite = tl.where(shift == -float("inf"), 0.0, shift)
    total = tl.sum(tl.exp2(exponents - tl.expand_dims(finite, AXIS)), axis=AXIS)
    return Sum(shift, sums.total * tl.exp2(sums.shift - finite) + total)


@triton.jit
def store_sums(
    sums_ptr,  # (2, slots, length) float32, at the slot: shifts, then totals
    plane,  # numbers of all slots
    indices,
    length,
    sums,  # Sum
):
    """Store sums of one slot."""
    tl.store(sums_ptr + indices, sums.shift, mask=indices < length)
    tl.store(sums_ptr + plane + indices, sums.total, mask=indices < length)


@triton.jit
def sum_kind(
    sums,  # Sum of R rows
    column_sums_ptr,  # (4, slots, M) float32, at the slot of the rows; None: not wanted
    pairs,
    column,
    num_slots,
    products,  # (R, C)
    scales,  # (R, C)
    mask,  # (R, C): the pairs of this kind
    kind,  # Kind
    POSITIVE: tl.constexpr,
    FORMULA: tl.constexpr,
):
    """Take one kind of pair of a tile into its rows' sums, and leave those of its columns."""
    BLOCK_COLUMNS: tl.constexpr = products.shape[1]
    exponents = pair_exponents(products, scales, mask, kind, POSITIVE, FORMULA)
    if column_sums_ptr is not None:
        plane = num_slots.to(tl.int64) * pairs.columns.length
        if not POSITIVE:
            column_sums_ptr += 2 * plane
        column_sums = add_exponents(no_sum(BLOCK_COLUMNS), exponents, 0)
        columns = column + tl.arange(0, BLOCK_COLUMNS)
        store_sums(column_sums_ptr, plane, columns, pairs.columns.length, column_sums)
    return add_exponents(sums, exponents, 1)


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


@triton.jit(
    do_not_specialize=["num_rows", "num_columns", "first_row", "num_row_blocks", "num_runs"]
)
def sum_exactly_kernel(
    rows_ptr,  # (N, D)
    row_labels_ptr,  # (padded N,) int64
    row_scales_ptr,  # (padded N,) float32
    columns_ptr,  # (M, D)
    column_labels_ptr,  # (padded M,) int64
    column_scales_ptr,  # (padded M,) float32
    listed_ptr,  # (padded N, padded M) uint8, or None
    copies_ptr,  # (padded N,) int64: operands.own_copies; or None
    left_over_ptr,  # (row tiles, column tiles) int8: not 0 where a tile is wanted; None: every one
    exact_sums_ptr,  # (4, slots, N) float32: shifts and totals of positives, then of negatives
    column_sums_ptr,  # (4, row blocks of the band, M) float32: those of columns; or None
    num_rows,
    num_columns,
    depth,
    row_stride,
    column_stride,
    listed_stride,
    first_row,  # of the band
    num_row_blocks,  # in the band
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
    row_block = tl.program_id(0) % num_row_blocks
    row = tl.multiple_of(first_row + row_block * BLOCK_ROWS, BLOCK_ROWS)
    slot = tl.program_id(0) // num_row_blocks
    num_tiles = tl.cdiv(num_columns, TILE_COLUMNS)
    if column_sums_ptr is not None:
        column_sums_ptr += row_block.to(tl.int64) * num_columns
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
                "rows",
                SELF_MODE,
                LABELS,
                BLOCK_ROWS,
                BLOCK_COLUMNS,
            )
            # One kind after the other: together they would take twice the registers.
            positives = sum_kind(
                positives,
                column_sums_ptr,
                pairs,
                column,
                num_row_blocks,
                products,
                scales,
                positive & counts,
                formula.positive,
                True,
                FORMULA,
            )
            negatives = sum_kind(
                negatives,
                column_sums_ptr,
                pairs,
                column,
                num_row_blocks,
                products,
                scales,
                (positive ^ True) & counts,
                formula.negative,
                False,
                FORMULA,
            )
    indices = row + tl.arange(0, BLOCK_ROWS)
    plane = num_runs.to(tl.int64) * PARTS * num_rows
    exact_sums_ptr += slot.to(tl.int64) * num_rows
    store_sums(exact_sums_ptr, plane, indices, num_rows, positives)
    store_sums(exact_sums_ptr + 2 * plane, plane, indices, num_rows, negatives)
