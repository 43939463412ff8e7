"""What forward and backward kernels share: tiles, masks, the pair formulas, the online sum.

Logits are in base 2 throughout (``log2(e)`` is folded into gamma), so that every exponential is a
single hardware ``exp2``. Derivations: docs/derivation.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_tile(
    matrix_ptr,  # (num_rows, depth), unit stride along the depth
    rows,  # (R,)
    num_rows,
    row_stride,
    depths,  # (K,)
    depth,
):
    """Load (R, K) entries, zero outside the matrix; offsets are 64-bit."""
    offsets = rows.to(tl.int64)[:, None] * row_stride + depths[None, :]
    inside = (rows < num_rows)[:, None] & (depths < depth)[None, :]
    return tl.load(matrix_ptr + offsets, mask=inside, other=0.0)


@triton.jit
def multiply_add(
    left,  # (R, K)
    right,  # (K, C)
    sums,  # (R, C) float32
    INPUT_PRECISION: tl.constexpr,
):
    """Add a matrix product to float32 sums at one of the precisions of ``dot_precision``."""
    if INPUT_PRECISION == "float64":
        # sums + product rather than a dot onto the sums, so that the product is rounded once.
        sums += tl.dot(left.to(tl.float64), right.to(tl.float64)).to(tl.float32)
    else:
        sums = tl.dot(left, right, sums, input_precision=INPUT_PRECISION)
    return sums


@triton.jit
def similarity_tile(
    rows_ptr,
    rows,  # (R,)
    num_rows,
    row_stride,
    columns_ptr,
    columns,  # (C,)
    num_columns,
    column_stride,
    depth,
    row_scales,  # (R,)
    column_scales,  # (C,)
    BLOCK_DEPTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Compute the (R, C) similarities: products over chunks of the depth, scaled in float32."""
    products = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        depths = start + tl.arange(0, BLOCK_DEPTH)
        row_chunk = load_tile(rows_ptr, rows, num_rows, row_stride, depths, depth)
        column_chunk = load_tile(columns_ptr, columns, num_columns, column_stride, depths, depth)
        products = multiply_add(row_chunk, tl.trans(column_chunk), products, INPUT_PRECISION)
    return scale_products(products, row_scales, column_scales)


@triton.jit
def scale_products(
    products,  # (R, C)
    row_scales,  # (R,)
    column_scales,  # (C,)
):
    """Turn inner products of operands into similarities, the same for (i, j) as for (j, i).

    The scales are multiplied first: a pair whose two roundings differed would have its logit
    exponentiated against a log-sum-exp that saw another one.
    """
    return products * (row_scales[:, None] * column_scales[None, :])


@triton.jit
def label_masks(
    row_labels,  # (R,)
    column_labels,  # (C,)
    rows,  # (R,)
    columns,  # (C,)
    num_columns,
    SELF_MODE: tl.constexpr,
):
    """Say which pairs of a tile are positive and which negative; padding and self-pairs neither."""
    inside = (columns < num_columns)[None, :]
    same = row_labels[:, None] == column_labels[None, :]
    positive = same & inside
    if SELF_MODE:
        positive = positive & (rows[:, None] != columns[None, :])
    return positive, (same ^ True) & inside


@triton.jit
def pair_logits(
    similarity,
    gamma,
    optimum,
    margin,
    POSITIVE: tl.constexpr,
    FORMULA: tl.constexpr,
):
    """Compute base-2 pair logits of one kind of pair.

    Circle logits come as a completed square: gamma ((clamped s - vertex)^2 - half_width^2).
    """
    scale = gamma * LOG2_E
    if FORMULA == "unified":
        logits = scale * (margin - similarity) if POSITIVE else scale * (similarity - margin)
    else:
        vertex = 0.5 * (optimum + margin)
        half_width = 0.5 * (optimum - margin)
        # The optimum lies half a width from the vertex: a clamped pair's logit is exactly 0. The
        # clamp must let NaN through, or a NaN embedding would end in a finite loss.
        if POSITIVE:
            distance = tl.maximum(
                vertex - similarity, -half_width, propagate_nan=tl.PropagateNan.ALL
            )
        else:
            distance = tl.maximum(
                similarity - vertex, half_width, propagate_nan=tl.PropagateNan.ALL
            )
        logits = scale * distance * distance - scale * half_width * half_width
    return logits


