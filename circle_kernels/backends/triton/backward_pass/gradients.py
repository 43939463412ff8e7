"""``dL/ds`` of a tile times both of its scales, from products and the statistics of anchors.

Anchors lie along a tile's rows or, in self mode, along rows and columns. With both scales in them
weights serve either side: a side's sums are then its gradient but for its own norms, and in self
mode the weight of (j, i) is that of (i, j).
"""

from __future__ import annotations

import triton
import triton.language as tl

from circle_kernels.backends.triton.formula import (
    REACH,
    mixed_distances,
    pair_distances,
    pair_slopes,
    shifted_exponents,
)
from circle_kernels.backends.triton.primitives import LN_2, STATISTICS_BLOCK


@triton.jit
def statistics_block(
    table_ptr,  # (blocks, 7, STATISTICS_BLOCK)
    start,
):
    """Point to the first of the statistics of the anchors from ``start`` on."""
    block = start // STATISTICS_BLOCK
    return table_ptr + (block * (7 * STATISTICS_BLOCK) + start % STATISTICS_BLOCK)


@triton.jit
def load_statistics(
    table_ptr,
    start,
    BLOCK: tl.constexpr,
):
    """Load log-sum-exps of exponents and upstream gradients of a block of anchors."""
    block_ptr = statistics_block(table_ptr, start) + tl.arange(0, BLOCK)
    lse_pos = tl.load(block_ptr)
    lse_neg = tl.load(block_ptr + STATISTICS_BLOCK)
    grad_pos = tl.load(block_ptr + 2 * STATISTICS_BLOCK)
    grad_neg = tl.load(block_ptr + 3 * STATISTICS_BLOCK)
    return lse_pos, lse_neg, grad_pos, grad_neg


@triton.jit
def load_factors(
    table_ptr,
    start,
    BLOCK: tl.constexpr,
):
    """Load what exponentials against the fixed shift are multiplied by, for a block of anchors."""
    block_ptr = statistics_block(table_ptr, start) + tl.arange(0, BLOCK)
    factor_pos = tl.load(block_ptr + 4 * STATISTICS_BLOCK)
    factor_neg = tl.load(block_ptr + 5 * STATISTICS_BLOCK)
    return factor_pos, factor_neg


@triton.jit
def fixed_shift_serves(
    table_ptr,
    start,
    fixed_shift,
):
    """Say whether exponentials against the fixed shift are as good as any for a block's anchors.

    No exponent of a pair exceeds the log-sum-exps that it is part of.
    """
    block = start // STATISTICS_BLOCK
    highest = tl.load(table_ptr + (block * 7 + 6) * STATISTICS_BLOCK)
    return highest <= fixed_shift + REACH


@triton.jit
def weights_by_fixed_shift(
    products,  # (R, C)
    scales,  # (R, C)
    same,  # (R, C): whether a pair is positive, if not ONLY_NEGATIVES
    table_ptr,
    row_start,
    column_start,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    fixed_shift,
    ONLY_NEGATIVES: tl.constexpr,
    SELF_MODE: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
):
    """Compute weights of a tile in which every pair counts, from one exponential per pair.

    For circle logits and anchors that the fixed shift serves.
    """
    row_pos, row_neg = load_factors(table_ptr, row_start, products.shape[0])
    factor_pos, factor_neg = row_pos[:, None], row_neg[:, None]
    if SELF_MODE:
        column_pos, column_neg = load_factors(table_ptr, column_start, products.shape[1])
        factor_pos += column_pos[None, :]
        factor_neg += column_neg[None, :]
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
    shifts = tl.zeros(products.shape, tl.float32) + fixed_shift
    exponentials = tl.exp2(shifted_exponents(distances, shifts, "circle"))
    return exponentials * factors * slopes * scales


@triton.jit
def exact_weights(
    products,  # (R, C)
    scales,  # (R, C)
    positive,  # (R, C)
    negative,  # (R, C)
    table_ptr,
    row_start,
    column_start,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    SELF_MODE: tl.constexpr,
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
):
    """Compute weights of any tile, from one exponential per pair and side of anchors."""
    distances = mixed_distances(
        products, scales, positive, vertex_pos, floor_pos, vertex_neg, floor_neg, FORMULA
    )
    lse_pos, lse_neg, grad_pos, grad_neg = load_statistics(table_ptr, row_start, products.shape[0])
    shifts = tl.where(positive, lse_pos[:, None], lse_neg[:, None])
    shares = tl.exp2(shifted_exponents(distances, shifts, FORMULA))
    weights = shares * tl.where(positive, grad_pos[:, None], grad_neg[:, None])
    if SELF_MODE:
        lse_pos, lse_neg, grad_pos, grad_neg = load_statistics(
            table_ptr, column_start, products.shape[1]
        )
        shifts = tl.where(positive, lse_pos[None, :], lse_neg[None, :])
        shares = tl.exp2(shifted_exponents(distances, shifts, FORMULA))
        weights += shares * tl.where(positive, grad_pos[None, :], grad_neg[None, :])
    slopes = tl.where(
        positive,
        pair_slopes(distances, floor_pos, LN_2, True, FORMULA, DETACH_WEIGHTS),
        pair_slopes(distances, floor_neg, LN_2, False, FORMULA, DETACH_WEIGHTS),
    )
    # Selected, not multiplied: what stands at a pair that is in neither set may be inf or NaN.
    return tl.where(positive | negative, weights * slopes * scales, 0.0)
