"""``dL/ds`` of a tile times both of its scales, from products and the statistics of anchors.

Anchors lie along a tile's rows or, where pairs count for their columns as in self mode, along rows
and columns. With both scales in them weights serve either side: a side's sums are then its gradient
but for its own norms, and in self mode the weight of (j, i) is that of (i, j).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from circle_kernels.backends.triton.formula.pairs import (
    REACH,
    mixed_distances,
    mixed_slopes,
    pair_distances,
    pair_floors,
    pair_slopes,
    shifted_exponentials,
    shifted_exponents,
)
from circle_kernels.backends.triton.primitives import STATISTICS_BLOCK, pair_kinds, pair_scales

# Rows of each block of the table of statistics: what each kind has, and one number for the block.
LSE = tl.constexpr(0)  # log-sum-exps of exponents
UPSTREAM = tl.constexpr(2)  # gradients, times formula.slope_scales
FACTOR = tl.constexpr(4)  # the same, of exponentials against the fixed shift
HIGHEST = tl.constexpr(6)  # log-sum-exp that exponentials have to hold, or infinity: no factor does
TABLE_ROWS = tl.constexpr(7)


class ByKind(NamedTuple):
    """A number of each anchor for positives, and one for negatives."""

    positive: tl.tensor
    negative: tl.tensor


class Anchors(NamedTuple):
    """What weights take of anchors, to be broadcast along a tile."""

    lse: ByKind  # of exponents
    upstream: ByKind  # gradients, times formula.slope_scales


@triton.jit
def statistics_block(table_ptr, start):
    """Point to the first of the statistics of the anchors from ``start`` on."""
    block = start // STATISTICS_BLOCK
    return table_ptr + (block * (TABLE_ROWS * STATISTICS_BLOCK) + start % STATISTICS_BLOCK)


@triton.jit
def load_statistic(table_ptr, start, ROW: tl.constexpr, BLOCK: tl.constexpr):
    """Load one of the statistics of a block of anchors, of both kinds."""
    block_ptr = statistics_block(table_ptr, start) + tl.arange(0, BLOCK)
    positive = tl.load(block_ptr + ROW * STATISTICS_BLOCK)
    return ByKind(positive, tl.load(block_ptr + (ROW + 1) * STATISTICS_BLOCK))


@triton.jit
def fixed_shift_serves(table_ptr, start, fixed_shift):
    """Say whether exponentials against the fixed shift are as good as any for a block's anchors.

    No exponent of a pair exceeds the log-sum-exps that it is part of.
    """
    block = start // STATISTICS_BLOCK
    highest = tl.load(table_ptr + (block * TABLE_ROWS + HIGHEST) * STATISTICS_BLOCK)
    return highest <= fixed_shift + REACH


@triton.jit
def of_kind(positive, numbers):
    """Each pair's number: that of its kind."""
    return tl.where(positive, numbers.positive, numbers.negative)


@triton.jit
def along_rows(numbers):
    """Numbers of a tile's rows, to be broadcast."""
    return ByKind(numbers.positive[:, None], numbers.negative[:, None])


@triton.jit
def along_columns(numbers):
    """Numbers of a tile's columns, to be broadcast."""
    return ByKind(numbers.positive[None, :], numbers.negative[None, :])


@triton.jit
def plain_weights(
    products,  # (R, C)
    scales,  # (R, C)
    kinds,  # of pair_kinds; (R, C)
    table_ptr,
    column_table_ptr,  # or None: pairs count for rows only
    row,
    column,
    formula,  # Formula
    CONSTANTS: tl.constexpr,  # (SELF_MODE, LABELS, FORMULA, DETACH_WEIGHTS) of the kernel
):
    """Compute weights where the fixed shift serves all anchors, from one exponential per pair."""
    LABELS: tl.constexpr = CONSTANTS[1]
    FORMULA: tl.constexpr = CONSTANTS[2]
    DETACH_WEIGHTS: tl.constexpr = CONSTANTS[3]
    BOTH_KINDS: tl.constexpr = LABELS == "any order" or LABELS == "listed"
    positive, for_row, for_column = kinds
    rows = along_rows(load_statistic(table_ptr, row, FACTOR, products.shape[0]))
    columns = rows
    if column_table_ptr is not None:
        columns = along_columns(load_statistic(column_table_ptr, column, FACTOR, products.shape[1]))
    if BOTH_KINDS:
        distances = mixed_distances(products, scales, positive, formula, FORMULA)
        floors = pair_floors(positive, formula, FORMULA)
    else:
        distances = pair_distances(products, scales, formula.negative, False, FORMULA)
        floors = formula.negative.floor
    exponentials = shifted_exponentials(distances, formula.fixed_shift, FORMULA)
    if LABELS == "listed":
        factors = tl.where(for_row, of_kind(positive, rows), 0.0)
        if column_table_ptr is not None:
            factors += tl.where(for_column, of_kind(positive, columns), 0.0)
    elif column_table_ptr is not None:
        factors = rows.negative + columns.negative
        if BOTH_KINDS:
            factors = tl.where(positive, rows.positive + columns.positive, factors)
    else:
        factors = rows.negative
        if BOTH_KINDS:
            factors = of_kind(positive, rows)
    slopes = pair_slopes(distances, floors, FORMULA, DETACH_WEIGHTS)
    weights = exponentials * factors * slopes * scales
    if LABELS == "listed":
        # Selected, not multiplied: what stands at a pair that counts for nobody may be inf or NaN.
        weights = tl.where(for_row | for_column, weights, 0.0)
    return weights


