"""Between the passes: what programs found for each row becomes its two log-sum-exps."""

from __future__ import annotations

import triton
import triton.language as tl

from circle_kernels.backends.triton.formula.pairs import logit_constant
from circle_kernels.backends.triton.forward_pass.exact import Sum, merge_sums, no_sum
from circle_kernels.backends.triton.primitives import LN_2

# Rows that a program merges, and partial sums that it loads at a time.
MERGE_BLOCKS = {"BLOCK_ROWS": 128, "BLOCK_SLOTS": 16}


@triton.jit
def slot_offsets(
    start,
    first_slots,  # (R,): slots from this one on hold something for the row
    num_slots,
    num_rows,
    rows,  # (R,) within the slots
    BLOCK_SLOTS: tl.constexpr,
):
    """Where the next slots lie, and which of them are filled."""
    slots = start + tl.arange(0, BLOCK_SLOTS)
    filled = (slots[:, None] >= first_slots[None, :]) & (slots < num_slots)[:, None]
    return slots.to(tl.int64)[:, None] * num_rows + rows[None, :], filled


@triton.jit
def add_slots(
    total,  # (R,)
    partial_ptr,  # (slots, rows) float32
    rows,  # (R,)
    num_slots,
    num_rows,
    first_slots,  # (R,)
    BLOCK_SLOTS: tl.constexpr,
):
    """Add sums against one shift, always in the same order."""
    first = tl.min(first_slots, axis=0) // BLOCK_SLOTS * BLOCK_SLOTS
    for start in range(first, num_slots, BLOCK_SLOTS):
        offsets, filled = slot_offsets(start, first_slots, num_slots, num_rows, rows, BLOCK_SLOTS)
        total += tl.sum(tl.load(partial_ptr + offsets, mask=filled, other=0.0), axis=0)
    return total


@triton.jit
def merge_slots(
    sums,  # Sum of R rows
    partial_ptr,  # (2, slots, rows) float32: shifts, then totals
    rows,  # (R,)
    num_slots,
    num_rows,
    BLOCK_SLOTS: tl.constexpr,
):
    """Add sums that have shifts of their own, always in the same order."""
    plane = num_slots.to(tl.int64) * num_rows
    first_slots = tl.where(rows < num_rows, 0, num_slots)
    for start in range(0, num_slots, BLOCK_SLOTS):
        offsets, filled = slot_offsets(start, first_slots, num_slots, num_rows, rows, BLOCK_SLOTS)
        shifts = tl.load(partial_ptr + offsets, mask=filled, other=-float("inf"))
        totals = tl.load(partial_ptr + plane + offsets, mask=filled, other=0.0)
        highest = tl.max(shifts, axis=0)
        finite = tl.where(highest == -float("inf"), 0.0, highest)
        found = Sum(highest, tl.sum(totals * tl.exp2(shifts - finite[None, :]), axis=0))
        sums = merge_sums(sums, found)
    return sums


