"""What the backward pass knows of each anchor, laid out for its kernels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.triton.launch import launch_kernel
from circle_kernels.backends.triton.operands import ROW_PADDING, Side
from circle_kernels.backends.triton.primitives import FIXED_SHIFT

# Rows of the table: log-sum-exps of exponents, upstream gradients, factors of exponentials against
# the fixed shift (each of positives, then of negatives), and one number per block.
_ROWS = 7


@triton.jit(do_not_specialize=["num_anchors"])
def prepare_statistics_kernel(
    saved_ptr,  # (2, N) float32
    grad_lse_pos_ptr,  # (N,) float32
    grad_lse_neg_ptr,  # (N,) float32
    order_ptr,  # (N,) int64, if SORTED
    table_ptr,  # (7, padded N) float32
    num_anchors,
    slope_scale,
    SORTED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Gather statistics, compute factors, and find what a block's exponents reach.

    A factor is 2^(FIXED_SHIFT - lse) times the gradient and the slopes' scale. A block whose
    factors leave float32's middle, or whose log-sum-exps say that exponentials do, gets infinity.
    """
    anchors = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = anchors < num_anchors
    padded = tl.num_programs(0) * BLOCK_ROWS
    given = anchors.to(tl.int64)
    if SORTED:
        given = tl.load(order_ptr + anchors, mask=inside, other=0)
    highest = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    for kind in tl.static_range(2):
        lse = tl.load(saved_ptr + kind * num_anchors.to(tl.int64) + given, mask=inside, other=0.0)
        grad_ptr = grad_lse_neg_ptr if kind else grad_lse_pos_ptr
        grad = tl.load(grad_ptr + given, mask=inside, other=0.0)
        scale = slope_scale if kind else -slope_scale
        factor = grad * scale * tl.exp2(-lse + FIXED_SHIFT)
        # An empty set has the log-sum-exp -inf and no gradient.
        none = (grad == 0.0) | (lse == -float("inf"))
        factor = tl.where(none, 0.0, factor)
        size = tl.abs(factor)
        usable = none | ((size > 2.0**-100) & (size < 2.0**120))
        # Also without a gradient: 0 times an exponential beyond float32 is NaN.
        highest = tl.maximum(highest, tl.where(usable, lse, float("inf")))
        tl.store(table_ptr + kind * padded + anchors, lse)
        tl.store(table_ptr + (2 + kind) * padded + anchors, grad)
        tl.store(table_ptr + (4 + kind) * padded + anchors, factor)
    tl.store(table_ptr + 6 * padded + tl.program_id(0), tl.max(highest, axis=0))


def prepare_statistics(
    side: Side,
    saved: Tensor,  # (2, N): both log-sum-exps of exponents
    grad_lse_pos: Tensor,  # (N,)
    grad_lse_neg: Tensor,  # (N,)
    slope_scale: float,
) -> Tensor:  # (7, padded N)
    """The table that the backward kernels take for a side of anchors, in the side's order."""
    padded = len(side.scales)
    table = saved.new_empty(_ROWS, padded)
    launch_kernel(
        prepare_statistics_kernel,
        padded // ROW_PADDING,
        {
            "saved_ptr": saved,
            "grad_lse_pos_ptr": grad_lse_pos.contiguous(),
            "grad_lse_neg_ptr": grad_lse_neg.contiguous(),
            # A pointer that is never followed still has to be a tensor.
            "order_ptr": saved if side.order is None else side.order,
            "table_ptr": table,
            "num_anchors": len(side),
            "slope_scale": slope_scale,
        },
        {"SORTED": side.order is not None, "BLOCK_ROWS": ROW_PADDING},
        num_warps=4,
        num_stages=1,
    )
    return table
