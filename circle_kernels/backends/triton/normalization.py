"""After the fused kernels: merge partial sums and apply the chain rule of the normalisation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.interface import NORM_EPS
from circle_kernels.backends.triton.launch import launch_kernel
from circle_kernels.backends.triton.operands import ROW_BLOCK, Side
from circle_kernels.backends.triton.primitives import load_tile


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def finish_gradient_kernel(
    partial_ptr,  # (splits, N, padded depth) float32: with respect to the normalised rows
    operand_ptr,  # (N, padded depth)
    operand_norms_ptr,  # (N,) float32
    norms_ptr,  # (N,) float32
    unit_ptr,  # (1,) float32: what the upstream gradients were divided by, if HAS_UNIT
    order_ptr,  # (N,) int64: where the caller has each row, if SORTED
    gradient_ptr,  # (N, D) contiguous, the dtype of the embeddings
    num_rows,
    num_splits,
    depth,
    padded_depth,
    row_stride,
    norm_eps,
    largest,
    NORMALIZE: tl.constexpr,
    SORTED: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Merge the splits, project out the row's own direction and divide by its norm."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    given = rows.to(tl.int64)
    if SORTED:
        given = tl.load(order_ptr + rows, mask=inside, other=0)
    operand_norms = tl.load(operand_norms_ptr + rows, mask=inside, other=1.0)
    norms = tl.load(norms_ptr + rows, mask=inside, other=1.0)
    along = tl.zeros((BLOCK_ROWS,), tl.float32)
    # At or below eps the divisor is the constant eps.
    at_zero = norms <= norm_eps
    if NORMALIZE:
        for start in range(0, depth, BLOCK_DEPTH):
            depths = start + tl.arange(0, BLOCK_DEPTH)
            sums = merge_splits(partial_ptr, rows, num_rows, num_splits, depths, padded_depth)
            chunk = load_tile(operand_ptr, rows, num_rows, row_stride, depths, padded_depth)
            along += tl.sum(sums * unit_rows(chunk, operand_norms), axis=1)
        along = tl.where(at_zero, 0.0, along)
    unit = 1.0
    if HAS_UNIT:
        unit = tl.load(unit_ptr)
    for start in range(0, depth, BLOCK_DEPTH):
        depths = start + tl.arange(0, BLOCK_DEPTH)
        sums = merge_splits(partial_ptr, rows, num_rows, num_splits, depths, padded_depth)
        if NORMALIZE:
            chunk = load_tile(operand_ptr, rows, num_rows, row_stride, depths, padded_depth)
            sums -= along[:, None] * unit_rows(chunk, operand_norms)
        gradient = sums / norms[:, None] * unit
        # A zero vector's gradient is of the order of 1 / eps, more than float16 can hold. NaN
        # fails both comparisons and stays.
        gradient = tl.where(at_zero[:, None] & (gradient > largest), largest, gradient)
        gradient = tl.where(at_zero[:, None] & (gradient < -largest), -largest, gradient)
        offsets = given[:, None] * depth + depths[None, :]
        tl.store(
            gradient_ptr + offsets,
            gradient.to(gradient_ptr.dtype.element_ty),
            mask=inside[:, None] & (depths < depth)[None, :],
        )


@triton.jit
def unit_rows(
    operand,  # (R, K)
    operand_norms,  # (R,)
):
    """Normalise exactly as the naive path does: divide, rounded once.

    Where a gradient points along its row, what the projection leaves is the rounding here.
    """
    return tl.div_rn(operand.to(tl.float32), tl.broadcast_to(operand_norms[:, None], operand.shape))


@triton.jit
def merge_splits(
    partial_ptr,  # (splits, num_rows, depth)
    rows,  # (R,)
    num_rows,
    num_splits,
    depths,  # (K,)
    depth,
):
    """Sum a tile over the splits, always in the same order."""
    sums = tl.zeros((rows.shape[0], depths.shape[0]), tl.float32)
    for split in range(num_splits):
        # A multiplication first, so that the offset is 64-bit.
        split_ptr = partial_ptr + (split * tl.full((), 1, tl.int64)) * num_rows * depth
        sums += load_tile(split_ptr, rows, num_rows, depth, depths, depth)
    return sums


def finish_gradient(
    side: Side,
    partial: Tensor,  # (splits, N, padded depth) float32
    unit: Tensor | None,  # (1,) float32
    normalize: bool,
) -> Tensor:  # (N, D)
    """Merge partial sums and take them through the normalisation to the side as it was given."""
    num_rows = len(side)
    gradient = side.operand.new_empty(num_rows, side.depth, dtype=side.dtype)
    launch_kernel(
        finish_gradient_kernel,
        triton.cdiv(num_rows, ROW_BLOCK["BLOCK_ROWS"]),
        {
            "partial_ptr": partial,
            "operand_ptr": side.operand,
            "operand_norms_ptr": side.operand_norms,
            "norms_ptr": side.norms,
            # A pointer that is never followed still has to be a tensor.
            "unit_ptr": side.scales if unit is None else unit,
            "order_ptr": side.scales if side.order is None else side.order,
            "gradient_ptr": gradient,
            "num_rows": num_rows,
            "num_splits": len(partial),
            "depth": side.depth,
            "padded_depth": side.operand.shape[1],
            "row_stride": side.operand.stride(0),
            "norm_eps": NORM_EPS,
            "largest": torch.finfo(side.dtype).max,
        },
        {
            "NORMALIZE": normalize,
            "SORTED": side.order is not None,
            "HAS_UNIT": unit is not None,
            **ROW_BLOCK,
        },
        num_warps=4,
        num_stages=2,
    )
    return gradient
