"""Forward pass: products, pair logits and both log-sum-exps of each row, without the matrix.

In self mode, where there are tiles enough to fill the device, only those on and above the diagonal
are visited; otherwise all of them are. What programs find is merged in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton.conditions import conditions_on
from circle_kernels.backends.triton.formula.arguments import formula_arguments, formula_constant
from circle_kernels.backends.triton.forward_pass.exact import sum_exactly_kernel
from circle_kernels.backends.triton.forward_pass.merge import (
    MERGE_BLOCKS,
    gather_sums_kernel,
    merge_sums_kernel,
)
from circle_kernels.backends.triton.forward_pass.rectangle import sum_rows_kernel
from circle_kernels.backends.triton.forward_pass.triangle import sum_triangle_kernel
from circle_kernels.backends.triton.launch import launch_kernel, launch_tiles, on_device
from circle_kernels.backends.triton.operands import own_copies, prepare_sides
from circle_kernels.backends.triton.plan import Band, Walk, plan_layout, plan_walk, shape_of
from circle_kernels.backends.triton.saved import begin_saved, new_saved
from circle_kernels.backends.triton.settings import dot_precision
from circle_kernels.backends.triton.sides import Side, ceil_div, pair_arguments
from circle_kernels.backends.triton.small_batch.forward import small_forward


def forward(problem: PairProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of every row, and what the backward pass needs of them."""
    device = problem.embeddings.device
    with on_device(device):
        conditions = conditions_on(device)
        shape = shape_of(problem)
        layout = plan_layout(shape, conditions)
        if layout.small:
            saved = new_saved(problem, layout)
            return *small_forward(problem, saved), saved
        walk = plan_walk(shape, conditions)
        problem, saved, pieces = begin_saved(problem, layout)
        sides = pieces.sides or prepare_sides(problem, pieces.row_order, pieces.column_order)
        rows, columns = sides
        constants = {
            "FORMULA": formula_constant(problem.formula),
            "NORMALIZED": problem.normalize,
            "INPUT_PRECISION": dot_precision(
                conditions.hardware.architecture, rows.operand.dtype, problem.precision
            ),
        }
        # Not views of one tensor, which registered ops may not return.
        lse_pos, lse_neg = (rows.scales.new_empty(problem.num_anchors) for _ in range(2))
        arguments = {
            **pair_arguments(rows, columns),
            **formula_arguments(problem.formula),
            "copies_ptr": own_copies(problem, rows, columns),
        }
        sums = _Sums(walk, problem, rows, arguments, constants)
        sums.merge(
            {
                "order_ptr": rows.order,
                "saved_ptr": pieces.logsumexps,
                "lse_pos_ptr": lse_pos,
                "lse_neg_ptr": lse_neg,
            }
        )
        if problem.both_sides:
            sums.merge_columns(
                {
                    "order_ptr": columns.order,
                    "saved_ptr": pieces.column_logsumexps,
                    "lse_pos_ptr": lse_pos.narrow(0, len(rows), len(columns)),
                    "lse_neg_ptr": lse_neg.narrow(0, len(rows), len(columns)),
                }
            )
        return lse_pos, lse_neg, saved


