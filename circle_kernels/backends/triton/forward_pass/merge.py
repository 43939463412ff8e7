"""Between the passes: what programs found for each row becomes its two log-sum-exps."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.triton.formula import formula_arguments, logit_constant
from circle_kernels.backends.triton.launch import launch_kernel
from circle_kernels.backends.triton.plan import Band, Walk
from circle_kernels.backends.triton.primitives import LN_2, finish_logsumexp, merge_sums
from circle_kernels.backends.triton.sides import ceil_div
from circle_kernels.formula import PairFormula

# Rows that a program merges, and partial sums that it loads at a time.
_BLOCKS = {"BLOCK_ROWS": 128, "BLOCK_SLOTS": 16}


@triton.jit
def merge_slots(
    shift,  # (R,)
    sums,  # (R,)
    partial_ptr,  # (2, slots, rows) float32: shifts, then sums
    rows,  # (R,) within the partial sums
    num_slots,
    num_rows,
    first_slots,  # (R,): slots from this one on hold something for the row
    BLOCK_SLOTS: tl.constexpr,
):
    """Take the slots of one kind of pair into running sums, always in the same order."""
    for start in range(
        tl.min(first_slots, axis=0) // BLOCK_SLOTS * BLOCK_SLOTS, num_slots, BLOCK_SLOTS
    ):
        slots = start + tl.arange(0, BLOCK_SLOTS)
        filled = (slots[:, None] >= first_slots[None, :]) & (slots < num_slots)[:, None]
        offsets = slots.to(tl.int64)[:, None] * num_rows + rows[None, :]
        shifts = tl.load(partial_ptr + offsets, mask=filled, other=-float("inf"))
        offsets += num_slots.to(tl.int64) * num_rows
        slot_sums = tl.load(partial_ptr + offsets, mask=filled, other=0.0)
        highest = tl.max(shifts, axis=0)
        finite = tl.where(highest == -float("inf"), 0.0, highest)
        scaled = tl.sum(slot_sums * tl.exp2(shifts - finite[None, :]), axis=0)
        shift, sums = merge_sums(shift, sums, highest, scaled)
    return shift, sums


@triton.jit(
    do_not_specialize=["num_rows", "band_first", "band_size", "band_blocks", "num_runs", "block"]
)
def merge_band_kernel(
    run_sums_ptr,  # (4, runs, band_size) float32
    tile_sums_ptr,  # (4, band_blocks, N) float32, if TRIANGLE
    running_ptr,  # (4, N) float32: what earlier bands left, if not FIRST
    order_ptr,  # (N,) int64: where the caller has each row, if SORTED
    saved_ptr,  # (2, N) float32: log-sum-exps of exponents, in the caller's order
    lse_pos_ptr,  # (N,) float32
    lse_neg_ptr,  # (N,) float32
    num_rows,
    band_first,
    band_size,
    band_blocks,
    num_runs,
    block,  # rows or columns of a block
    floor_pos,
    floor_neg,
    TRIANGLE: tl.constexpr,
    SORTED: tl.constexpr,
    FORMULA: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    """Merge what one band left; after the last one, take logarithms.

    Log-sum-exps of exponents are kept for the backward pass: converting to natural logarithms and
    back would round twice, and a rounding of a log-sum-exp is a relative error of every gradient
    of its row.
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    in_band = (rows >= band_first) & (rows < band_first + band_size)
    first_runs = tl.where(in_band, 0, num_runs)
    # Of a row's tiles above the diagonal, those of the column blocks after its own.
    first_blocks = tl.where(inside, tl.maximum((rows - band_first) // block + 1, 0), band_blocks)
    first_blocks = tl.where(rows < band_first, 0, first_blocks)
    order = rows.to(tl.int64)
    if SORTED:
        order = tl.load(order_ptr + rows, mask=inside, other=0)
    for kind in tl.static_range(2):
        shift = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
        sums = tl.zeros((BLOCK_ROWS,), tl.float32)
        running = 2 * kind * num_rows.to(tl.int64) + rows
        if not FIRST:
            shift = tl.load(running_ptr + running, mask=inside, other=0.0)
            sums = tl.load(running_ptr + running + num_rows, mask=inside, other=0.0)
        shift, sums = merge_slots(
            shift,
            sums,
            run_sums_ptr + 2 * kind * num_runs.to(tl.int64) * band_size,
            rows - band_first,
            num_runs,
            band_size,
            first_runs,
            BLOCK_SLOTS,
        )
        if TRIANGLE:
            shift, sums = merge_slots(
                shift,
                sums,
                tile_sums_ptr + 2 * kind * band_blocks.to(tl.int64) * num_rows,
                rows,
                band_blocks,
                num_rows,
                first_blocks,
                BLOCK_SLOTS,
            )
        if LAST:
            exponents = finish_logsumexp(shift, sums)
            tl.store(saved_ptr + kind * num_rows.to(tl.int64) + order, exponents, mask=inside)
            constant = logit_constant(floor_neg if kind else floor_pos, FORMULA)
            lse_ptr = lse_neg_ptr if kind else lse_pos_ptr
            tl.store(lse_ptr + order, (exponents - constant) * LN_2, mask=inside)
        else:
            tl.store(running_ptr + running, shift, mask=inside)
            tl.store(running_ptr + running + num_rows, sums, mask=inside)


def merge_sums_of_band(
    walk: Walk,
    band: Band,
    memory: dict[str, Tensor],  # run_sums_ptr ... lse_neg_ptr of the kernel
    order: Tensor | None,  # (N,) int64
    formula: PairFormula,
) -> None:
    """Merge what one band left; the last band also writes the results."""
    constants = formula_arguments(formula)
    launch_kernel(
        merge_band_kernel,
        ceil_div(walk.num_rows, _BLOCKS["BLOCK_ROWS"]),
        {
            **memory,
            # A pointer that is never followed still has to be a tensor.
            "order_ptr": memory["saved_ptr"] if order is None else order,
            "num_rows": walk.num_rows,
            "band_first": band.first,
            "band_size": band.size,
            "band_blocks": band.blocks,
            "num_runs": walk.runs,
            "block": walk.block,
            "floor_pos": constants["floor_pos"],
            "floor_neg": constants["floor_neg"],
        },
        {
            "TRIANGLE": walk.triangle,
            "SORTED": order is not None,
            "FORMULA": formula.name,
            "FIRST": band.is_first,
            "LAST": band.is_last,
            **_BLOCKS,
        },
        num_warps=4,
        num_stages=1,
    )
