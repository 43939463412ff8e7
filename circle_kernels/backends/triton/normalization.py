"""The O(N·D) work around the fused kernels: row scales before, the chain rule of |x| after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.interface import NORM_EPS, PairProblem
from circle_kernels.backends.triton.launch import launch_kernel
from circle_kernels.backends.triton.primitives import load_tile

_ROW_BLOCK = {"BLOCK_ROWS": 16, "BLOCK_DEPTH": 128}


@triton.jit(do_not_specialize=["num_rows"])
def row_scales_kernel(
    rows_ptr,  # (N, D)
    inverse_norms_ptr,  # (N,) float32: 1 / max(|x|, eps), or 1; NaN for a non-finite row
    scales_ptr,  # (N,) float32: what turns a row of the operand into the normalised row
    operand_ptr,  # (N, D) contiguous: the row over a power of two, if EQUILIBRATE
    num_rows,
    depth,
    row_stride,
    depth_stride,
    norm_eps,
    NORMALIZE: tl.constexpr,
    EQUILIBRATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Compute inverse norms; for float16 also bring the rows to norms in [1, 2).

    Dividing by a power of two is exact (down to float16's subnormals beside a norm of 1) and puts
    the scales in (0.5, 1], so that a float16 product with them can neither overflow nor vanish.
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    squares = tl.zeros((BLOCK_ROWS, BLOCK_DEPTH), tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        depths = start + tl.arange(0, BLOCK_DEPTH)
        chunk = load_tile(rows_ptr, rows, num_rows, row_stride, depths, depth, depth_stride)
        squares += chunk.to(tl.float32) * chunk.to(tl.float32)
    norms = tl.sqrt_rn(tl.sum(squares, axis=1))
    # False for NaN and for infinity, which make every similarity of the row NaN.
    finite = norms < float("inf")
    divisors = tl.maximum(norms, norm_eps) if NORMALIZE else tl.full(norms.shape, 1.0, tl.float32)
    inverse_norms = tl.where(finite, tl.div_rn(1.0, divisors), float("nan"))
    tl.store(inverse_norms_ptr + rows, inverse_norms, mask=inside)
    if EQUILIBRATE:
        # Keeping only the exponent bits rounds down to a power of two.
        powers = (divisors.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        tl.store(
            scales_ptr + rows,
            tl.where(finite, tl.div_rn(powers, divisors), float("nan")),
            mask=inside,
        )
        for start in range(0, depth, BLOCK_DEPTH):
            depths = start + tl.arange(0, BLOCK_DEPTH)
            chunk = load_tile(rows_ptr, rows, num_rows, row_stride, depths, depth, depth_stride)
            offsets = rows.to(tl.int64)[:, None] * depth + depths[None, :]
            tl.store(
                operand_ptr + offsets,
                (chunk.to(tl.float32) / powers[:, None]).to(operand_ptr.dtype.element_ty),
                mask=inside[:, None] & (depths < depth)[None, :],
            )


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def finish_gradient_kernel(
    partial_ptr,  # (splits, N, D) float32: with respect to the normalised rows
    operand_ptr,  # (N, D)
    scales_ptr,  # (N,) float32
    inverse_norms_ptr,  # (N,) float32
    unit_ptr,  # (1,) float32: what the upstream gradients were divided by, if HAS_UNIT
    gradient_ptr,  # (N, D) contiguous, the dtype of the embeddings
    num_rows,
    num_splits,
    depth,
    row_stride,
    depth_stride,
    inverse_eps,
    largest,
    NORMALIZE: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Merge the splits, project out the row's own direction and divide by its norm."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    scales = tl.load(scales_ptr + rows, mask=inside, other=0.0)
    inverse_norms = tl.load(inverse_norms_ptr + rows, mask=inside, other=0.0)
    along = tl.zeros((BLOCK_ROWS,), tl.float32)
    # At or below eps the divisor is the constant eps.
    at_zero = inverse_norms >= inverse_eps
    if NORMALIZE:
        for start in range(0, depth, BLOCK_DEPTH):
            depths = start + tl.arange(0, BLOCK_DEPTH)
            sums = merge_splits(partial_ptr, rows, num_rows, num_splits, depths, depth)
            chunk = load_tile(operand_ptr, rows, num_rows, row_stride, depths, depth, depth_stride)
            along += tl.sum(sums * chunk.to(tl.float32) * scales[:, None], axis=1)
        along = tl.where(at_zero, 0.0, along)
    factors = inverse_norms
    if HAS_UNIT:
        factors = factors * tl.load(unit_ptr)
    for start in range(0, depth, BLOCK_DEPTH):
        depths = start + tl.arange(0, BLOCK_DEPTH)
        sums = merge_splits(partial_ptr, rows, num_rows, num_splits, depths, depth)
        if NORMALIZE:
            chunk = load_tile(operand_ptr, rows, num_rows, row_stride, depths, depth, depth_stride)
            sums -= along[:, None] * chunk.to(tl.float32) * scales[:, None]
        gradient = sums * factors[:, None]
        # A zero vector's gradient is of the order of 1 / eps, more than float16 can hold.
        limited = tl.minimum(tl.maximum(gradient, -largest), largest)
        gradient = tl.where(at_zero[:, None], limited, gradient)
        offsets = rows.to(tl.int64)[:, None] * depth + depths[None, :]
        tl.store(
            gradient_ptr + offsets,
            gradient.to(gradient_ptr.dtype.element_ty),
            mask=inside[:, None] & (depths < depth)[None, :],
        )


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
        sums += load_tile(split_ptr, rows, num_rows, depth, depths, depth, 1)
    return sums


@dataclass(frozen=True)
class Side:
    """The embeddings or the references, ready for the kernels.

    ``operand * scales`` are the normalised rows. The operand is the input itself, except for
    float16: there it is a copy over powers of two (or in float32, if not normalised), so that no
    float16 intermediate leaves its range.
    """

    operand: Tensor  # (N, D)
    scales: Tensor  # (N,) float32
    inverse_norms: Tensor  # (N,) float32
    labels: Tensor  # (N,) int64
    dtype: torch.dtype  # of the gradient

    def __len__(self) -> int:
        return len(self.operand)


def prepare_sides(problem: PairProblem) -> tuple[Side, Side]:
    rows = _prepare_side(problem.embeddings, problem.labels, problem.normalize)
    if problem.self_mode:
        return rows, rows
    return rows, _prepare_side(problem.columns, problem.column_labels, problem.normalize)


def _prepare_side(embeddings: Tensor, labels: Tensor, normalize: bool) -> Side:
    num_rows, depth = embeddings.shape
    equilibrate = embeddings.dtype == torch.float16 and normalize
    # Unnormalised float16 has no bound that would keep its weights in float16's range.
    operand = (
        embeddings.float() if embeddings.dtype == torch.float16 and not normalize else embeddings
    )
    inverse_norms = operand.new_empty(num_rows, dtype=torch.float32)
    scales = torch.empty_like(inverse_norms) if equilibrate else inverse_norms
    equilibrated = operand.new_empty(num_rows, depth) if equilibrate else operand
    launch_kernel(
        row_scales_kernel,
        triton.cdiv(num_rows, _ROW_BLOCK["BLOCK_ROWS"]),
        {
            "rows_ptr": operand,
            "inverse_norms_ptr": inverse_norms,
            "scales_ptr": scales,
            "operand_ptr": equilibrated,
            "num_rows": num_rows,
            "depth": depth,
            "row_stride": operand.stride(0),
            "depth_stride": operand.stride(1),
            "norm_eps": NORM_EPS,
        },
        {"NORMALIZE": normalize, "EQUILIBRATE": equilibrate, **_ROW_BLOCK},
        num_warps=4,
        num_stages=2,
    )
    return Side(equilibrated, scales, inverse_norms, labels.contiguous(), embeddings.dtype)


def operand_arguments(rows: Side, columns: Side) -> dict[str, Any]:
    return {
        "rows_ptr": rows.operand,
        "row_labels_ptr": rows.labels,
        "row_scales_ptr": rows.scales,
        "columns_ptr": columns.operand,
        "column_labels_ptr": columns.labels,
        "column_scales_ptr": columns.scales,
        "num_rows": len(rows),
        "num_columns": len(columns),
        "depth": rows.operand.shape[1],
        "row_stride": rows.operand.stride(0),
        "row_depth_stride": rows.operand.stride(1),
        "column_stride": columns.operand.stride(0),
        "column_depth_stride": columns.operand.stride(1),
    }


def finish_gradient(
    side: Side,
    partial: Tensor,  # (splits, N, D) float32
    unit: Tensor | None,  # (1,) float32
    normalize: bool,
) -> Tensor:  # (N, D)
    """Merge partial sums and take them through the normalisation to the side as it was given."""
    num_rows, depth = side.operand.shape
    gradient = side.operand.new_empty(num_rows, depth, dtype=side.dtype)
    launch_kernel(
        finish_gradient_kernel,
        triton.cdiv(num_rows, _ROW_BLOCK["BLOCK_ROWS"]),
        {
            "partial_ptr": partial,
            "operand_ptr": side.operand,
            "scales_ptr": side.scales,
            "inverse_norms_ptr": side.inverse_norms,
            # A pointer that is never followed still has to be a tensor.
            "unit_ptr": side.scales if unit is None else unit,
            "gradient_ptr": gradient,
            "num_rows": num_rows,
            "num_splits": len(partial),
            "depth": depth,
            "row_stride": side.operand.stride(0),
            "depth_stride": side.operand.stride(1),
            # Slightly below 1 / eps: rounding must not make a zero vector look longer than eps.
            "inverse_eps": 0.999 / NORM_EPS,
            "largest": torch.finfo(side.dtype).max,
        },
        {"NORMALIZE": normalize, "HAS_UNIT": unit is not None, **_ROW_BLOCK},
        num_warps=4,
        num_stages=2,
    )
    return gradient
