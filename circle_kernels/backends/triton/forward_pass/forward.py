"""Forward pass: products, pair logits and both log-sum-exps of each row, without the matrix.

In self mode, where there are tiles enough to fill the device, only those on and above the diagonal
are visited; otherwise all of them are. What programs find is merged in a fixed order.
"""

from __future__ import annotations

import math

from torch import Tensor

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton.conditions import conditions_on
from circle_kernels.backends.triton.formula import formula_arguments
from circle_kernels.backends.triton.forward_pass.merge import merge_sums_of_band
from circle_kernels.backends.triton.forward_pass.rectangle import sum_rows_kernel
from circle_kernels.backends.triton.forward_pass.triangle import sum_triangle_kernel
from circle_kernels.backends.triton.launch import launch_tiles, on_device
from circle_kernels.backends.triton.operands import fill_sides, prepare_sides, sort_by_label
from circle_kernels.backends.triton.plan import plan_walk, shape_of
from circle_kernels.backends.triton.saved import new_saved, products_arguments, view_saved
from circle_kernels.backends.triton.settings import dot_precision
from circle_kernels.backends.triton.sides import operand_arguments, row_arguments


def forward(problem: PairProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of every row, and what the backward pass needs of them."""
    device = problem.embeddings.device
    with on_device(device):
        conditions = conditions_on(device)
        walk = plan_walk(shape_of(problem), conditions)
        settings = walk.settings
        saved = new_saved(problem, walk)
        left = view_saved(saved, problem, walk)
        sort_by_label(problem, left.row_order, left.column_order)
        if left.sides is None:
            rows, columns = prepare_sides(problem, left.row_order, left.column_order)
        else:
            rows, columns = left.sides
            fill_sides(problem, rows, columns)
        formula = formula_arguments(problem.formula)
        constants = {
            "FORMULA": problem.formula.name,
            "NORMALIZED": problem.normalize,
            "INPUT_PRECISION": dot_precision(
                conditions.hardware.architecture, rows.operand.dtype, problem.precision
            ),
            "EVEN_DEPTH": rows.operand.shape[1] % settings.block_depth == 0,
        }
        bands = list(walk.bands())
        run_sums = rows.scales.new_empty(math.prod(bands[0].run_sums))
        tile_sums = rows.scales.new_empty(math.prod(bands[0].tile_sums))
        running = rows.scales.new_empty(4, len(rows) if len(bands) > 1 else 0)
        # Not views of one tensor, which registered ops may not return.
        lse_pos, lse_neg = (rows.scales.new_empty(len(rows)) for _ in range(2))
        for band in bands:
            arguments: dict[str, Tensor | int | float] = {
                **formula,
                "run_sums_ptr": _view(run_sums, band.run_sums),
                "num_runs": walk.runs,
                "tiles_per_run": walk.tiles_per_run,
            }
            if walk.triangle:
                arguments |= {
                    **row_arguments(rows),
                    "tile_sums_ptr": _view(tile_sums, band.tile_sums),
                    "first_column": band.first,
                    "band_columns": band.size,
                    "num_column_blocks": band.blocks,
                }
                launch_tiles(
                    sum_triangle_kernel, band.blocks * walk.runs, arguments, constants, settings
                )
            else:
                arguments |= {
                    **operand_arguments(rows, columns),
                    **products_arguments(left),
                    "first_row": band.first,
                    "band_rows": band.size,
                    "num_row_blocks": band.blocks,
                }
                launch_tiles(
                    sum_rows_kernel,
                    band.blocks * walk.runs,
                    arguments,
                    {
                        **constants,
                        "SELF_MODE": problem.self_mode,
                        "LABELS": walk.labels,
                        "KEEP": left.products is not None,
                    },
                    settings,
                )
            merge_sums_of_band(
                walk,
                band,
                {
                    "run_sums_ptr": run_sums,
                    "tile_sums_ptr": tile_sums,
                    "running_ptr": running,
                    "saved_ptr": left.logsumexps,
                    "lse_pos_ptr": lse_pos,
                    "lse_neg_ptr": lse_neg,
                },
                rows.order,
                problem.formula,
            )
        return lse_pos, lse_neg, saved


def _view(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    return memory.narrow(0, 0, math.prod(shape)).view(shape)
