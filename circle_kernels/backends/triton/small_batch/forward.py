"""Forward pass of a small batch: every program has all columns for its rows."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.rows import NORM_EPS
from circle_kernels.backends.triton.conditions import conditions_on
from circle_kernels.backends.triton.formula.arguments import (
    coordinate_scale,
    formula_arguments,
    formula_constant,
)
from circle_kernels.backends.triton.formula.pairs import Formula, Kind, exponents_of, logit_constant
from circle_kernels.backends.triton.forward_pass.exact import add_exponents, no_sum, pair_exponents
from circle_kernels.backends.triton.forward_pass.merge import finish_logsumexp
from circle_kernels.backends.triton.launch import launch_kernel, launch_tiles
from circle_kernels.backends.triton.operands import Given, measure_rows
from circle_kernels.backends.triton.primitives import LN_2
from circle_kernels.backends.triton.settings import dot_precision
from circle_kernels.backends.triton.settings_table import Settings
from circle_kernels.backends.triton.sides import ceil_div, operand_layout
from circle_kernels.backends.triton.small_batch.tiles import (
    Block,
    block_kinds,
    block_products,
    saved_labels,
)

OPERANDS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
}


@triton.jit
def measure_block(
    given,  # Given
    labels_ptr,  # (N,) int64
    start,
    norm_eps,
    root_scale,
    NORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Measure a block of rows; also returns their norms and those of what is multiplied."""
    indices = tl.minimum(start + tl.arange(0, BLOCK), given.length - 1)
    found = measure_rows(given, indices, norm_eps, root_scale, 1.0, NORMALIZE, BLOCK, BLOCK_DEPTH)
    block = Block(indices, tl.load(labels_ptr + indices), found.factors, found.scales)
    return block, found.norms, found.operand_norms


