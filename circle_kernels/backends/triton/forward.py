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
    launch_kernel,
    launch_tiles,
    on_device,
    split_columns,
)
from circle_kernels.backends.triton.operands import operand_arguments, prepare_sides
from circle_kernels.backends.triton.primitives import (
    LN_2,
    accumulate_logsumexp,
    label_masks,
    pair_logits,
    similarity_tile,
)
from circle_kernels.backends.triton.settings import dot_precision, forward_settings

_MERGE_BLOCK = {"BLOCK_ROWS": 128}


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "num_columns",
        "num_row_blocks",
        "num_splits",
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
    partial_ptr,  # (2, splits, N) float32: base-2 lse_pos, lse_neg over the columns of each split
    num_rows,
    num_columns,
    depth,
    row_stride,
    column_stride,
    num_row_blocks,
    num_splits,
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
            columns_ptr,
            columns,
            num_columns,
            column_stride,
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
    tl.store(partial_ptr + offsets, max_pos + tl.log2(sum_pos), mask=row_inside)
    offsets += num_splits.to(tl.int64) * num_rows
    tl.store(partial_ptr + offsets, max_neg + tl.log2(sum_neg), mask=row_inside)


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def merge_splits_kernel(
    partial_ptr,  # (2, splits, N) float32, base 2
    merged_ptr,  # (2, N) float32, base 2
    lse_pos_ptr,  # (N,) float32
    lse_neg_ptr,  # (N,) float32
    num_rows,
    num_splits,
    BLOCK_ROWS: tl.constexpr,
):
    """Merge the splits' log-sum-exps; keep them in base 2 for the backward pass.

    Converting to natural logarithms and back would round twice, and a rounding of a log-sum-exp
    is a relative error of every gradient of its row.
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    for kind in tl.static_range(2):
        running_max = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
        running_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
        for split in range(num_splits):
            offsets = (kind * num_splits + split).to(tl.int64) * num_rows + rows
            partial = tl.load(partial_ptr + offsets, mask=inside, other=0.0)
            running_max, running_sum = accumulate_logsumexp(
                running_max, running_sum, partial[:, None], inside[:, None]
            )
        merged = running_max + tl.log2(running_sum)
        tl.store(merged_ptr + kind * num_rows.to(tl.int64) + rows, merged, mask=inside)
        tl.store((lse_neg_ptr if kind else lse_pos_ptr) + rows, merged * LN_2, mask=inside)


def saved_shape(problem: PairProblem) -> tuple[int, int]:
    """What the forward pass keeps for the backward: both log-sum-exps in base 2."""
    return 2, len(problem.embeddings)


def forward(problem: PairProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of every row, and the same in base 2."""
    device = problem.embeddings.device
    with on_device(device):
        rows, columns = prepare_sides(problem)
        family = device_family(device)
        settings = forward_settings(family, rows.operand.dtype, rows.operand.shape[1])
        row_blocks, splits, tiles_per_split = split_columns(
            len(rows), len(columns), settings.block_rows, settings.block_columns, device
        )
        partial = rows.scales.new_empty(2, splits, len(rows))
        launch_tiles(
            pair_logsumexp_kernel,
            row_blocks * splits,
            {
                **operand_arguments(rows, columns),
                "partial_ptr": partial,
                "num_row_blocks": row_blocks,
                "num_splits": splits,
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
        merged = rows.scales.new_empty(saved_shape(problem))
        lse_pos, lse_neg = torch.empty_like(rows.scales), torch.empty_like(rows.scales)
        launch_kernel(
            merge_splits_kernel,
            triton.cdiv(len(rows), _MERGE_BLOCK["BLOCK_ROWS"]),
            {
                "partial_ptr": partial,
                "merged_ptr": merged,
                "lse_pos_ptr": lse_pos,
                "lse_neg_ptr": lse_neg,
                "num_rows": len(rows),
                "num_splits": splits,
            },
            _MERGE_BLOCK,
            num_warps=4,
            num_stages=1,
        )
        return lse_pos, lse_neg, merged
