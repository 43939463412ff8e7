"""From both log-sum-exps of each row to the loss and its slopes, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.triton.launch import launch_kernel, on_device

# One program passes all rows: for more than this, several launches of many programs are faster.
MAX_ROWS = 16_384
_BLOCK_ROWS = 1024
_REDUCTIONS = ("mean", "mean_all", "sum", "none")


@triton.jit
def load_exponents(
    lse_pos_ptr,
    lse_neg_ptr,
    start,
    num_rows,
    BLOCK_ROWS: tl.constexpr,
):
    """Load what softplus is taken of; -inf, whose loss and slope are 0, beyond the last row."""
    rows = start + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    exponents = tl.load(lse_pos_ptr + rows, mask=inside, other=-float("inf"))
    return rows, inside, exponents + tl.load(lse_neg_ptr + rows, mask=inside, other=-float("inf"))


@triton.jit
def softplus(x):
    """Compute log(1 + exp(x)) to the last bits, also where exp(x) is small beside 1."""
    small = tl.exp(-tl.abs(x))
    one_more = 1.0 + small
    # The rounding of one_more, seen in one_more - 1, is undone by the quotient.
    exact = one_more == 1.0
    logarithm = tl.log(one_more) * (small / tl.where(exact, 1.0, one_more - 1.0))
    positive_part = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return positive_part + tl.where(exact, small, logarithm)


@triton.jit(do_not_specialize=["num_rows"])
def row_losses_kernel(
    lse_pos_ptr,  # (N,) float32
    lse_neg_ptr,  # (N,) float32
    losses_ptr,  # (N,) float32 if not reduced, else ()
    slopes_ptr,  # (N,) float32: d loss / d lse, of either
    num_rows,
    REDUCTION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Compute losses and slopes of all rows, and reduce them, always in the same order."""
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    counted = tl.zeros((BLOCK_ROWS,), tl.int32)
    for start in range(0, num_rows, BLOCK_ROWS):
        rows, inside, exponents = load_exponents(
            lse_pos_ptr, lse_neg_ptr, start, num_rows, BLOCK_ROWS
        )
        losses = softplus(exponents)
        if REDUCTION == "none":
            tl.store(losses_ptr + rows, losses, mask=inside)
        total += losses
        # NaN counts.
        counted += (exponents != -float("inf")).to(tl.int32)
    count = tl.full((), 1.0, tl.float32)
    if REDUCTION == "mean":
        count = tl.maximum(tl.sum(counted, axis=0), 1).to(tl.float32)
    if REDUCTION == "mean_all":
        count *= num_rows
    if REDUCTION != "none":
        tl.store(losses_ptr, tl.sum(total, axis=0) / count)
    for start in range(0, num_rows, BLOCK_ROWS):
        rows, inside, exponents = load_exponents(
            lse_pos_ptr, lse_neg_ptr, start, num_rows, BLOCK_ROWS
        )
        # exp(-x) is infinite where the slope is 0 to float32.
        tl.store(slopes_ptr + rows, 1.0 / (1.0 + tl.exp(-exponents)) / count, mask=inside)


def row_losses(
    lse_pos: Tensor,  # (N,) float32
    lse_neg: Tensor,  # (N,) float32
    reduction: str,
) -> tuple[Tensor, Tensor] | None:
    """The loss and its derivative (N,) by either log-sum-exp; None for too many rows or none, and
    for a reduction that the kernel does not have."""
    num_rows = len(lse_pos)
    if reduction not in _REDUCTIONS or not 1 <= num_rows <= MAX_ROWS:
        return None
    losses = lse_pos.new_empty(num_rows if reduction == "none" else ())
    slopes = lse_pos.new_empty(num_rows)
    with on_device(lse_pos.device):
        launch_kernel(
            row_losses_kernel,
            1,
            {
                "lse_pos_ptr": lse_pos.contiguous(),
                "lse_neg_ptr": lse_neg.contiguous(),
                "losses_ptr": losses,
                "slopes_ptr": slopes,
                "num_rows": num_rows,
            },
            {"REDUCTION": reduction, "BLOCK_ROWS": _BLOCK_ROWS},
            num_warps=8,
            num_stages=1,
        )
    return losses, slopes