@triton.jit
def exact_weights(
    products,  # (R, C)
    scales,  # (R, C)
    kinds,  # of pair_kinds: whether a pair is positive, and counts for row and column; (R, C)
    rows,  # Anchors along the rows
    columns,  # Anchors along the columns, if COLUMNS_COUNT
    formula,  # Formula
    COLUMNS_COUNT: tl.constexpr,  # whether pairs count for their columns, too
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
):
    """Compute weights of any tile, from one exponential per pair and side of anchors."""
    positive, for_row, for_column = kinds
    distances = mixed_distances(products, scales, positive, formula, FORMULA)
    shares = tl.exp2(shifted_exponents(distances, of_kind(positive, rows.lse), FORMULA))
    # Selected, not multiplied: what stands at a pair that is in neither set may be inf or NaN.
    weights = tl.where(for_row, shares * of_kind(positive, rows.upstream), 0.0)
    counts = for_row
    if COLUMNS_COUNT:
        shares = tl.exp2(shifted_exponents(distances, of_kind(positive, columns.lse), FORMULA))
        weights += tl.where(for_column, shares * of_kind(positive, columns.upstream), 0.0)
        counts = for_row | for_column
    slopes = mixed_slopes(products, scales, positive, distances, formula, FORMULA, DETACH_WEIGHTS)
    return tl.where(counts, weights * slopes * scales, 0.0)


@triton.jit
def pair_weights(
    products,  # (R, C)
    pairs,
    row,
    column,
    listed_ptr,  # if LABELS is "listed"
    listed_stride,
    copies_ptr,  # or None
    table_ptr,
    column_table_ptr,  # or None: pairs count for rows only
    formula,  # Formula
    SERVED: tl.constexpr,  # whether the fixed shift serves all anchors
    CONSTANTS: tl.constexpr,  # (SELF_MODE, LABELS, FORMULA, DETACH_WEIGHTS) of the kernel
):
    """Compute the weights of a block, or of a slice of it."""
    SELF_MODE: tl.constexpr = CONSTANTS[0]
    LABELS: tl.constexpr = CONSTANTS[1]
    FORMULA: tl.constexpr = CONSTANTS[2]
    DETACH_WEIGHTS: tl.constexpr = CONSTANTS[3]
    ROWS: tl.constexpr = products.shape[0]
    COLUMNS: tl.constexpr = products.shape[1]
    scales = pair_scales(pairs, row, column, ROWS, COLUMNS)
    kinds = pair_kinds(
        pairs,
        row,
        column,
        listed_ptr,
        listed_stride,
        copies_ptr,
        "rows",
        SELF_MODE,
        LABELS,
        ROWS,
        COLUMNS,
    )
    if SERVED:
        weights = plain_weights(
            products, scales, kinds, table_ptr, column_table_ptr, row, column, formula, CONSTANTS
        )
    else:
        # Put together here: in Triton 3.3 functions return no tuples of tuples.
        rows = Anchors(
            along_rows(load_statistic(table_ptr, row, LSE, ROWS)),
            along_rows(load_statistic(table_ptr, row, UPSTREAM, ROWS)),
        )
        columns = rows
        COLUMNS_COUNT: tl.constexpr = column_table_ptr is not None
        if COLUMNS_COUNT:
            columns = Anchors(
                along_columns(load_statistic(column_table_ptr, column, LSE, COLUMNS)),
                along_columns(load_statistic(column_table_ptr, column, UPSTREAM, COLUMNS)),
            )
        weights = exact_weights(
            products, scales, kinds, rows, columns, formula, COLUMNS_COUNT, FORMULA, DETACH_WEIGHTS
        )
    return weights
