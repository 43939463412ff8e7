"""Backward pass: weights, from products computed again, times the other side's embeddings.

One set of weights serves both sides, since they hold both sides' scales; in self mode, where that
makes them symmetric, each is computed once. Nothing uses atomics, so results are bitwise the same
from run to run.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.backends.triton.backward_pass.anchors import AnchorSide, all_anchors
from circle_kernels.backends.triton.backward_pass.chunks import plan_chunks
from circle_kernels.backends.triton.backward_pass.statistics import (
    gradient_unit,
    prepare_statistics,
)
from circle_kernels.backends.triton.backward_pass.weights import write_weights
from circle_kernels.backends.triton.conditions import (
    Conditions,
    conditions_on,
    hardware_is_assumed,
)
from circle_kernels.backends.triton.formula.arguments import formula_arguments, formula_constant
from circle_kernels.backends.triton.launch import on_device
from circle_kernels.backends.triton.normalization import finish_gradient
from circle_kernels.backends.triton.operands import own_copies, prepare_sides
from circle_kernels.backends.triton.plan import Layout, Shape, exact_settings, plan_layout, shape_of
from circle_kernels.backends.triton.saved import aligned, view_saved
from circle_kernels.backends.triton.settings import dot_precision, fit_tile
from circle_kernels.backends.triton.settings_table import Settings
from circle_kernels.backends.triton.sides import Side, laid_out, pair_arguments
from circle_kernels.backends.triton.small_batch.backward import small_backward
from circle_kernels.formula import PairFormula


def backward(
    problem: PairProblem, passed: Passed, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of both sides."""
    with on_device(problem.embeddings.device):
        shape, conditions = shape_of(problem), conditions_on(problem.embeddings.device)
        layout = plan_layout(shape, conditions)
        if layout.small:
            saved, *upstream, _ = passed
            saved = aligned(saved, problem, layout)
            return small_backward(problem, saved, *upstream), None
        if layout.keeps_sides:
            problem = laid_out(problem)
        pieces = view_saved(passed.saved, problem, layout)
        sides = pieces.sides or prepare_sides(problem, pieces.row_order, pieces.column_order)
        rows, columns = sides
        anchors = all_anchors(problem, passed, pieces, sides)
        unit, tables = _prepared(anchors, problem.formula, layout)
        arguments = {
            **pair_arguments(rows, columns),
            **formula_arguments(problem.formula),
            "listed_ptr": problem.listed,
            "listed_stride": 0 if problem.listed is None else problem.listed.stride(0),
            "copies_ptr": own_copies(problem, rows, columns),
            **tables,
        }
        constants = {
            "SELF_MODE": problem.self_mode,
            "LABELS": layout.labels,
            "FORMULA": formula_constant(problem.formula),
            "DETACH_WEIGHTS": problem.formula.detach_weights,
            "NORMALIZED": problem.normalize,
            "INPUT_PRECISION": dot_precision(
                conditions.hardware.architecture, rows.operand.dtype, problem.precision
            ),
        }
        chunks = plan_chunks(shape, conditions.limits)
        of_rows = of_columns = None
        if needs.embeddings:
            of_rows = _SideGradient(rows, chunks.rows, chunks.column_chunks, unit, conditions)
        if needs.references:
            of_columns = _SideGradient(columns, chunks.columns, chunks.row_chunks, unit, conditions)
        settings = _weights_settings(shape, layout, conditions)
        workspace = rows.operand.new_empty(chunks.rows, chunks.columns)
        for chunk in chunks:
            multiprocessors = conditions.hardware.multiprocessors
            write_weights(chunk, workspace, settings, arguments, constants, multiprocessors)
            weights = workspace.narrow(0, 0, chunk.num_rows).narrow(1, 0, chunk.num_columns)
            if of_rows is not None:
                operand = columns.operand.narrow(0, chunk.first_column, chunk.num_columns)
                of_rows.add(chunk.row_index, weights, operand)
            mirrored = of_rows if problem.self_mode and not chunk.on_diagonal else of_columns
            if mirrored is not None:
                operand = rows.operand.narrow(0, chunk.first_row, chunk.num_rows)
                mirrored.add(chunk.column_index, weights.T, operand)
        return (
            None if of_rows is None else of_rows.gradient,
            None if of_columns is None else of_columns.gradient,
        )


