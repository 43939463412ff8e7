"""Backward pass: weights, from products kept or computed again, times the other side's embeddings.

One set of weights serves both sides, since they hold both sides' scales; in self mode, where that
makes them symmetric, each is computed once. Nothing uses atomics, so results are bitwise the same
from run to run.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.backends.triton.backward_pass.statistics import (
    gradient_unit,
    prepare_statistics,
)
from circle_kernels.backends.triton.backward_pass.workspace import multiply, write_weights
from circle_kernels.backends.triton.conditions import Conditions, Hardware, conditions_on
from circle_kernels.backends.triton.formula import formula_arguments
from circle_kernels.backends.triton.launch import on_device
from circle_kernels.backends.triton.normalization import finish_gradient
from circle_kernels.backends.triton.operands import prepare_sides
from circle_kernels.backends.triton.plan import Chunks, Labels, plan_chunks, plan_walk, shape_of
from circle_kernels.backends.triton.saved import Saved, products_arguments, view_saved
from circle_kernels.backends.triton.settings import dot_precision, weights_settings
from circle_kernels.backends.triton.sides import Side, operand_arguments


def backward(
    problem: PairProblem, passed: Passed, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of both sides."""
    saved, grad_lse_pos, grad_lse_neg = passed
    with on_device(problem.embeddings.device):
        shape, conditions = shape_of(problem), conditions_on(problem.embeddings.device)
        walk = plan_walk(shape, conditions)
        left = view_saved(saved, problem, walk)
        sides = left.sides or prepare_sides(problem, left.row_order, left.column_order)
        rows, columns = sides
        unit = None
        if rows.operand.dtype == torch.float16:
            unit = gradient_unit(grad_lse_pos, grad_lse_neg, problem.formula)
        table = prepare_statistics(
            rows, left.logsumexps, grad_lse_pos, grad_lse_neg, unit, problem.formula
        )
        chunks = plan_chunks(shape, conditions.limits)
        hardware = conditions.hardware
        of_rows = of_columns = None
        if needs.embeddings:
            of_rows = _SideGradient(rows, chunks.rows, chunks.column_chunks, unit, hardware)
        if needs.references:
            of_columns = _SideGradient(columns, chunks.columns, chunks.row_chunks, unit, hardware)
        _multiply_chunks(
            problem,
            rows,
            columns,
            table,
            left,
            walk.labels,
            chunks,
            conditions,
            of_rows,
            of_rows if problem.self_mode else of_columns,
        )
        return (
            None if of_rows is None else of_rows.gradient,
            None if of_columns is None else of_columns.gradient,
        )


class _SideGradient:
    """The gradient of one side; a chunk of it is finished once all its products are added."""

    def __init__(
        self,
        side: Side,
        chunk: int,
        products: int,
        unit: Tensor | None,
        hardware: Hardware,
    ) -> None:
        self.gradient = side.operand.new_empty(len(side), side.depth, dtype=side.dtype)
        self._side = side
        self._chunk = chunk  # rows
        self._products = products  # that each chunk is the sum of
        self._unit = unit
        self._hardware = hardware
        self._sums: dict[int, Tensor] = {}
        self._added: Counter[int] = Counter()

    def add(self, index: int, weights: Tensor, operand: Tensor) -> None:
        """Add ``weights @ operand`` to the sums of a chunk."""
        product = multiply(weights, operand, self._hardware)
        if index in self._sums:
            self._sums[index] += product
        else:
            self._sums[index] = product
        self._added[index] += 1
        if self._added[index] == self._products:
            finish_gradient(
                self._side, index * self._chunk, self._sums.pop(index), self._unit, self.gradient
            )


def _multiply_chunks(
    problem: PairProblem,
    rows: Side,
    columns: Side,
    table: Tensor,  # statistics.prepare_statistics
    left: Saved,
    labels: Labels,
    chunks: Chunks,
    conditions: Conditions,
    of_rows: _SideGradient | None,
    of_columns: _SideGradient | None,
) -> None:
    """Write the weights of each pair of chunks and multiply them by the chunks of both sides."""
    architecture, dtype = conditions.hardware.architecture, rows.operand.dtype
    kept = left.products is not None
    settings = weights_settings(
        architecture,
        dtype,
        rows.operand.shape[1],
        by_label=labels != "any order",
        kept=kept,
        table=conditions.table,
    )
    arguments = {
        **operand_arguments(rows, columns),
        **formula_arguments(problem.formula),
        **products_arguments(left),
        "table_ptr": table,
    }
    constants = {
        "SELF_MODE": problem.self_mode,
        "LABELS": labels,
        "KEPT": kept,
        "FORMULA": problem.formula.name,
        "DETACH_WEIGHTS": problem.formula.detach_weights,
        "NORMALIZED": problem.normalize,
        "INPUT_PRECISION": dot_precision(architecture, dtype, problem.precision),
    }
    workspace = rows.operand.new_empty(chunks.rows, chunks.columns)
    for row_chunk, column_chunk in chunks.pairs():
        first_row, num_rows = chunks.row_range(row_chunk)
        first_column, num_columns = chunks.column_range(column_chunk)
        mirror = problem.self_mode and row_chunk == column_chunk
        write_weights(
            workspace,
            first_row,
            first_column,
            num_rows,
            num_columns,
            arguments,
            {**constants, "MIRROR": mirror},
            settings,
            conditions.hardware,
        )
        weights = workspace.narrow(0, 0, num_rows).narrow(1, 0, num_columns)
        if of_rows is not None:
            operand = columns.operand.narrow(0, first_column, num_columns)
            of_rows.add(row_chunk, weights, operand)
        if of_columns is not None and not mirror:
            of_columns.add(column_chunk, weights.T, rows.operand.narrow(0, first_row, num_rows))