@triton.jit
def save_block(
    saved_ptr,  # (8, N) of 4 bytes: log-sum-exps of exponents of positives and negatives, norms,
    # factors, operands' norms, scales; then labels in place of two
    exponents_pos,  # (R,)
    exponents_neg,  # (R,)
    rows,  # Block
    norms,  # (R,)
    operand_norms,  # (R,)
    indices,  # (R,), also beyond the last row
    num_rows,
):
    """Store what the backward pass takes of a block of rows."""
    inside = indices < num_rows
    tl.store(saved_ptr + indices, exponents_pos, mask=inside)
    tl.store(saved_ptr + num_rows + indices, exponents_neg, mask=inside)
    tl.store(saved_ptr + 2 * num_rows + indices, norms, mask=inside)
    tl.store(saved_ptr + 3 * num_rows + indices, rows.factors, mask=inside)
    tl.store(saved_ptr + 4 * num_rows + indices, operand_norms, mask=inside)
    tl.store(saved_ptr + 5 * num_rows + indices, rows.scales, mask=inside)
    tl.store(saved_labels(saved_ptr, num_rows) + indices, rows.labels, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def small_forward_kernel(
    rows_ptr,  # (N, D), any strides
    labels_ptr,  # (N,) int64
    saved_ptr,  # (8, N) of 4 bytes: of save_block
    lse_pos_ptr,  # (N,) float32
    lse_neg_ptr,  # (N,) float32
    num_rows,
    depth,
    row_stride,
    depth_stride,
    norm_eps,
    root_scale,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    factor,
    fixed_shift,
    FORMULA: tl.constexpr,
    NORMALIZED: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,  # dtype that is multiplied
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Compute both log-sum-exps of a block of rows, and what the backward pass takes of them."""
    given = Given(rows_ptr, num_rows, depth, row_stride, depth_stride)
    saved_ptr = saved_ptr.to(tl.pointer_type(tl.float32))
    formula = Formula(
        Kind(vertex_pos, floor_pos, factor), Kind(vertex_neg, floor_neg, factor), fixed_shift
    )
    row = tl.program_id(0) * BLOCK_ROWS
    indices = row + tl.arange(0, BLOCK_ROWS)
    rows, norms, operand_norms = measure_block(
        given, labels_ptr, row, norm_eps, root_scale, NORMALIZED, BLOCK_ROWS, BLOCK_DEPTH
    )
    positives = no_sum(BLOCK_ROWS)
    negatives = no_sum(BLOCK_ROWS)
    for column in range(0, num_rows, BLOCK_COLUMNS):
        columns, _, _ = measure_block(
            given, labels_ptr, column, norm_eps, root_scale, NORMALIZED, BLOCK_COLUMNS, BLOCK_DEPTH
        )
        products = block_products(
            given, rows, columns, INPUT_PRECISION, OPERAND, NORMALIZED, BLOCK_DEPTH
        )
        scales = rows.scales[:, None] * columns.scales[None, :]
        positive, counts, _ = block_kinds(
            given, indices, column + tl.arange(0, BLOCK_COLUMNS), rows.labels, columns.labels
        )
        exponents = pair_exponents(
            products, scales, positive & counts, formula.positive, True, FORMULA
        )
        positives = add_exponents(positives, exponents, 1)
        exponents = pair_exponents(
            products, scales, (positive ^ True) & counts, formula.negative, False, FORMULA
        )
        negatives = add_exponents(negatives, exponents, 1)
    inside = indices < num_rows
    exponents_pos, exponents_neg = finish_logsumexp(positives), finish_logsumexp(negatives)
    lse_pos = (exponents_pos - logit_constant(floor_pos, FORMULA)) * LN_2
    lse_neg = (exponents_neg - logit_constant(floor_neg, FORMULA)) * LN_2
    tl.store(lse_pos_ptr + indices, lse_pos, mask=inside)
    tl.store(lse_neg_ptr + indices, lse_neg, mask=inside)
    save_block(
        saved_ptr, exponents_pos, exponents_neg, rows, norms, operand_norms, indices, num_rows
    )


@triton.jit(do_not_specialize=["num_rows"])
def small_save_kernel(
    rows_ptr,  # (N, D), any strides
    labels_ptr,  # (N,) int64
    saved_ptr,  # (8, N) of 4 bytes: of save_block
    lse_pos_ptr,  # (N,) float32: known
    lse_neg_ptr,  # (N,) float32
    num_rows,
    depth,
    row_stride,
    depth_stride,
    norm_eps,
    root_scale,
    floor_pos,
    floor_neg,
    FORMULA: tl.constexpr,
    NORMALIZED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Find what the backward pass takes of a block of rows beside its log-sum-exps."""
    given = Given(rows_ptr, num_rows, depth, row_stride, depth_stride)
    saved_ptr = saved_ptr.to(tl.pointer_type(tl.float32))
    row = tl.program_id(0) * BLOCK_ROWS
    indices = row + tl.arange(0, BLOCK_ROWS)
    rows, norms, operand_norms = measure_block(
        given, labels_ptr, row, norm_eps, root_scale, NORMALIZED, BLOCK_ROWS, BLOCK_DEPTH
    )
    exponents_pos = exponents_of(tl.load(lse_pos_ptr + rows.indices), floor_pos, FORMULA)
    exponents_neg = exponents_of(tl.load(lse_neg_ptr + rows.indices), floor_neg, FORMULA)
    save_block(
        saved_ptr, exponents_pos, exponents_neg, rows, norms, operand_norms, indices, num_rows
    )


def small_launch(problem: PairProblem) -> tuple[dict[str, Any], dict[str, Any], Settings]:
    """What the kernels of both passes take of a problem: arguments, constants, settings."""
    embeddings = problem.embeddings
    conditions = conditions_on(embeddings.device)
    dtype, depth = operand_layout(problem)
    arguments = {
        "rows_ptr": embeddings,
        "num_rows": len(embeddings),
        "depth": embeddings.shape[1],
        "row_stride": embeddings.stride(0),
        "depth_stride": embeddings.stride(1),
        "norm_eps": NORM_EPS,
        **formula_arguments(problem.formula),
    }
    precision = dot_precision(conditions.hardware.architecture, dtype, problem.precision)
    constants = {
        "FORMULA": formula_constant(problem.formula),
        "NORMALIZED": problem.normalize,
        "INPUT_PRECISION": precision,
        "OPERAND": OPERANDS[dtype],
    }
    return arguments, constants, conditions.settings("small_batch", dtype, depth)


def small_forward(
    problem: PairProblem,
    saved: Tensor,  # bytes; filled
) -> tuple[Tensor, Tensor]:
    """Both log-sum-exps of each row of a problem that ``plan.Layout.small`` is true of."""
    embeddings = problem.embeddings
    num_rows = len(embeddings)
    lse_pos, lse_neg = (embeddings.new_empty(num_rows, dtype=torch.float32) for _ in range(2))
    arguments, constants, settings = small_launch(problem)
    launch_tiles(
        small_forward_kernel,
        ceil_div(num_rows, settings.block_rows),
        {
            **arguments,
            "labels_ptr": problem.labels.contiguous(),
            "saved_ptr": saved,
            "lse_pos_ptr": lse_pos,
            "lse_neg_ptr": lse_neg,
            "root_scale": math.sqrt(coordinate_scale(problem.formula)),
        },
        constants,
        settings,
    )
    return lse_pos, lse_neg


def small_save(
    problem: PairProblem,
    lse_pos: Tensor,  # (N,)
    lse_neg: Tensor,  # (N,)
    saved: Tensor,  # bytes; filled
) -> None:
    """What :func:`small_forward` saves, of log-sum-exps that are known."""
    arguments, constants, settings = small_launch(problem)
    arguments |= {
        "labels_ptr": problem.labels.contiguous(),
        "saved_ptr": saved,
        "lse_pos_ptr": lse_pos.contiguous(),
        "lse_neg_ptr": lse_neg.contiguous(),
        "root_scale": math.sqrt(coordinate_scale(problem.formula)),
    }
    # In the blocks of the forward pass, so that norms are rounded alike.
    constants |= {"BLOCK_ROWS": settings.block_rows, "BLOCK_DEPTH": settings.block_depth}
    known = small_save_kernel.arg_names
    launch_kernel(
        small_save_kernel,
        ceil_div(len(problem.embeddings), settings.block_rows),
        {name: value for name, value in arguments.items() if name in known},
        {name: value for name, value in constants.items() if name in known},
        settings.num_warps,
    )