@triton.jit(do_not_specialize=["num_slots", "num_rows"])
def gather_sums_kernel(
    partial_ptr,  # (4, slots, N) float32: shifts and totals of positives, then of negatives
    gathered_ptr,  # (4, N) float32: with what earlier bands left
    num_slots,
    num_rows,
    FIRST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    """Add the exact sums that one band left to those of earlier ones."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    for kind in tl.static_range(2):
        place = gathered_ptr + 2 * kind * num_rows.to(tl.int64) + rows
        sums = no_sum(BLOCK_ROWS)
        if not FIRST:
            shifts = tl.load(place, mask=inside, other=-float("inf"))
            sums = Sum(shifts, tl.load(place + num_rows, mask=inside, other=0.0))
        slots_ptr = partial_ptr + 2 * kind * num_slots.to(tl.int64) * num_rows
        sums = merge_slots(sums, slots_ptr, rows, num_slots, num_rows, BLOCK_SLOTS)
        tl.store(place, sums.shift, mask=inside)
        tl.store(place + num_rows, sums.total, mask=inside)


@triton.jit
def finish_logsumexp(sums):
    """Take the logarithm, base 2; -inf for an empty sum.

    Rounded once where it can be: beside a shift of 100 a result of the size of 1 would lose seven
    bits.
    """
    shift, total = sums.shift, sums.total
    small = (shift < 120.0) & (shift > -120.0) & (total < 64.0)
    whole = tl.log2(tl.where(small, total * tl.exp2(tl.where(small, shift, 0.0)), 1.0))
    return tl.where(small, whole, shift + tl.log2(total))


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "first",
        "band_size",
        "band_blocks",
        "num_runs",
        "tile_rows",
        "tile_columns",
        "exact_slots",
    ]
)
def merge_sums_kernel(
    run_sums_ptr,  # (kinds, runs, band_size) float32, or None
    tile_sums_ptr,  # (band_blocks, N) float32, or None: of tiles above the diagonal
    running_ptr,  # (kinds, N) float32: what earlier bands left, or None
    exact_sums_ptr,  # (4, exact_slots, N) float32, or None before the last band
    order_ptr,  # (N,) int64: where the caller has each row, or None: in the same place
    saved_ptr,  # (2, N) float32: log-sum-exps of exponents, in the caller's order
    lse_pos_ptr,  # (N,) float32
    lse_neg_ptr,  # (N,) float32
    num_rows,
    first,  # row of the band
    band_size,
    band_blocks,
    num_runs,
    tile_rows,
    tile_columns,
    exact_slots,
    floor_pos,
    floor_neg,
    fixed_shift,
    KINDS: tl.constexpr,  # 2, or 1 for negatives only
    FIRST: tl.constexpr,
    FORMULA: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    """Add what one band left; after the last one take in the exact sums, and logarithms.

    Log-sum-exps of exponents are kept for the backward pass: converting to natural logarithms and
    back would round twice, and a rounding of a log-sum-exp is a relative error of every gradient
    of its row.
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    order = rows.to(tl.int64)
    if order_ptr is not None:
        order = tl.load(order_ptr + rows, mask=inside, other=0)
    for kind in tl.static_range(2):
        total = tl.zeros((BLOCK_ROWS,), tl.float32)
        plane = kind + KINDS - 2  # below 0 where there is none
        running = plane * num_rows.to(tl.int64) + rows
        if plane >= 0:
            if not FIRST:
                total = tl.load(running_ptr + running, mask=inside, other=0.0)
            if run_sums_ptr is not None:
                in_band = (rows >= first) & (rows < first + band_size)
                total = add_slots(
                    total,
                    run_sums_ptr + plane * num_runs.to(tl.int64) * band_size,
                    rows - first,
                    num_runs,
                    band_size,
                    tl.where(in_band, 0, num_runs),
                    BLOCK_SLOTS,
                )
            if tile_sums_ptr is not None:
                # Those of the column blocks beyond the tile that is on the diagonal.
                beyond = (rows // tile_rows + 1) * tile_rows
                blocks = tl.maximum(beyond - first, 0) // tile_columns
                blocks = tl.where(inside, blocks, band_blocks)
                total = add_slots(
                    total, tile_sums_ptr, rows, band_blocks, num_rows, blocks, BLOCK_SLOTS
                )
        if exact_sums_ptr is None:
            if plane >= 0:
                tl.store(running_ptr + running, total, mask=inside)
        else:
            sums = no_sum(BLOCK_ROWS)
            if run_sums_ptr is not None:
                sums = Sum(tl.zeros((BLOCK_ROWS,), tl.float32) + fixed_shift, total)
            exact_ptr = exact_sums_ptr + 2 * kind * exact_slots.to(tl.int64) * num_rows
            sums = merge_slots(sums, exact_ptr, rows, exact_slots, num_rows, BLOCK_SLOTS)
            exponents = finish_logsumexp(sums)
            tl.store(saved_ptr + kind * num_rows.to(tl.int64) + order, exponents, mask=inside)
            constant = logit_constant(floor_neg if kind else floor_pos, FORMULA)
            lse_ptr = lse_neg_ptr if kind else lse_pos_ptr
            tl.store(lse_ptr + order, (exponents - constant) * LN_2, mask=inside)