class _Sums:
    """What the programs of the forward pass leave, band by band, until it is merged."""

    def __init__(
        self,
        walk: Walk,
        problem: PairProblem,
        rows: Side,
        arguments: dict[str, Any],
        constants: dict[str, Any],
    ) -> None:
        self._walk = walk
        self._self_mode = problem.self_mode
        self._arguments = arguments
        self._constants = constants
        self._listed = {
            "listed_ptr": problem.listed,
            "listed_stride": 0 if problem.listed is None else problem.listed.stride(0),
        }
        self._rows = rows
        self._bands = list(walk.bands())
        self._left_over = None
        if self._bands:
            self._left_over = rows.scales.new_empty(walk.tiles, dtype=torch.int8)
        self._run_sums = self._new(*self._bands[0].run_sums) if self._bands else None
        self._tile_sums = self._new(*self._bands[0].tile_sums) if walk.triangle else None
        self._running = self._new(walk.kinds, walk.num_rows) if len(self._bands) > 1 else None
        self._exact_sums = self._new(4, walk.exact_slots, walk.num_rows)
        self._column_sums = self._new(4, 1, walk.num_columns) if problem.both_sides else None

    def _new(self, *shape: int) -> Tensor:
        return self._rows.scales.new_empty(shape)

    def merge(self, results: dict[str, Tensor | None]) -> None:
        """Launch all kernels; the last one writes ``order_ptr ... lse_neg_ptr`` of the merge."""
        for band in self._bands:
            self._sum_band(band)
            if band is not self._bands[-1]:
                self._merge_band(band, None, results)
        self._sum_exactly()
        self._merge_band(self._bands[-1] if self._bands else None, self._exact_sums, results)

    def merge_columns(self, results: dict[str, Tensor | None]) -> None:
        """Launch what writes the same of columns, once the rows' are merged."""
        self._merge_band(None, self._column_sums, results)

    def _sum_band(self, band: Band) -> None:
        walk = self._walk
        assert walk.settings is not None
        shared = {
            **self._arguments,
            "left_over_ptr": self._left_over,
            "run_sums_ptr": self._run_sums,
            "num_runs": walk.runs.number,
        }
        constants = {**self._constants, "EVEN_DEPTH": self._even(walk.settings.block_depth)}
        programs = band.blocks * walk.runs.number
        if walk.triangle:
            arguments = {
                **shared,
                "tile_sums_ptr": self._tile_sums,
                "first_column": band.first,
                "band_columns": band.size,
                "num_column_blocks": band.blocks,
            }
            known = sum_triangle_kernel.arg_names
            arguments = {name: value for name, value in arguments.items() if name in known}
            constants = {name: value for name, value in constants.items() if name in known}
            launch_tiles(sum_triangle_kernel, programs, arguments, constants, walk.settings)
            return
        arguments = {
            **shared,
            **self._listed,
            "first_row": band.first,
            "band_rows": band.size,
            "num_row_blocks": band.blocks,
        }
        constants |= {
            "SELF_MODE": self._self_mode,
            "LABELS": walk.labels,
            "COLUMN_SLICES": walk.settings.column_slices,
        }
        launch_tiles(sum_rows_kernel, programs, arguments, constants, walk.settings)

    def _sum_exactly(self) -> None:
        walk = self._walk
        settings = walk.exact_settings
        columns = None
        if self._column_sums is not None:
            columns = self._new(4, walk.exact_band_blocks, walk.num_columns)
        for band in walk.exact_bands():
            launch_tiles(
                sum_exactly_kernel,
                len(band) * walk.exact_slots,
                {
                    **self._arguments,
                    **self._listed,
                    "left_over_ptr": self._left_over,
                    "exact_sums_ptr": self._exact_sums,
                    "column_sums_ptr": columns,
                    "first_row": band.start * settings.block_rows,
                    "num_row_blocks": len(band),
                    "num_runs": walk.exact_runs.number,
                },
                {
                    **self._constants,
                    "EVEN_DEPTH": self._even(settings.block_depth),
                    "SELF_MODE": self._self_mode,
                    "TRIANGLE": walk.triangle,
                    "LABELS": walk.labels,
                    "TILE_ROWS": walk.tile.block_rows,
                    "TILE_COLUMNS": walk.tile.block_columns,
                },
                settings,
            )
            if columns is not None:
                launch_kernel(
                    gather_sums_kernel,
                    ceil_div(walk.num_columns, MERGE_BLOCKS["BLOCK_ROWS"]),
                    {
                        "partial_ptr": columns,
                        "gathered_ptr": self._column_sums,
                        "num_slots": len(band),
                        "num_rows": walk.num_columns,
                    },
                    {"FIRST": band.start == 0, **MERGE_BLOCKS},
                )

    def _even(self, block_depth: int) -> bool:
        return self._rows.operand.shape[1] % block_depth == 0

    def _merge_band(
        self, band: Band | None, exact_sums: Tensor | None, results: dict[str, Tensor | None]
    ) -> None:
        walk = self._walk
        slots, num_rows = (0, walk.num_rows) if exact_sums is None else exact_sums.shape[1:]
        launch_kernel(
            merge_sums_kernel,
            ceil_div(num_rows, MERGE_BLOCKS["BLOCK_ROWS"]),
            {
                **results,
                "run_sums_ptr": self._run_sums,
                "tile_sums_ptr": self._tile_sums,
                "running_ptr": self._running,
                "exact_sums_ptr": exact_sums,
                "num_rows": num_rows,
                "first": 0 if band is None else band.first,
                "band_size": 0 if band is None else band.size,
                "band_blocks": 0 if band is None else band.blocks,
                "num_runs": walk.runs.number,
                "tile_rows": walk.tile.block_rows,
                "tile_columns": walk.tile.block_columns,
                "exact_slots": slots,
                **{
                    name: self._arguments[name]
                    for name in ("floor_pos", "floor_neg", "fixed_shift")
                },
            },
            {
                "KINDS": walk.kinds,
                "FIRST": band is None or band.is_first,
                "FORMULA": self._constants["FORMULA"],
                **MERGE_BLOCKS,
            },
        )
