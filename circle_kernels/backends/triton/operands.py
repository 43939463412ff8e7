"""Before the fused kernels: norms, and operands that every kernel can load in wide pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.interface import NORM_EPS, PairProblem
from circle_kernels.backends.triton.launch import launch_kernel

# Rows and depths of the O(N·D) kernels' tiles.
ROW_BLOCK = {"BLOCK_ROWS": 16, "BLOCK_DEPTH": 128}
# Strides and depths in multiples of this let Triton load 16 bytes at a time in every dtype.
_ALIGNMENT = 16


@triton.jit
def load_any_layout(rows_ptr, rows, num_rows, row_stride, depths, depth, depth_stride):
    """Load (R, K) entries as float32, zero outside the matrix, from any strides."""
    offsets = rows.to(tl.int64)[:, None] * row_stride + depths.to(tl.int64)[None, :] * depth_stride
    inside = (rows < num_rows)[:, None] & (depths < depth)[None, :]
    return tl.load(rows_ptr + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def prepare_operand_kernel(
    rows_ptr,  # (N, D), any strides
    norms_ptr,  # (N,) float32: max(|x|, eps), or 1; NaN for a non-finite row
    operand_norms_ptr,  # (N,) float32: the same for the rows of the operand, if EQUILIBRATE
    scales_ptr,  # (N,) float32: what turns a row of the operand into the normalised row
    operand_ptr,  # (N, padded depth) contiguous, if WRITE_OPERAND
    num_rows,
    depth,
    padded_depth,
    row_stride,
    depth_stride,
    norm_eps,
    NORMALIZE: tl.constexpr,
    WRITE_OPERAND: tl.constexpr,
    EQUILIBRATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Compute norms and scales; where needed write an aligned copy, padded with zeros.

    For float16 the copy is brought to norms in [1, 2). Dividing by a power of two is exact (down
    to float16's subnormals beside a norm of 1) and puts the scales in (0.5, 1], so that a float16
    product with them can neither overflow nor vanish.
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    squares = tl.zeros((BLOCK_ROWS, BLOCK_DEPTH), tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        depths = start + tl.arange(0, BLOCK_DEPTH)
        chunk = load_any_layout(rows_ptr, rows, num_rows, row_stride, depths, depth, depth_stride)
        squares += chunk * chunk
    norms = tl.sqrt_rn(tl.sum(squares, axis=1))
    # False for NaN and for infinity, which make every similarity of the row NaN.
    finite = norms < float("inf")
    divisors = tl.maximum(norms, norm_eps) if NORMALIZE else tl.full(norms.shape, 1.0, tl.float32)
    divisors = tl.where(finite, divisors, float("nan"))
    tl.store(norms_ptr + rows, divisors, mask=inside)
    powers = tl.full(norms.shape, 1.0, tl.float32)
    if EQUILIBRATE:
        # Keeping only the exponent bits rounds down to a power of two; NaN gives infinity, and
        # its row NaN all the same.
        powers = (divisors.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        divisors = divisors / powers
        tl.store(operand_norms_ptr + rows, divisors, mask=inside)
    tl.store(scales_ptr + rows, tl.div_rn(1.0, divisors), mask=inside)
    if WRITE_OPERAND:
        for start in range(0, padded_depth, BLOCK_DEPTH):
            depths = start + tl.arange(0, BLOCK_DEPTH)
            chunk = load_any_layout(
                rows_ptr, rows, num_rows, row_stride, depths, depth, depth_stride
            )
            if EQUILIBRATE:
                chunk = chunk / powers[:, None]
            offsets = rows.to(tl.int64)[:, None] * padded_depth + depths[None, :]
            tl.store(
                operand_ptr + offsets,
                chunk.to(operand_ptr.dtype.element_ty),
                mask=inside[:, None] & (depths < padded_depth)[None, :],
            )


@dataclass(frozen=True)
class Side:
    """The embeddings or the references, ready for the kernels.

    ``operand / operand_norms`` are the normalised rows. The operand is the input itself where its
    layout allows wide loads; otherwise, and for float16, it is a copy, the depth padded by zeros.
    """

    operand: Tensor  # (N, padded depth), unit stride along the depth
    scales: Tensor  # (N,) float32, 1 / operand_norms
    operand_norms: Tensor  # (N,) float32
    norms: Tensor  # (N,) float32, of the input
    labels: Tensor  # (N,) int64
    depth: int  # of the input
    dtype: torch.dtype  # of the input, and so of its gradient

    def __len__(self) -> int:
        return len(self.operand)


def prepare_sides(problem: PairProblem) -> tuple[Side, Side]:
    """Both sides of a problem; in self mode the same one twice."""
    rows = _prepare_side(problem.embeddings, problem.labels, problem.normalize)
    if problem.self_mode:
        return rows, rows
    return rows, _prepare_side(problem.columns, problem.column_labels, problem.normalize)


def _prepare_side(embeddings: Tensor, labels: Tensor, normalize: bool) -> Side:
    num_rows, depth = embeddings.shape
    dtype = embeddings.dtype
    padded_depth = triton.cdiv(depth, _ALIGNMENT) * _ALIGNMENT
    equilibrate = dtype == torch.float16 and normalize
    norms = embeddings.new_empty(num_rows, dtype=torch.float32)
    operand_norms = torch.empty_like(norms) if equilibrate else norms
    scales = torch.empty_like(norms)
    operand = embeddings
    write_operand = dtype == torch.float16 or not _loads_wide(embeddings)
    if write_operand:
        # Unnormalised float16 has no bound that would keep its weights in float16's range.
        widen = dtype == torch.float16 and not normalize
        operand = embeddings.new_empty(
            num_rows, padded_depth, dtype=torch.float32 if widen else dtype
        )
    launch_kernel(
        prepare_operand_kernel,
        triton.cdiv(num_rows, ROW_BLOCK["BLOCK_ROWS"]),
        {
            "rows_ptr": embeddings,
            "norms_ptr": norms,
            "operand_norms_ptr": operand_norms,
            "scales_ptr": scales,
            "operand_ptr": operand,
            "num_rows": num_rows,
            "depth": depth,
            "padded_depth": padded_depth,
            "row_stride": embeddings.stride(0),
            "depth_stride": embeddings.stride(1),
            "norm_eps": NORM_EPS,
        },
        {
            "NORMALIZE": normalize,
            "WRITE_OPERAND": write_operand,
            "EQUILIBRATE": equilibrate,
            **ROW_BLOCK,
        },
        num_warps=4,
        num_stages=2,
    )
    return Side(operand, scales, operand_norms, norms, labels.contiguous(), depth, dtype)


def _loads_wide(embeddings: Tensor) -> bool:
    """Whether rows can be loaded in pieces of 16 bytes; a copy costs less than narrow loads."""
    return (
        embeddings.stride(1) == 1
        and embeddings.stride(0) % _ALIGNMENT == 0
        and embeddings.shape[1] % _ALIGNMENT == 0
        and embeddings.storage_offset() % _ALIGNMENT == 0
    )


def operand_arguments(rows: Side, columns: Side) -> dict[str, Any]:
    """Both sides under the names that every tile kernel gives them."""
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
        "column_stride": columns.operand.stride(0),
    }
