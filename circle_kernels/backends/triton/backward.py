"""Backward pass: recompute similarity tiles, turn them into ``dL/ds``, multiply by the other side.

One pair of kernels serves all three gradients, since ``dL/ds_ij`` needs only the statistics of its
anchors, which lie along the rows (gradient of the embeddings), along the columns (gradient of the
references) or along both (self mode, where the result is the whole gradient in one product). No
kernel uses atomics, so results are bitwise the same from run to run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circle_kernels.backends.interface import PairProblem
from circle_kernels.backends.triton.accumulate import accumulate_in_registers
from circle_kernels.backends.triton.launch import (
    device_family,
    formula_arguments,
    on_device,
    slope_scale,
)
from circle_kernels.backends.triton.normalization import finish_gradient
from circle_kernels.backends.triton.operands import (
    Side,
    operand_arguments,
    prepare_sides,
)
from circle_kernels.backends.triton.plan import plan_problem
from circle_kernels.backends.triton.settings import (
    accumulate_settings,
    dot_precision,
    weights_settings,
)
from circle_kernels.backends.triton.statistics import prepare_statistics
from circle_kernels.backends.triton.workspace import multiply_workspace


def backward(
    problem: PairProblem,
    lse_pos: Tensor,
    lse_neg: Tensor,
    saved: Tensor,  # (2, N): both log-sum-exps of exponents
    grad_lse_pos: Tensor,
    grad_lse_neg: Tensor,
    *,
    needs_embeddings: bool,
    needs_references: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of both sides."""
    with on_device(problem.embeddings.device):
        rows, columns = prepare_sides(problem, plan_problem(problem).by_label)
        unit = None
        if rows.operand.dtype == torch.float16:
            unit = _gradient_unit(problem, grad_lse_pos, grad_lse_neg)
            grad_lse_pos, grad_lse_neg = grad_lse_pos / unit, grad_lse_neg / unit
        table = prepare_statistics(
            rows, saved, grad_lse_pos, grad_lse_neg, slope_scale(problem.formula)
        )
        grad_embeddings = grad_references = None
        if needs_embeddings:
            grad_embeddings = _side_gradient(
                problem, rows, columns, table, table if problem.self_mode else None, unit
            )
        if needs_references:
            grad_references = _side_gradient(problem, columns, rows, None, table, unit)
        return grad_embeddings, grad_references


def _gradient_unit(problem: PairProblem, grad_lse_pos: Tensor, grad_lse_neg: Tensor) -> Tensor:
    """What upstream gradients are divided by so that float16 weights neither overflow nor vanish.

    A weight is at most (share of row + share of column) * gradient * slope <= 2 * unit * slope;
    the unit makes that bound half of float16's range, whatever scale the loss is multiplied by.
    """
    grads = torch.stack((grad_lse_pos, grad_lse_neg)).abs()
    largest = torch.nan_to_num(grads, nan=0.0, posinf=0.0).amax()
    bound = 2 * problem.formula.max_slope() / (torch.finfo(torch.float16).max / 2)
    return (largest * bound).clamp_min(torch.finfo(torch.float32).tiny).reshape(1)


def _side_gradient(
    problem: PairProblem,
    rows: Side,
    columns: Side,
    row_table: Tensor | None,  # (7, padded N) where rows are anchors
    column_table: Tensor | None,  # (7, padded M) where columns are anchors
    unit: Tensor | None,
) -> Tensor:
    """Gradient of the side that ``rows`` stands for."""
    family = device_family(rows.operand.device)
    depth, dtype = rows.operand.shape[1], rows.operand.dtype
    # A pointer that is never followed still has to be a tensor.
    unused = rows.scales
    arguments = {
        **operand_arguments(rows, columns),
        "row_table_ptr": unused if row_table is None else row_table,
        "column_table_ptr": unused if column_table is None else column_table,
        **formula_arguments(problem.formula),
        "slope_scale": slope_scale(problem.formula),
        "column_unit": 1 / columns.root_scale,
    }
    constants = {
        "SELF_MODE": problem.self_mode,
        "SORTED": rows.order is not None,
        "ROW_ANCHORS": row_table is not None,
        "COLUMN_ANCHORS": column_table is not None,
        "FORMULA": problem.formula.name,
        "DETACH_WEIGHTS": problem.formula.detach_weights,
        "INPUT_PRECISION": dot_precision(family, dtype),
    }
    settings = accumulate_settings(family, dtype, depth)
    if settings is not None:
        partial = accumulate_in_registers(rows, columns, arguments, constants, settings)
    else:
        settings = weights_settings(family, dtype, depth)
        partial = multiply_workspace(rows, columns, arguments, constants, settings)
    return finish_gradient(rows, partial, unit, problem.normalize)
