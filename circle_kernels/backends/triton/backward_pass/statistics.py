"""What the backward pass knows of each anchor, laid out for its kernels."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.triton.backward_pass.gradients import (
    FACTOR,
    HIGHEST,
    LSE,
    TABLE_ROWS,
    UPSTREAM,
    statistics_block,
)
from circle_kernels.backends.triton.formula.arguments import (
    formula_arguments,
    slope_scales,
)
from circle_kernels.backends.triton.launch import launch_kernel
from circle_kernels.backends.triton.primitives import STATISTICS_BLOCK
from circle_kernels.backends.triton.sides import ROW_PADDING, Side
from circle_kernels.formula import PairFormula

# A slope over gamma that formulas whose similarities stay out of reach are taken to have.
_ROUNDED = 2.0**-10


@triton.jit
def largest_gradient(
    logsumexps_ptr,  # (2, N) float32, of exponents
    grad_lse_pos_ptr,  # (N,) float32
    grad_lse_neg_ptr,  # (N,) float32
    num_anchors,
    bound,
    BLOCK_ANCHORS: tl.constexpr,
):
    """Find the largest finite gradient times ``bound``; at least the smallest normal number.

    Of sets that are not empty: what arrives for others counts nowhere.
    """
    largest = tl.zeros((BLOCK_ANCHORS,), tl.float32)
    for start in range(0, num_anchors, BLOCK_ANCHORS):
        anchors = start + tl.arange(0, BLOCK_ANCHORS)
        inside = anchors < num_anchors
        for kind in tl.static_range(2):
            grad_ptr = grad_lse_neg_ptr if kind else grad_lse_pos_ptr
            lse_ptr = logsumexps_ptr + kind * num_anchors.to(tl.int64)
            lse = tl.load(lse_ptr + anchors, mask=inside, other=0.0)
            size = tl.abs(tl.load(grad_ptr + anchors, mask=inside, other=0.0))
            size = tl.where(lse == -float("inf"), 0.0, size)
            largest = tl.where((size > largest) & (size < float("inf")), size, largest)
    return tl.maximum(tl.max(largest, axis=0) * bound, 2.0**-126)


@triton.jit(do_not_specialize=["num_anchors"])
def gradient_unit_kernel(
    logsumexps_ptr,  # (2, N) float32, of exponents
    grad_lse_pos_ptr,  # (N,) float32
    grad_lse_neg_ptr,  # (N,) float32
    unit_ptr,  # (1,) float32
    num_anchors,
    bound,
    BLOCK_ANCHORS: tl.constexpr,
):
    """Find what upstream gradients are divided by."""
    unit = largest_gradient(
        logsumexps_ptr, grad_lse_pos_ptr, grad_lse_neg_ptr, num_anchors, bound, BLOCK_ANCHORS
    )
    tl.store(unit_ptr, unit)


@triton.jit(do_not_specialize=["num_anchors"])
def prepare_statistics_kernel(
    saved_ptr,  # (2, N) float32
    grad_lse_pos_ptr,  # (N,) float32
    grad_lse_neg_ptr,  # (N,) float32
    unit_ptr,  # (1,) float32, or None: what gradients are divided by
    order_ptr,  # (N,) int64, or None
    table_ptr,  # (blocks, TABLE_ROWS, STATISTICS_BLOCK) float32
    num_anchors,
    fixed_shift,
    slope_pos,  # formula.slope_scales
    slope_neg,
    KINDS: tl.constexpr,  # of pairs in tiles that the fixed shift serves: 1 if all are negative
):
    """Gather statistics, compute factors, and find what a block's exponents reach.

    A factor is 2^(fixed_shift - lse) times what is stored of the gradient. A block whose factors
    leave float32's middle gets infinity, otherwise its largest log-sum-exp, of these kinds.
    """
    entries = tl.arange(0, STATISTICS_BLOCK)
    start = tl.program_id(0) * STATISTICS_BLOCK
    anchors = start + entries
    inside = anchors < num_anchors
    given = anchors.to(tl.int64)
    if order_ptr is not None:
        given = tl.load(order_ptr + anchors, mask=inside, other=0)
    block_ptr = statistics_block(table_ptr, start)
    highest = tl.full((STATISTICS_BLOCK,), -float("inf"), tl.float32)
    for kind in tl.static_range(2):
        lse = tl.load(saved_ptr + kind * num_anchors.to(tl.int64) + given, mask=inside, other=0.0)
        grad_ptr = grad_lse_neg_ptr if kind else grad_lse_pos_ptr
        upstream = tl.load(grad_ptr + given, mask=inside, other=0.0)
        if unit_ptr is not None:
            upstream = tl.div_rn(upstream, tl.zeros_like(upstream) + tl.load(unit_ptr))
        upstream *= slope_neg if kind else slope_pos
        factor = upstream * tl.exp2(fixed_shift - lse)
        # An empty set has the log-sum-exp -inf and no gradient.
        none = (upstream == 0.0) | (lse == -float("inf"))
        factor = tl.where(none, 0.0, factor)
        size = tl.abs(factor)
        usable = none | ((size > 2.0**-100) & (size < 2.0**120))
        # Also without a gradient: 0 times an exponential beyond float32 is NaN.
        if kind >= 2 - KINDS:
            highest = tl.maximum(highest, tl.where(usable, lse, float("inf")))
        tl.store(block_ptr + (LSE + kind) * STATISTICS_BLOCK + entries, lse)
        tl.store(block_ptr + (UPSTREAM + kind) * STATISTICS_BLOCK + entries, upstream)
        tl.store(block_ptr + (FACTOR + kind) * STATISTICS_BLOCK + entries, factor)
    tl.store(block_ptr + HIGHEST * STATISTICS_BLOCK, tl.max(highest, axis=0))


@functools.lru_cache(maxsize=16)
def weight_bound(formula: PairFormula) -> float:
    """A float16 weight's bound, for gradients of 1, over half of what float16 holds.

    Not of slopes alone: where none is above 0, gradients over their unit would not be finite, and
    similarities rounded to more than 1 have slopes all the same.
    """
    most = max(formula.max_slope(), max(map(abs, formula.gammas)) * _ROUNDED)
    return 2 * most / (torch.finfo(torch.float16).max / 2)


def gradient_unit(
    logsumexps: Tensor,  # (2, N), of exponents
    grad_lse_pos: Tensor,  # (N,)
    grad_lse_neg: Tensor,  # (N,)
    formula: PairFormula,
) -> Tensor:  # (1,) float32
    """What upstream gradients are divided by so that float16 weights neither overflow nor vanish.

    A weight is at most (share of row + share of column) * gradient * slope <= 2 * unit * slope;
    the unit makes that bound half of float16's range, whatever scale the loss is multiplied by.
    """
    unit = grad_lse_pos.new_empty(1)
    launch_kernel(
        gradient_unit_kernel,
        1,
        {
            "logsumexps_ptr": logsumexps.contiguous(),
            "grad_lse_pos_ptr": grad_lse_pos.contiguous(),
            "grad_lse_neg_ptr": grad_lse_neg.contiguous(),
            "unit_ptr": unit,
            "num_anchors": len(grad_lse_pos),
            "bound": weight_bound(formula),
        },
        {"BLOCK_ANCHORS": 1024},
        num_warps=8,
        num_stages=1,
    )
    return unit


def prepare_statistics(
    side: Side,
    saved: Tensor,  # (2, N): both log-sum-exps of exponents
    grad_lse_pos: Tensor,  # (N,)
    grad_lse_neg: Tensor,  # (N,)
    unit: Tensor | None,  # (1,)
    formula: PairFormula,
    *,
    kinds: int,  # plan.Layout.kinds
) -> Tensor:  # (blocks, TABLE_ROWS, STATISTICS_BLOCK)
    """The table that the backward kernels take for a side of anchors, in the side's order."""
    blocks = len(side.scales) // ROW_PADDING
    table = saved.new_empty(blocks, TABLE_ROWS.value, ROW_PADDING)
    launch_kernel(
        prepare_statistics_kernel,
        blocks,
        {
            "saved_ptr": saved,
            "grad_lse_pos_ptr": grad_lse_pos.contiguous(),
            "grad_lse_neg_ptr": grad_lse_neg.contiguous(),
            "unit_ptr": unit,
            "order_ptr": side.order,
            "table_ptr": table,
            "num_anchors": len(side),
            "fixed_shift": formula_arguments(formula)["fixed_shift"],
            **slope_scales(formula),
        },
        {"KINDS": kinds},
    )
    return table
