"""Forward pass: similarities, pair logits and both log-sum-exps of each row in one kernel.

Each program walks over the columns for one block of rows. Where there are too few blocks to fill
the device, the columns are split and the splits' log-sum-exps merged.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.interface import PairProblem
from circle_kernels.backends.triton.launch import (
    device_family,
    formula_arguments,
    launch_tiles,
    on_device,
    split_columns,
)
from circle_kernels.backends.triton.normalization import operand_arguments, prepare_sides
from circle_kernels.backends.triton.primitives import (
    LN_2,
    accumulate_logsumexp,
    label_masks,
    pair_logits,
    similarity_tile,
)
from circle_kernels.backends.triton.settings import dot_precision, forward_settings


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "num_columns",
        "num_row_blocks",
        "tiles_per_split",
    ]
)
def pair_logsumexp_kernel(
    rows_ptr,  # (N, D)
    row_labels_ptr,  # (N,) int64
    row_scales_ptr,  # (N,) float32
    columns_ptr,  # (M, D)
    column_labels_ptr,  # (M,) int64
    column_scales_ptr,  # (M,) float32
    partial_pos_ptr,  # (splits, N) float32: lse_pos over the columns of each split
    partial_neg_ptr,  # (splits, N) float32
    num_rows,
    num_columns,
    depth,
    row_stride,
    row_depth_stride,
    column_stride,
    column_depth_stride,
    num_row_blocks,
    tiles_per_split,
    gamma,
    optimum_pos,
    optimum_neg,
    margin_pos,
    margin_neg,
    SELF_MODE: tl.constexpr,
    FORMULA: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Write the log-sum-exps of one block of rows over one split of the columns."""
    row_block = tl.program_id(0) % num_row_blocks
    split = tl.program_id(0) // num_row_blocks
    rows = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_inside = rows < num_rows
    row_labels = tl.load(row_labels_ptr + rows, mask=row_inside, other=0)
    row_scales = tl.load(row_scales_ptr + rows, mask=row_inside, other=0.0)

    max_pos = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    max_neg = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    sum_pos = tl.zeros((BLOCK_ROWS,), tl.float32)
    sum_neg = tl.zeros((BLOCK_ROWS,), tl.float32)
    first = split * tiles_per_split * BLOCK_COLUMNS
    last = tl.minimum(first + tiles_per_split * BLOCK_COLUMNS, num_columns)
    for start in range(first, last, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        column_inside = columns < num_columns
        column_labels = tl.load(column_labels_ptr + columns, mask=column_inside, other=0)
        column_scales = tl.load(column_scales_ptr + columns, mask=column_inside, other=0.0)
        similarity = similarity_tile(
            rows_ptr,
            rows,
            num_rows,
            row_stride,
            row_depth_stride,
            columns_ptr,
            columns,
            num_columns,
            column_stride,
            column_depth_stride,
            depth,
            row_scales,
            column_scales,
            BLOCK_DEPTH,
            INPUT_PRECISION,
        )
        positive, negative = label_masks(
            row_labels, column_labels, rows, columns, num_columns, SELF_MODE
        )
        logits_pos = pair_logits(similarity, gamma, optimum_pos, margin_pos, True, FORMULA)
        max_pos, sum_pos = accumulate_logsumexp(max_pos, sum_pos, logits_pos, positive)
        logits_neg = pair_logits(similarity, gamma, optimum_neg, margin_neg, False, FORMULA)
        max_neg, sum_neg = accumulate_logsumexp(max_neg, sum_neg, logits_neg, negative)

    offsets = split.to(tl.int64) * num_rows + rows
    tl.store(partial_pos_ptr + offsets, (max_pos + tl.log2(sum_pos)) * LN_2, mask=row_inside)
    tl.store(partial_neg_ptr + offsets, (max_neg + tl.log2(sum_neg)) * LN_2, mask=row_inside)


def forward(problem: PairProblem) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of every row."""
    device = problem.embeddings.device
    with on_device(device):
        rows, columns = prepare_sides(problem)
        family = device_family(device)
        settings = forward_settings(family, rows.operand.dtype)
        row_blocks, splits, tiles_per_split = split_columns(
            len(rows), len(columns), settings.block_rows, settings.block_columns, device
        )
        partial_pos = rows.scales.new_empty(splits, len(rows))
        partial_neg = torch.empty_like(partial_pos)
        launch_tiles(
            pair_logsumexp_kernel,
            row_blocks * splits,
            {
                **operand_arguments(rows, columns),
                "partial_pos_ptr": partial_pos,
                "partial_neg_ptr": partial_neg,
                "num_row_blocks": row_blocks,
                "tiles_per_split": tiles_per_split,
                **formula_arguments(problem.formula),
            },
            {
                "SELF_MODE": problem.self_mode,
                "FORMULA": problem.formula.name,
                "INPUT_PRECISION": dot_precision(family, rows.operand.dtype),
            },
            settings,
        )
        if splits == 1:
            return partial_pos[0], partial_neg[0]
        return partial_pos.logsumexp(dim=0), partial_neg.logsumexp(dim=0)
