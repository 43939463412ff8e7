"""After the matrix products: the chain rule of the normalisation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.rows import NORM_EPS
from circle_kernels.backends.triton.launch import launch_kernel
from circle_kernels.backends.triton.operands import NORM_UNIT, ROW_BLOCK
from circle_kernels.backends.triton.primitives import load_tile
from circle_kernels.backends.triton.sides import Side, ceil_div


@triton.jit(do_not_specialize=["num_rows"])
def finish_gradient_kernel(
    sums_ptr,  # (R, padded depth) float32: with respect to normalised rows, over operand_norms
    operand_ptr,  # (R, padded depth)
    operand_norms_ptr,  # (R,) float32, in NORM_UNIT
    norms_ptr,  # (R,) float32, in NORM_UNIT
    unit_ptr,  # (1,) float32: what the upstream gradients were divided by, or None
    order_ptr,  # (R,) int64: where the caller has each row, or None: in the same place
    gradient_ptr,  # (R, D), in another order (N, D); contiguous, the dtype of the embeddings
    num_rows,
    depth,
    padded_depth,
    row_stride,
    norm_eps,
    largest,
    NORMALIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Project out the row's own direction and divide by its norm."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    given = rows.to(tl.int64)
    if order_ptr is not None:
        given = tl.load(order_ptr + rows, mask=inside, other=0)
    operand_norms, operand_unit, inverse_operand_unit = load_norms(operand_norms_ptr, rows, inside)
    norms, _, inverse_unit = load_norms(norms_ptr, rows, inside)
    along = tl.zeros((BLOCK_ROWS,), tl.float32)
    # At or below eps the divisor is the constant eps.
    at_zero = norms <= norm_eps
    if NORMALIZE:
        for start in range(0, depth, BLOCK_DEPTH):
            depths = start + tl.arange(0, BLOCK_DEPTH)
            sums = load_tile(sums_ptr, rows, num_rows, padded_depth, depths, padded_depth)
            sums = sums * operand_norms[:, None] * operand_unit[:, None]
            chunk = load_tile(operand_ptr, rows, num_rows, row_stride, depths, padded_depth)
            along += tl.sum(sums * unit_rows(chunk, operand_norms, inverse_operand_unit), axis=1)
        along = tl.where(at_zero, 0.0, along)
    unit = 1.0
    if unit_ptr is not None:
        unit = tl.load(unit_ptr)
    for start in range(0, depth, BLOCK_DEPTH):
        depths = start + tl.arange(0, BLOCK_DEPTH)
        sums = load_tile(sums_ptr, rows, num_rows, padded_depth, depths, padded_depth)
        sums = sums * operand_norms[:, None] * operand_unit[:, None]
        if NORMALIZE:
            chunk = load_tile(operand_ptr, rows, num_rows, row_stride, depths, padded_depth)
            sums -= along[:, None] * unit_rows(chunk, operand_norms, inverse_operand_unit)
        gradient = sums / norms[:, None] * inverse_unit[:, None] * unit
        gradient = clamp_at_zero(gradient, at_zero, largest)
        offsets = given[:, None] * depth + depths[None, :]
        tl.store(
            gradient_ptr + offsets,
            gradient.to(gradient_ptr.dtype.element_ty),
            mask=inside[:, None] & (depths < depth)[None, :],
        )


@triton.jit
def clamp_at_zero(
    gradient,  # (R, K)
    at_zero,  # (R,)
    largest,
):
    """Hold a zero vector's gradient, of the order of 1 / eps, to what the dtype can hold.

    NaN fails both comparisons and stays.
    """
    gradient = tl.where(at_zero[:, None] & (gradient > largest), largest, gradient)
    return tl.where(at_zero[:, None] & (gradient < -largest), -largest, gradient)


@triton.jit
def load_norms(
    norms_ptr,  # (R,) float32, in NORM_UNIT
    rows,  # (R,)
    inside,  # (R,)
):
    """Load norms as products of two factors, and the inverse of the second, a power of two.

    That is 1 but for norms that may be beyond float32.
    """
    norms = tl.load(norms_ptr + rows, mask=inside, other=1.0)
    huge = norms >= 2.0**64
    unit, inverse_unit = tl.where(huge, NORM_UNIT, 1.0), tl.where(huge, 1.0 / NORM_UNIT, 1.0)
    return tl.where(huge, norms, norms * NORM_UNIT), unit, inverse_unit


@triton.jit
def unit_rows(
    operand,  # (R, K)
    operand_norms,  # (R,)
    inverse_operand_unit,  # (R,)
):
    """Normalise exactly as the naive path does: divide, rounded once.

    Where a gradient points along its row, what the projection leaves is the rounding here.
    """
    rows = operand.to(tl.float32) * inverse_operand_unit[:, None]
    return tl.div_rn(rows, tl.broadcast_to(operand_norms[:, None], operand.shape))


def finish_gradient(
    side: Side,
    first: int,
    sums: Tensor,  # (R, padded depth) float32
    unit: Tensor | None,  # (1,) float32
    gradient: Tensor,  # (N, D)
) -> None:
    """Take sums of the rows from ``first`` on through the normalisation to the gradient."""

    def rows(whole: Tensor) -> Tensor:
        return whole.narrow(0, first, len(sums))

    operand, operand_norms = rows(side.operand), rows(side.operand_norms)
    launch_kernel(
        finish_gradient_kernel,
        ceil_div(len(sums), ROW_BLOCK["BLOCK_ROWS"]),
        {
            "sums_ptr": sums,
            "operand_ptr": operand,
            "operand_norms_ptr": operand_norms,
            "norms_ptr": rows(side.norms),
            "unit_ptr": unit,
            "order_ptr": None if side.order is None else rows(side.order),
            "gradient_ptr": rows(gradient) if side.order is None else gradient,
            "num_rows": len(sums),
            "depth": side.depth,
            "padded_depth": operand.shape[1],
            "row_stride": operand.stride(0),
            "norm_eps": NORM_EPS,
            "largest": torch.finfo(side.dtype).max,
        },
        {"NORMALIZE": side.normalize, **ROW_BLOCK},
        num_stages=2,
    )
