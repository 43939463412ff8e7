"""What the loss changes with the logarithm of the formula's scales: logits under their softmax."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.problem import PairProblem, Passed
from circle_kernels.backends.triton.backward_pass.anchors import all_anchors
from circle_kernels.backends.triton.backward_pass.gradients import (
    LSE,
    UPSTREAM,
    along_rows,
    load_statistic,
    of_kind,
)
from circle_kernels.backends.triton.backward_pass.statistics import prepare_statistics
from circle_kernels.backends.triton.conditions import conditions_on
from circle_kernels.backends.triton.formula.arguments import (
    formula_arguments,
    formula_constant,
    slope_scales,
)
from circle_kernels.backends.triton.formula.pairs import (
    Formula,
    Kind,
    logit_constant,
    mixed_distances,
    pair_floors,
    shifted_exponents,
)
from circle_kernels.backends.triton.launch import launch_tiles, on_device
from circle_kernels.backends.triton.operands import own_copies, prepare_sides
from circle_kernels.backends.triton.plan import exact_settings, plan_layout, plan_runs, shape_of
from circle_kernels.backends.triton.primitives import (
    Pairs,
    Points,
    pair_kinds,
    pair_scales,
    tile_products,
)
from circle_kernels.backends.triton.saved import view_saved
from circle_kernels.backends.triton.settings import dot_precision
from circle_kernels.backends.triton.sides import ceil_div, laid_out, pair_arguments


@triton.jit(do_not_specialize=["num_rows", "num_columns", "num_row_blocks", "num_runs"])
def sum_logits_kernel(
    rows_ptr,  # (N, D)
    row_labels_ptr,  # (padded N,) int64
    row_scales_ptr,  # (padded N,) float32
    columns_ptr,  # (M, D)
    column_labels_ptr,  # (padded M,) int64
    column_scales_ptr,  # (padded M,) float32
    listed_ptr,  # (padded N, padded M) uint8, or None
    copies_ptr,  # (padded N,) int64, or (padded M,): operands.own_copies; or None
    table_ptr,  # (blocks, TABLE_ROWS, STATISTICS_BLOCK) float32: of rows
    sums_ptr,  # (2, programs) float32: of positives, then of negatives
    num_rows,
    num_columns,
    depth,
    row_stride,
    column_stride,
    listed_stride,
    num_row_blocks,
    num_runs,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    factor,
    fixed_shift,
    SELF_MODE: tl.constexpr,
    LABELS: tl.constexpr,  # plan.Labels
    COPIED: tl.constexpr,  # the side that has copies: "rows" or "columns"
    FORMULA: tl.constexpr,
    NORMALIZED: tl.constexpr,  # else products may overflow
    INPUT_PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Sum base-2 logits, each times its share of its row and the row's upstream gradient."""
    rows = Points(rows_ptr, row_labels_ptr, row_scales_ptr, num_rows, row_stride)
    columns = Points(columns_ptr, column_labels_ptr, column_scales_ptr, num_columns, column_stride)
    pairs = Pairs(rows, columns, depth)
    formula = Formula(
        Kind(vertex_pos, floor_pos, factor), Kind(vertex_neg, floor_neg, factor), fixed_shift
    )
    row = tl.multiple_of(tl.program_id(0) % num_row_blocks * BLOCK_ROWS, BLOCK_ROWS)
    lse = along_rows(load_statistic(table_ptr, row, LSE, BLOCK_ROWS))
    upstream = along_rows(load_statistic(table_ptr, row, UPSTREAM, BLOCK_ROWS))
    positives = tl.zeros((BLOCK_ROWS,), tl.float32)
    negatives = tl.zeros((BLOCK_ROWS,), tl.float32)
    num_tiles = tl.cdiv(num_columns, BLOCK_COLUMNS)
    for tile in range(tl.program_id(0) // num_row_blocks, num_tiles, num_runs):
        column = tl.multiple_of(tile * BLOCK_COLUMNS, BLOCK_COLUMNS)
        products = tile_products(
            pairs,
            row,
            column,
            (INPUT_PRECISION, EVEN_DEPTH, NORMALIZED, BLOCK_DEPTH),
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
        scales = pair_scales(pairs, row, column, BLOCK_ROWS, BLOCK_COLUMNS)
        positive, counts, _ = pair_kinds(
            pairs,
            row,
            column,
            listed_ptr,
            listed_stride,
            copies_ptr,
            COPIED,
            SELF_MODE,
            LABELS,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
        distances = mixed_distances(products, scales, positive, formula, FORMULA)
        shares = tl.exp2(shifted_exponents(distances, of_kind(positive, lse), FORMULA))
        constants = logit_constant(pair_floors(positive, formula, FORMULA), FORMULA)
        constants = tl.zeros(products.shape, tl.float32) + constants
        logits = shifted_exponents(distances, constants, FORMULA)
        # A logit of -inf has no share; NaN goes on.
        counts = counts & (shares != 0.0)
        terms = tl.where(counts, shares * of_kind(positive, upstream) * logits, 0.0)
        positives += tl.sum(tl.where(positive, terms, 0.0), axis=1)
        negatives += tl.sum(tl.where(positive, 0.0, terms), axis=1)
    sums_ptr += tl.program_id(0)
    tl.store(sums_ptr, tl.sum(positives, axis=0))
    tl.store(sums_ptr + tl.num_programs(0), tl.sum(negatives, axis=0))


def scale_gradients(problem: PairProblem, passed: Passed) -> Tensor:  # (2,) float32
    """Of each kind ``sum_i grad_lse_i sum_j softmax_ij z_ij``, over all that count pairs."""
    with on_device(problem.embeddings.device):
        shape, conditions = shape_of(problem), conditions_on(problem.embeddings.device)
        layout = plan_layout(shape, conditions)
        if layout.keeps_sides:
            problem = laid_out(problem)
        pieces = view_saved(passed.saved, problem, layout)
        sides = pieces.sides or prepare_sides(problem, pieces.row_order, pieces.column_order)
        settings = exact_settings("exact_weights", shape, conditions)
        multiprocessors = conditions.hardware.multiprocessors
        arguments = {
            **formula_arguments(problem.formula),
            "listed_ptr": problem.listed,
            "listed_stride": 0 if problem.listed is None else problem.listed.stride(0),
            "copies_ptr": own_copies(problem, *sides),
        }
        precision = dot_precision(
            conditions.hardware.architecture, sides[0].operand.dtype, problem.precision
        )
        depth = sides[0].operand.shape[1]
        constants = {
            "SELF_MODE": problem.self_mode,
            "LABELS": layout.labels,
            "FORMULA": formula_constant(problem.formula),
            "NORMALIZED": problem.normalize,
            "INPUT_PRECISION": precision,
            "EVEN_DEPTH": depth % settings.block_depth == 0,
        }
        # Back from what tables hold upstream gradients times, and from base 2.
        slopes = slope_scales(problem.formula).values()
        units = [math.log(2) / each if each else 0.0 for each in slopes]
        total = sides[0].scales.new_zeros(2)
        counting = all_anchors(problem, passed, pieces, sides)
        for anchors, columns, copied in zip(
            counting, sides[::-1], ("rows", "columns"), strict=False
        ):
            rows = anchors.side
            if copied == "columns" and problem.listed is not None:
                # Bits of columns in the place of those of rows.
                arguments["listed_ptr"] = (problem.listed >> 2).T.contiguous()
                arguments["listed_stride"] = problem.listed.shape[0]
            row_blocks = ceil_div(len(rows), settings.block_rows)
            tiles = ceil_div(len(columns), settings.block_columns)
            runs = plan_runs(row_blocks, tiles, multiprocessors)
            sums = rows.scales.new_empty(2, row_blocks * runs.number)
            table = prepare_statistics(*anchors, None, problem.formula, kinds=layout.kinds)
            launch_tiles(
                sum_logits_kernel,
                row_blocks * runs.number,
                {
                    **arguments,
                    **pair_arguments(rows, columns),
                    "table_ptr": table,
                    "sums_ptr": sums,
                    "num_row_blocks": row_blocks,
                    "num_runs": runs.number,
                },
                {**constants, "COPIED": copied},
                settings,
            )
            kinds = zip(sums.unbind(), units, strict=True)
            total = total + torch.stack([each.sum() * unit for each, unit in kinds])
        return total
