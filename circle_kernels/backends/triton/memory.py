"""How much device memory the passes take, known without a device."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
import triton

from circle_kernels.backends.triton.operands import ROW_PADDING, aligned_depth
from circle_kernels.backends.triton.plan import Chunks, plan_chunks, plan_walk
from circle_kernels.backends.triton.saved import SIDES_BYTES

# Sorting N labels takes their sorted copy and what the sort itself needs: measured by nobody yet,
# taken as two copies each of keys and positions.
_SORT_BYTES = 8 + 2 * (8 + 8)


@dataclass(frozen=True)
class PlannedMemory:
    """Bytes at the peak of each pass above the inputs, and what stays from one to the other.

    Gradients in the inputs' dtype, which the caller keeps, are not among them.
    """

    forward: int
    backward: int
    kept: int

    @property
    def peak(self) -> int:
        """Of a training step."""
        return max(self.forward, self.backward)


def planned_memory(
    num_rows: int,
    depth: int,
    dtype: torch.dtype,
    num_references: int | None = None,
    *,
    classes: bool = False,
    family: str = "sm_90",
    multiprocessors: int = 132,
) -> PlannedMemory:
    """What the launcher plans to take for normalised embeddings; needs no device.

    Args:
        num_rows, depth: N and D of the embeddings.
        dtype: float16, bfloat16 or float32.
        num_references: M; None compares the batch with itself. Both sides get gradients.
        classes: whether the references are class weights.
        family: row of the settings table (settings.nvidia_family), by default an H100's.
        multiprocessors: of the device; with the size they decide what is sorted by label.
    """
    self_mode = num_references is None
    num_columns = num_rows if num_references is None else num_references
    sides = [num_rows] if self_mode else [num_rows, num_columns]
    padded_depth = aligned_depth(depth)
    walk = plan_walk(
        num_rows,
        num_columns,
        self_mode,
        dtype,
        padded_depth,
        family,
        multiprocessors,
        classes=classes,
    )
    all_copied = self_mode or walk.by_label or dtype == torch.float16 or padded_depth != depth
    copied = sides if all_copied else [min(sides)]
    operands = sum(length * (padded_depth * dtype.itemsize + 4) for length in copied)
    for length in sides:
        padded = triton.cdiv(length, ROW_PADDING) * ROW_PADDING
        operands += 12 * padded + 4 * length  # scales, labels, norms
    kept = 16 * num_rows  # log-sum-exps, of exponents and natural
    kept += sum(8 * length for length in sides) if walk.by_label else 0
    kept += 4 * math.prod(walk.kept)
    if not walk.by_label and sum(sides) * padded_depth * dtype.itemsize <= SIDES_BYTES:
        kept += operands
        operands = 0

    bands = list(walk.bands())
    partial = 4 * (math.prod(bands[0].run_sums) + math.prod(bands[0].tile_sums))
    running = 16 * num_rows if len(bands) > 1 else 0
    sorting = max(sides) * _SORT_BYTES if walk.by_label else 0
    forward = kept + max(sorting, operands + partial + running)

    chunks = plan_chunks(num_rows, num_columns, self_mode, dtype.itemsize)
    workspace = chunks.rows * chunks.columns * dtype.itemsize
    statistics = 28 * triton.cdiv(num_rows, ROW_PADDING) * ROW_PADDING
    upstream = 16 * num_rows
    products = 4 * padded_depth * _most_rows_of_sums(chunks)
    backward = kept + upstream + operands + statistics + workspace + products
    return PlannedMemory(forward, backward, kept)


def _most_rows_of_sums(chunks: Chunks) -> int:
    """Rows of sums and of the product that is added to them, at the peak of a backward pass.

    As backward.py goes: a product is the sum of its chunk or is added to it, and a chunk with all
    of its products is finished.
    """
    sums: dict[tuple[bool, int], int] = {}
    added: Counter[tuple[bool, int]] = Counter()
    most = 0
    for row_chunk, column_chunk in chunks.pairs():
        contributions = [(True, row_chunk, chunks.row_range(row_chunk)[1], chunks.column_chunks)]
        if not (chunks.self_mode and row_chunk == column_chunk):
            _, num_columns = chunks.column_range(column_chunk)
            of_rows = chunks.self_mode
            contributions.append((of_rows, column_chunk, num_columns, chunks.row_chunks))
        for of_rows, chunk, rows, products in contributions:
            key = (of_rows, chunk)
            most = max(most, sum(sums.values()) + rows)
            sums[key] = rows
            added[key] += 1
            if added[key] == products:
                del sums[key]
    return most
