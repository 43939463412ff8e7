"""``dL/ds`` of a tile, from its products and the statistics of its anchors.

Anchors lie along a tile's rows, its columns or, in self mode, both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from circle_kernels.backends.triton.primitives import (
    FIXED_SHIFT,
    STATISTICS_BLOCK,
    labels_apart,
    load_block,
    mixed_distances,
    pair_distances,
    pair_scales,
    pair_slopes,
    shifted_exponents,
)


@triton.jit
def label_masks(
    row_labels,  # (R,)
    column_labels,  # (C,)
    rows,  # (R,)
    num_rows,
    columns,  # (C,)
    num_columns,
    SELF_MODE: tl.constexpr,
):
    """Say which pairs of a tile are positive and which negative; padding and self-pairs neither."""
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    same = row_labels[:, None] == column_labels[None, :]
    positive = same & inside
    if SELF_MODE:
        positive = positive & (rows[:, None] != columns[None, :])
    return positive, (same ^ True) & inside


@triton.jit
def padded_anchors(num_anchors):
    """Length of a row of the statistics' table."""
    return tl.cdiv(num_anchors, STATISTICS_BLOCK) * STATISTICS_BLOCK


@triton.jit
def load_statistics(
    table_ptr,  # (7, padded anchors)
    start,
    num_anchors,
    BLOCK: tl.constexpr,
):
    """Load log-sum-exps of exponents and upstream gradients of a block of anchors."""
    padded = padded_anchors(num_anchors)
    lse_pos = load_block(table_ptr, start, BLOCK)
    lse_neg = load_block(table_ptr + padded, start, BLOCK)
    grad_pos = load_block(table_ptr + 2 * padded, start, BLOCK)
    grad_neg = load_block(table_ptr + 3 * padded, start, BLOCK)
    return lse_pos, lse_neg, grad_pos, grad_neg


@triton.jit
def load_factors(
    table_ptr,  # (7, padded anchors)
    start,
    num_anchors,
    BLOCK: tl.constexpr,
):
    """Load what exponentials against the fixed shift are multiplied by, for a block of anchors."""
    padded = padded_anchors(num_anchors)
    factor_pos = load_block(table_ptr + 4 * padded, start, BLOCK)
    factor_neg = load_block(table_ptr + 5 * padded, start, BLOCK)
    return factor_pos, factor_neg


