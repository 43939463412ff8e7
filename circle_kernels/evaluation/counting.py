"""How many columns are as similar to a row as its thresholds say, without the matrix."""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch import Tensor

from circle_kernels.backends import cpu, cpu_counts
from circle_kernels.evaluation.exact import exact_similarities, exact_tile
from circle_kernels.evaluation.progress import Advance
from circle_kernels.options import COUNTING_BACKENDS, CountingBackend, check_choice

# Numbers in memory at a time: of a tile, and of the thresholds of its rows.
_TILE_ENTRIES = 2**20
_THRESHOLD_ENTRIES = 2**20


class Counter(Protocol):
    """What counts: PyTorch on any device, or the C++ kernel; all return the same integers."""

    def exact_similarities(
        self, rows: Tensor, columns: Tensor, row_indices: Tensor, column_indices: Tensor
    ) -> Tensor:
        """As :func:`circle_kernels.evaluation.exact.exact_similarities`."""
        ...

    def count_above(
        self,
        rows: Tensor,
        columns: Tensor,
        thresholds: Tensor,
        offsets: Tensor,
        advance: Advance | None = None,
    ) -> tuple[Tensor, Tensor]:
        """How many columns are at least as similar, and more similar, than each threshold.

        Args:
            rows: (R, D) of ``on_grid``.
            columns: (M, D) of ``on_grid``.
            thresholds: (T,) float64, ascending within each row's run.
            offsets: (R + 1,) int64: row i's thresholds are those from ``offsets[i]`` on, up to
                ``offsets[i + 1]``.
            advance: called now and then with the number of pairs done since; R M in all.

        Returns:
            Two (T,) int64.
        """
        ...


class Tiled:
    """Counts by PyTorch, in tiles."""

    exact_similarities = staticmethod(exact_similarities)

    @staticmethod
    def count_above(
        rows: Tensor,
        columns: Tensor,
        thresholds: Tensor,
        offsets: Tensor,
        advance: Advance | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`Counter.count_above`."""
        at_least, above = (offsets.new_zeros(len(thresholds)) for _ in range(2))
        counts = offsets.diff()
        most = int(counts.max()) if len(counts) else 0
        size = max(1, min(1024, _THRESHOLD_ENTRIES // max(most, 1)))
        places = torch.arange(most, device=rows.device)
        for first in range(0, len(rows), size):
            block = slice(first, first + size)
            filled = places < counts[block, None]
            padded = thresholds.new_full(filled.shape, float("inf"))
            own = slice(int(offsets[first]), int(offsets[min(first + size, len(rows))]))
            padded[filled] = thresholds[own]
            for found, right in ((at_least, True), (above, False)) if most else ():
                reached = _reached(rows[block], columns, padded, right)
                # Of a column that reaches b thresholds these are the b lowest.
                found[own] = reached.flip(1).cumsum(1).flip(1)[:, 1:][filled]
            if advance is not None:
                advance(len(filled) * len(columns))
        return at_least, above


def counter(backend: CountingBackend, device: torch.device) -> Counter:
    """What counts on a device.

    Raises:
        ValueError: another name, or the C++ kernel for tensors that are not on the CPU.
        RuntimeError: the C++ kernel is asked for by name and was not built.
    """
    check_choice("backend", backend, COUNTING_BACKENDS)
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(f"backend='cpu' takes CPU tensors, got some on {device}")
    if backend == "tiled" or device.type != "cpu":
        return Tiled()
    status = cpu.status()
    if status.startswith("usable"):
        return cpu_counts
    if backend == "cpu":
        raise RuntimeError(f"backend='cpu' cannot count: {status}")
    warnings.warn(
        f"circle_kernels: backend='tiled', several times slower, counts, since cpu is {status}",
        stacklevel=2,
    )
    return Tiled()


def _reached(
    rows: Tensor, columns: Tensor, thresholds: Tensor, right: bool
) -> Tensor:  # (R, T + 1) int64
    """How many columns reach how many of a row's thresholds; equal ones if ``right``."""
    num_rows, bins = len(rows), thresholds.shape[1] + 1
    reached = torch.zeros(num_rows * bins, dtype=torch.int64, device=rows.device)
    first_bins = torch.arange(0, num_rows * bins, bins, device=rows.device)[:, None]
    for part in columns.split(max(1, _TILE_ENTRIES // num_rows)):
        found = torch.searchsorted(thresholds, exact_tile(rows, part), right=right)
        reached += torch.bincount((found + first_bins).flatten(), minlength=num_rows * bins)
    return reached.view(num_rows, bins)