@triton.jit
def pair_slopes(
    similarity,
    gamma,
    optimum,
    margin,
    POSITIVE: tl.constexpr,
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
):
    """Compute dz/ds (natural units) of one kind of pair: the paper's Eq. 9 and 10 if detached."""
    if FORMULA == "unified":
        slopes = tl.full(similarity.shape, 1.0, tl.float32) * (-gamma if POSITIVE else gamma)
    elif DETACH_WEIGHTS:
        if POSITIVE:
            slopes = -gamma * tl.maximum(optimum - similarity, 0.0)
        else:
            slopes = gamma * tl.maximum(similarity - optimum, 0.0)
    else:
        clamped = similarity >= optimum if POSITIVE else similarity <= optimum
        slopes = tl.where(clamped, 0.0, gamma * (2.0 * similarity - optimum - margin))
    return slopes


@triton.jit
def accumulate_logsumexp(
    running_max,  # (R,)
    running_sum,  # (R,)
    logits,  # (R, C), base 2
    mask,  # (R, C)
):
    """Take one tile into a row-wise online log-sum-exp; empty rows keep (-inf, 0)."""
    logits = tl.where(mask, logits, -float("inf"))
    new_max = tl.maximum(running_max, tl.max(logits, axis=1))
    # Nothing seen yet: any finite shift keeps the sum at 0, where -inf would make it NaN.
    shift = tl.where(new_max == -float("inf"), 0.0, new_max)
    tile_sum = tl.sum(tl.exp2(logits - shift[:, None]), axis=1)
    return new_max, running_sum * tl.exp2(running_max - shift) + tile_sum


@triton.jit
def load_statistics(
    statistics_ptr,  # (4, num_anchors): base-2 lse_pos, lse_neg; grad_lse_pos, grad_lse_neg
    anchors,  # (A,)
    num_anchors,
):
    """Load what the backward pass knows of some anchors."""
    inside = anchors < num_anchors
    lse_pos = tl.load(statistics_ptr + anchors, mask=inside, other=0.0)
    statistics_ptr += num_anchors
    lse_neg = tl.load(statistics_ptr + anchors, mask=inside, other=0.0)
    statistics_ptr += num_anchors
    grad_pos = tl.load(statistics_ptr + anchors, mask=inside, other=0.0)
    statistics_ptr += num_anchors
    grad_neg = tl.load(statistics_ptr + anchors, mask=inside, other=0.0)
    return lse_pos, lse_neg, grad_pos, grad_neg


@triton.jit
def similarity_gradient(
    similarity,  # (R, C)
    positive,  # (R, C)
    negative,  # (R, C)
    row_statistics_ptr,
    rows,  # (R,)
    num_rows,
    column_statistics_ptr,
    columns,  # (C,)
    num_columns,
    gamma,
    optimum_pos,
    optimum_neg,
    margin_pos,
    margin_neg,
    ROW_ANCHORS: tl.constexpr,
    COLUMN_ANCHORS: tl.constexpr,
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
):
    """Compute dL/ds of a tile from the anchors that lie along its rows, its columns or both.

    In self mode every embedding is an anchor on both sides and the result is G + G.T.
    """
    logits = tl.where(
        positive,
        pair_logits(similarity, gamma, optimum_pos, margin_pos, True, FORMULA),
        pair_logits(similarity, gamma, optimum_neg, margin_neg, False, FORMULA),
    )
    weights = tl.zeros(similarity.shape, dtype=tl.float32)
    if ROW_ANCHORS:
        lse_pos, lse_neg, grad_pos, grad_neg = load_statistics(row_statistics_ptr, rows, num_rows)
        share = tl.exp2(logits - tl.where(positive, lse_pos[:, None], lse_neg[:, None]))
        weights += share * tl.where(positive, grad_pos[:, None], grad_neg[:, None])
    if COLUMN_ANCHORS:
        lse_pos, lse_neg, grad_pos, grad_neg = load_statistics(
            column_statistics_ptr, columns, num_columns
        )
        share = tl.exp2(logits - tl.where(positive, lse_pos[None, :], lse_neg[None, :]))
        weights += share * tl.where(positive, grad_pos[None, :], grad_neg[None, :])
    slopes = tl.where(
        positive,
        pair_slopes(similarity, gamma, optimum_pos, margin_pos, True, FORMULA, DETACH_WEIGHTS),
        pair_slopes(similarity, gamma, optimum_neg, margin_neg, False, FORMULA, DETACH_WEIGHTS),
    )
    # Selected, not multiplied: what stands at a pair that is in neither set may be inf or NaN.
    return tl.where(positive | negative, weights * slopes, 0.0)