@triton.jit
def fixed_shift_serves(
    table_ptr,  # (7, padded anchors)
    start,
    num_anchors,
):
    """Say whether exponentials against the fixed shift are as good as any for a block's anchors.

    No exponent of a pair exceeds the log-sum-exps that it is part of.
    """
    padded = padded_anchors(num_anchors)
    return tl.load(table_ptr + 6 * padded + start // STATISTICS_BLOCK) <= 2 * FIXED_SHIFT


@triton.jit
def gradient_by_fixed_shift(
    products,  # (R, C)
    scales,  # (R, C)
    same,  # (R, C): whether a pair is positive, if not ONLY_NEGATIVES
    row_table_ptr,
    row_start,
    num_rows,
    column_table_ptr,
    column_start,
    num_columns,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    ONLY_NEGATIVES: tl.constexpr,
    ROW_ANCHORS: tl.constexpr,
    COLUMN_ANCHORS: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
):
    """Compute dL/ds of a tile in which every pair counts, from one exponential per pair.

    For circle logits and anchors that the fixed shift serves.
    """
    factor_pos = tl.zeros((1, 1), tl.float32)
    factor_neg = tl.zeros((1, 1), tl.float32)
    if ROW_ANCHORS:
        row_pos, row_neg = load_factors(row_table_ptr, row_start, num_rows, products.shape[0])
        factor_pos += row_pos[:, None]
        factor_neg += row_neg[:, None]
    if COLUMN_ANCHORS:
        column_pos, column_neg = load_factors(
            column_table_ptr, column_start, num_columns, products.shape[1]
        )
        factor_pos = factor_pos + column_pos[None, :]
        factor_neg = factor_neg + column_neg[None, :]
    if ONLY_NEGATIVES:
        distances = pair_distances(products, scales, vertex_neg, floor_neg, False, "circle")
        factors, floors = factor_neg, floor_neg
    else:
        distances = mixed_distances(
            products, scales, same, vertex_pos, floor_pos, vertex_neg, floor_neg, "circle"
        )
        factors = tl.where(same, factor_pos, factor_neg)
        floors = tl.where(same, floor_pos, floor_neg)
    # Sign and scale are in the factors.
    slopes = pair_slopes(distances, floors, 1.0, False, "circle", DETACH_WEIGHTS)
    shifts = tl.full(products.shape, FIXED_SHIFT, tl.float32)
    exponentials = tl.exp2(shifted_exponents(distances, shifts, "circle"))
    return exponentials * factors * slopes


@triton.jit
def exact_gradient(
    products,  # (R, C)
    scales,  # (R, C)
    positive,  # (R, C)
    negative,  # (R, C)
    row_table_ptr,
    row_start,
    num_rows,
    column_table_ptr,
    column_start,
    num_columns,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    slope_scale,
    ROW_ANCHORS: tl.constexpr,
    COLUMN_ANCHORS: tl.constexpr,
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
):
    """Compute dL/ds of any tile, from one exponential per pair and side of anchors."""
    distances = mixed_distances(
        products, scales, positive, vertex_pos, floor_pos, vertex_neg, floor_neg, FORMULA
    )
    weights = tl.zeros(products.shape, dtype=tl.float32)
    if ROW_ANCHORS:
        lse_pos, lse_neg, grad_pos, grad_neg = load_statistics(
            row_table_ptr, row_start, num_rows, products.shape[0]
        )
        shifts = tl.where(positive, lse_pos[:, None], lse_neg[:, None])
        share = tl.exp2(shifted_exponents(distances, shifts, FORMULA))
        weights += share * tl.where(positive, grad_pos[:, None], grad_neg[:, None])
    if COLUMN_ANCHORS:
        lse_pos, lse_neg, grad_pos, grad_neg = load_statistics(
            column_table_ptr, column_start, num_columns, products.shape[1]
        )
        shifts = tl.where(positive, lse_pos[None, :], lse_neg[None, :])
        share = tl.exp2(shifted_exponents(distances, shifts, FORMULA))
        weights += share * tl.where(positive, grad_pos[None, :], grad_neg[None, :])
    slopes = tl.where(
        positive,
        pair_slopes(distances, floor_pos, slope_scale, True, FORMULA, DETACH_WEIGHTS),
        pair_slopes(distances, floor_neg, slope_scale, False, FORMULA, DETACH_WEIGHTS),
    )
    # Selected, not multiplied: what stands at a pair that is in neither set may be inf or NaN.
    return tl.where(positive | negative, weights * slopes, 0.0)


@triton.jit
def tile_gradient(
    products,  # (R, C)
    row_labels_ptr,  # (padded N,)
    row_scales_ptr,  # (padded N,)
    row_table_ptr,  # (7, padded N) where rows are anchors
    row_start,
    num_rows,
    column_labels_ptr,  # (padded M,)
    column_scales_ptr,  # (padded M,)
    column_table_ptr,  # (7, padded M) where columns are anchors
    column_start,
    num_columns,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    slope_scale,
    SELF_MODE: tl.constexpr,
    SORTED: tl.constexpr,
    ROW_ANCHORS: tl.constexpr,
    COLUMN_ANCHORS: tl.constexpr,
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
    ONE_BODY: tl.constexpr,  # for kernels that have no registers for two
):
    """Compute dL/ds of a tile by the cheapest body that is exact; 0 for pairs that do not count.

    In self mode every embedding is an anchor on both sides and the result is G + G.T.
    """
    BLOCK_ROWS: tl.constexpr = products.shape[0]
    BLOCK_COLUMNS: tl.constexpr = products.shape[1]
    scales = pair_scales(
        load_block(row_scales_ptr, row_start, BLOCK_ROWS),
        load_block(column_scales_ptr, column_start, BLOCK_COLUMNS),
    )
    # Whether every pair counts, and if sorted, as a negative one.
    plain = (row_start + BLOCK_ROWS <= num_rows) & (column_start + BLOCK_COLUMNS <= num_columns)
    if SELF_MODE:
        plain = plain & (
            (column_start >= row_start + BLOCK_ROWS) | (row_start >= column_start + BLOCK_COLUMNS)
        )
    if SORTED:
        plain = plain & labels_apart(
            row_labels_ptr,
            row_start,
            column_labels_ptr,
            column_start,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
    if ROW_ANCHORS:
        plain = plain & fixed_shift_serves(row_table_ptr, row_start, num_rows)
    if COLUMN_ANCHORS:
        plain = plain & fixed_shift_serves(column_table_ptr, column_start, num_columns)
    if ONE_BODY or FORMULA != "circle":
        plain = False
    if plain:
        same = tl.zeros((1, 1), tl.int32) != 0
        if not SORTED:
            row_labels = load_block(row_labels_ptr, row_start, BLOCK_ROWS)
            column_labels = load_block(column_labels_ptr, column_start, BLOCK_COLUMNS)
            same = row_labels[:, None] == column_labels[None, :]
        gradient = gradient_by_fixed_shift(
            products,
            scales,
            same,
            row_table_ptr,
            row_start,
            num_rows,
            column_table_ptr,
            column_start,
            num_columns,
            vertex_pos,
            floor_pos,
            vertex_neg,
            floor_neg,
            SORTED,
            ROW_ANCHORS,
            COLUMN_ANCHORS,
            DETACH_WEIGHTS,
        )
    else:
        positive, negative = label_masks(
            load_block(row_labels_ptr, row_start, BLOCK_ROWS),
            load_block(column_labels_ptr, column_start, BLOCK_COLUMNS),
            row_start + tl.arange(0, BLOCK_ROWS),
            num_rows,
            column_start + tl.arange(0, BLOCK_COLUMNS),
            num_columns,
            SELF_MODE,
        )
        gradient = exact_gradient(
            products,
            scales,
            positive,
            negative,
            row_table_ptr,
            row_start,
            num_rows,
            column_table_ptr,
            column_start,
            num_columns,
            vertex_pos,
            floor_pos,
            vertex_neg,
            floor_neg,
            slope_scale,
            ROW_ANCHORS,
            COLUMN_ANCHORS,
            FORMULA,
            DETACH_WEIGHTS,
        )
    return gradient
