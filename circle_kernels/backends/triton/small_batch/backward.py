"""Backward pass of a small batch: every program has the gradient of its rows in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton.backward_pass.gradients import (
    Anchors,
    ByKind,
    along_columns,
    along_rows,
    exact_weights,
)
from circle_kernels.backends.triton.backward_pass.statistics import largest_gradient, weight_bound
from circle_kernels.backends.triton.formula.arguments import slope_scales
from circle_kernels.backends.triton.formula.pairs import Formula, Kind
from circle_kernels.backends.triton.launch import launch_tiles
from circle_kernels.backends.triton.normalization import clamp_at_zero, load_norms, unit_rows
from circle_kernels.backends.triton.operands import Given
from circle_kernels.backends.triton.primitives import multiply_add
from circle_kernels.backends.triton.sides import ceil_div
from circle_kernels.backends.triton.small_batch.forward import small_launch
from circle_kernels.backends.triton.small_batch.tiles import (
    Block,
    block_kinds,
    block_products,
    load_operand,
    saved_labels,
)


@triton.jit
def load_block_of(
    given,  # Given
    saved_ptr,  # of small_forward_kernel
    start,
    BLOCK: tl.constexpr,
):
    """Load what the forward pass has found out about a block of rows."""
    indices = tl.minimum(start + tl.arange(0, BLOCK), given.length - 1)
    labels = tl.load(saved_labels(saved_ptr, given.length) + indices)
    factors = tl.load(saved_ptr + 3 * given.length + indices)
    return Block(indices, labels, factors, tl.load(saved_ptr + 5 * given.length + indices))


@triton.jit
def load_anchors_of(
    saved_ptr,  # of small_forward_kernel
    grad_lse_pos_ptr,
    grad_lse_neg_ptr,
    indices,  # (R,)
    length,
    unit,
    slope_pos,
    slope_neg,
):
    """Load log-sum-exps of exponents and upstream gradients, as gradients.Anchors has them."""
    lse = ByKind(tl.load(saved_ptr + indices), tl.load(saved_ptr + length + indices))
    units = tl.zeros(indices.shape, tl.float32) + unit
    upstream = ByKind(
        tl.div_rn(tl.load(grad_lse_pos_ptr + indices), units) * slope_pos,
        tl.div_rn(tl.load(grad_lse_neg_ptr + indices), units) * slope_neg,
    )
    return lse, upstream


@triton.jit(do_not_specialize=["num_rows"])
def small_backward_kernel(
    rows_ptr,  # (N, D), any strides
    saved_ptr,  # (8, N) of 4 bytes: of small_forward_kernel
    grad_lse_pos_ptr,  # (N,) float32
    grad_lse_neg_ptr,  # (N,) float32
    gradient_ptr,  # (N, D) contiguous
    num_rows,
    depth,
    row_stride,
    depth_stride,
    norm_eps,
    bound,  # what weights are held to by a unit of gradients, or None
    slope_pos,  # formula.slope_scales
    slope_neg,
    largest,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    factor,
    fixed_shift,
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
    WHOLE_DEPTH: tl.constexpr,  # at least the depth
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Compute the gradient of a block of rows."""
    given = Given(rows_ptr, num_rows, depth, row_stride, depth_stride)
    saved_ptr = saved_ptr.to(tl.pointer_type(tl.float32))
    formula = Formula(
        Kind(vertex_pos, floor_pos, factor), Kind(vertex_neg, floor_neg, factor), fixed_shift
    )
    unit = 1.0
    if bound is not None:
        unit = largest_gradient(saved_ptr, grad_lse_pos_ptr, grad_lse_neg_ptr, num_rows, bound, 256)
    row = tl.program_id(0) * BLOCK_ROWS
    indices = row + tl.arange(0, BLOCK_ROWS)
    rows = load_block_of(given, saved_ptr, row, BLOCK_ROWS)
    lse, upstream = load_anchors_of(
        saved_ptr,
        grad_lse_pos_ptr,
        grad_lse_neg_ptr,
        rows.indices,
        num_rows,
        unit,
        slope_pos,
        slope_neg,
    )
    row_anchors = Anchors(along_rows(lse), along_rows(upstream))
    depths = tl.arange(0, WHOLE_DEPTH)
    sums = tl.zeros((BLOCK_ROWS, WHOLE_DEPTH), tl.float32)
    for column in range(0, num_rows, BLOCK_COLUMNS):
        columns = load_block_of(given, saved_ptr, column, BLOCK_COLUMNS)
        products = block_products(
            given, rows, columns, INPUT_PRECISION, OPERAND, NORMALIZED, BLOCK_DEPTH
        )
        column_lse, column_upstream = load_anchors_of(
            saved_ptr,
            grad_lse_pos_ptr,
            grad_lse_neg_ptr,
            columns.indices,
            num_rows,
            unit,
            slope_pos,
            slope_neg,
        )
        kinds = block_kinds(
            given, indices, column + tl.arange(0, BLOCK_COLUMNS), rows.labels, columns.labels
        )
        weights = exact_weights(
            products,
            rows.scales[:, None] * columns.scales[None, :],
            kinds,
            row_anchors,
            Anchors(along_columns(column_lse), along_columns(column_upstream)),
            formula,
            True,
            FORMULA,
            DETACH_WEIGHTS,
        )
        operand = load_operand(given, columns, depths, OPERAND)
        sums = multiply_add(weights.to(OPERAND), operand, sums, INPUT_PRECISION)

    inside = indices < num_rows
    operand_norms, _, _ = load_norms(saved_ptr + 4 * num_rows, indices, inside)
    norms, _, inverse_unit = load_norms(saved_ptr + 2 * num_rows, indices, inside)
    sums = sums * operand_norms[:, None]
    if NORMALIZED:
        operand = load_operand(given, rows, depths, OPERAND)
        directions = unit_rows(operand, operand_norms, tl.full((BLOCK_ROWS,), 1.0, tl.float32))
        along = tl.where(norms <= norm_eps, 0.0, tl.sum(sums * directions, axis=1))
        sums -= along[:, None] * directions
    gradient = sums / norms[:, None] * inverse_unit[:, None] * unit
    gradient = clamp_at_zero(gradient, norms <= norm_eps, largest)
    tl.store(
        gradient_ptr + indices.to(tl.int64)[:, None] * depth + depths[None, :],
        gradient.to(gradient_ptr.dtype.element_ty),
        mask=inside[:, None] & (depths < depth)[None, :],
    )


def small_backward(
    problem: PairProblem,
    saved: Tensor,  # as small_forward has filled it
    grad_lse_pos: Tensor,  # (N,)
    grad_lse_neg: Tensor,  # (N,)
) -> Tensor:  # (N, D)
    """The gradient of the embeddings."""
    embeddings = problem.embeddings
    gradient = embeddings.new_empty(embeddings.shape)
    arguments, constants, settings = small_launch(problem)
    is_half = constants["OPERAND"] == tl.float16
    launch_tiles(
        small_backward_kernel,
        ceil_div(len(embeddings), settings.block_rows),
        {
            **arguments,
            **slope_scales(problem.formula),
            "saved_ptr": saved,
            "grad_lse_pos_ptr": grad_lse_pos.contiguous(),
            "grad_lse_neg_ptr": grad_lse_neg.contiguous(),
            "gradient_ptr": gradient,
            "bound": weight_bound(problem.formula) if is_half else None,
            "largest": torch.finfo(embeddings.dtype).max,
        },
        {
            **constants,
            "DETACH_WEIGHTS": problem.formula.detach_weights,
            "WHOLE_DEPTH": max(16, triton.next_power_of_2(embeddings.shape[1])),
        },
        settings,
    )
    return gradient
