"""Sums of exponentials over tiles: what the forward kernels do with products.

A sum is kept as a shift and the sum of 2^(exponent - shift). Nearly all tiles take the fixed shift;
``add_tile_exactly`` takes any.
"""

from __future__ import annotations

import triton
import triton.language as tl

from circle_kernels.backends.triton.formula import (
    mixed_distances,
    pair_distances,
    shifted_exponents,
)
from circle_kernels.backends.triton.primitives import (
    load_block,
    pair_scales,
    store_tile,
    tile_products,
)

# Sums against the fixed shift up to this one hold no exponential that a float32 cannot.
LARGEST_SUM = tl.constexpr(2.0**107)  # 2^100 from each of 128 pairs


@triton.jit
def empty_shifts(fixed_shift, BLOCK: tl.constexpr, FORMULA: tl.constexpr):
    """Shifts of empty sums: the fixed one, or for exponents without a lower bound none yet."""
    shift = -float("inf")
    if FORMULA == "circle":
        shift = fixed_shift
    return tl.zeros((BLOCK,), tl.float32) + shift


@triton.jit
def negative_exponentials(
    products,  # (R, C)
    scales,  # (R, C)
    vertex_neg,
    floor_neg,
    fixed_shift,
    FORMULA: tl.constexpr,
):
    """Exponentials, relative to the fixed shift, of a tile in which every pair is negative."""
    distances = pair_distances(products, scales, vertex_neg, floor_neg, False, FORMULA)
    shifts = tl.zeros(products.shape, tl.float32) + fixed_shift
    return tl.exp2(shifted_exponents(distances, shifts, FORMULA))


@triton.jit
def mixed_exponentials(
    products,  # (R, C)
    scales,  # (R, C)
    same,  # (R, C): whether a pair is positive
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    fixed_shift,
    FORMULA: tl.constexpr,
):
    """Exponentials, relative to the fixed shift, of a tile in which every pair counts."""
    distances = mixed_distances(
        products, scales, same, vertex_pos, floor_pos, vertex_neg, floor_neg, FORMULA
    )
    shifts = tl.zeros(products.shape, tl.float32) + fixed_shift
    return tl.exp2(shifted_exponents(distances, shifts, FORMULA))


@triton.jit
def add_pairs_exactly(
    shift,  # (A,)
    sums,  # (A,)
    products,  # (A, C)
    scales,  # (A, C)
    mask,  # (A, C): the pairs of this kind
    exclusions,  # (C,): 0, or infinity for padding
    vertex,
    floor,
    POSITIVE: tl.constexpr,
    FORMULA: tl.constexpr,
):
    """Take one kind of pair into its anchors' sums; shifts rise to the largest exponent."""
    distances = pair_distances(products, scales, vertex, floor, POSITIVE, FORMULA)
    exponents = shifted_exponents(distances, exclusions[None, :], FORMULA)
    exponents = tl.where(mask, exponents, -float("inf"))
    new_shift = tl.maximum(shift, tl.max(exponents, axis=1))
    # Nothing seen yet: any finite shift keeps the sum at 0, where -inf would make it NaN.
    finite = tl.where(new_shift == -float("inf"), 0.0, new_shift)
    tile_sums = tl.sum(tl.exp2(exponents - finite[:, None]), axis=1)
    return new_shift, sums * tl.exp2(shift - finite) + tile_sums


@triton.jit
def add_tile_exactly(
    shift_pos,  # (A,)
    sum_pos,  # (A,)
    shift_neg,  # (A,)
    sum_neg,  # (A,)
    anchors_ptr,  # (N, D)
    anchor_labels_ptr,  # (padded N,)
    anchor_scales_ptr,  # (padded N,)
    first_anchor,
    num_anchors,
    anchor_stride,
    others_ptr,  # (M, D)
    other_labels_ptr,  # (padded M,)
    other_scales_ptr,  # (padded M,)
    first_other,
    num_others,
    other_stride,
    kept_ptr,  # (padded N, padded M), if KEEP
    kept_stride,
    depth,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    SELF_MODE: tl.constexpr,
    KEEP: tl.constexpr,
    FORMULA: tl.constexpr,
    NORMALIZED: tl.constexpr,  # else products may overflow
    INPUT_PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_ANCHORS: tl.constexpr,
    BLOCK_OTHERS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    MAX_PART: tl.constexpr,
):
    """Take any tile into its anchors' sums, in parts narrow enough for masks and two logits."""
    PART: tl.constexpr = MAX_PART if BLOCK_OTHERS > MAX_PART else BLOCK_OTHERS
    anchors = first_anchor + tl.arange(0, BLOCK_ANCHORS)
    labels = load_block(anchor_labels_ptr, first_anchor, BLOCK_ANCHORS)
    scales = load_block(anchor_scales_ptr, first_anchor, BLOCK_ANCHORS)
    for start in range(first_other, first_other + BLOCK_OTHERS, PART):
        others = start + tl.arange(0, PART)
        products = tile_products(
            anchors_ptr,
            first_anchor,
            num_anchors,
            anchor_stride,
            others_ptr,
            start,
            num_others,
            other_stride,
            depth,
            NORMALIZED,
            INPUT_PRECISION,
            EVEN_DEPTH,
            BLOCK_ANCHORS,
            PART,
            BLOCK_DEPTH,
        )
        if KEEP:
            store_tile(kept_ptr, kept_stride, first_anchor, start, products)
        tile_scales = pair_scales(scales, load_block(other_scales_ptr, start, PART))
        same = labels[:, None] == load_block(other_labels_ptr, start, PART)[None, :]
        positive = same
        if SELF_MODE:
            # Padding is the last row again. To itself, too, it is neither positive nor negative:
            # excluded by an infinity it would bring a NaN of its own to a set that may be empty.
            given = tl.minimum(others, num_others - 1)
            positive = same & (anchors[:, None] != given[None, :])
        exclusions = tl.where(others < num_others, 0.0, float("inf"))
        # One kind after the other: together they would take twice the registers.
        shift_pos, sum_pos = add_pairs_exactly(
            shift_pos,
            sum_pos,
            products,
            tile_scales,
            positive,
            exclusions,
            vertex_pos,
            floor_pos,
            True,
            FORMULA,
        )
        shift_neg, sum_neg = add_pairs_exactly(
            shift_neg,
            sum_neg,
            products,
            tile_scales,
            same ^ True,
            exclusions,
            vertex_neg,
            floor_neg,
            False,
            FORMULA,
        )
    return shift_pos, sum_pos, shift_neg, sum_neg


@triton.jit
def store_sums(
    sums_ptr,  # (4, slots, anchors) float32: shift and sum of positives, then of negatives
    slot,
    num_slots,
    start,  # within the anchors
    num_anchors,
    shift_pos,
    sum_pos,
    shift_neg,
    sum_neg,
    BLOCK: tl.constexpr,
):
    """Store what one program found for a block of anchors."""
    block = tl.arange(0, BLOCK)
    inside = block < num_anchors - start
    stride = num_slots.to(tl.int64) * num_anchors
    sums_ptr += slot.to(tl.int64) * num_anchors + start
    tl.store(sums_ptr + block, shift_pos, mask=inside)
    tl.store(sums_ptr + stride + block, sum_pos, mask=inside)
    tl.store(sums_ptr + 2 * stride + block, shift_neg, mask=inside)
    tl.store(sums_ptr + 3 * stride + block, sum_neg, mask=inside)