def _prepared(
    anchors: list[AnchorSide],  # of rows; of references, if they count pairs
    formula: PairFormula,
    layout: Layout,
) -> tuple[Tensor | None, dict[str, Tensor | None]]:
    """What gradients are divided by, if anything, and the tables of statistics by their names."""
    unit = None
    if anchors[0].side.operand.dtype == torch.float16:
        # One for both: each weight is a sum of a row's share and of a column's.
        units = (gradient_unit(*each[1:], formula) for each in anchors)
        unit = functools.reduce(torch.maximum, units)
    tables: dict[str, Tensor | None] = {"table_ptr": None, "reference_table_ptr": None}
    for name, each in zip(tables, anchors, strict=False):
        tables[name] = prepare_statistics(*each, unit, formula, kinds=layout.kinds)
    return unit, tables


def _weights_settings(
    shape: Shape, layout: Layout, conditions: Conditions
) -> tuple[Settings | None, Settings]:
    """Those of tiles that the fixed shift serves, and of others."""
    exact = exact_settings("exact_weights", shape, conditions)
    if not shape.has_fixed_shift:
        return None, exact
    if layout.labels == "listed":  # what lists say of pairs takes registers
        return exact, exact
    kernel = "weights" if layout.kinds == 1 else "weights_in_any_order"
    served = conditions.settings(kernel, shape.dtype, shape.depth)
    return served, fit_tile(exact, served)


class _SideGradient:
    """The gradient of one side; a chunk of it is finished once all its products are added."""

    def __init__(
        self,
        side: Side,
        chunk: int,
        products: int,
        unit: Tensor | None,
        conditions: Conditions,
    ) -> None:
        self.gradient = side.operand.new_empty(len(side), side.depth, dtype=side.dtype)
        self._side = side
        self._chunk = chunk  # rows
        self._products = products  # that each chunk is the sum of
        self._unit = unit
        self._is_amd = conditions.hardware.is_amd
        self._sums: dict[int, tuple[int, Tensor]] = {}

    def add(self, index: int, weights: Tensor, operand: Tensor) -> None:
        """Add ``weights @ operand`` to the sums of a chunk."""
        added, sums = self._sums.pop(index, (0, None))
        sums = add_product(sums, weights, operand, self._is_amd)
        if added + 1 < self._products:
            self._sums[index] = added + 1, sums
        else:
            finish_gradient(self._side, index * self._chunk, sums, self._unit, self.gradient)


def add_product(
    sums: Tensor | None,  # (R, D) float32
    weights: Tensor,  # (R, C)
    operand: Tensor,  # (C, D)
    is_amd: bool,
) -> Tensor:  # (R, D) float32
    """``sums + weights @ operand`` in the sums' memory; half types are not rounded in between."""
    wide: dict[str, Any] = {}
    adds = True
    if weights.dtype != torch.float32:
        if not weights.is_cuda:
            weights, operand = weights.float(), operand.float()
        elif is_amd or not hasattr(torch.ops.aten.mm, "dtype"):
            # The matrix product accumulates in float32 and rounds once, at the end of a chunk.
            product = (weights @ operand).float()
            return product if sums is None else sums.add_(product)
        else:
            wide = {"out_dtype": torch.float32}
            adds = hardware_is_assumed() or adds_onto_float32(weights.device, weights.dtype)
    if sums is None:
        return torch.mm(weights, operand, **wide)
    if not adds:
        return sums.add_(torch.mm(weights, operand, **wide))
    return torch.addmm(sums, weights, operand, **wide, out=sums)


@functools.cache
def adds_onto_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch adds a product of a half type onto float32 sums; some versions want the sums
    in the half type, too."""
    sums, half = (torch.zeros(16, 16, dtype=each, device=device) for each in (torch.float32, dtype))
    try:
        torch.addmm(sums, half, half, out_dtype=torch.float32, out=sums)
    except (RuntimeError, TypeError):
        return False
    return True
