"""Which tiles the passes visit, in which order, and what memory they take for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import triton

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton.launch import device_family, num_multiprocessors
from circle_kernels.backends.triton.operands import ROW_PADDING, operand_layout
from circle_kernels.backends.triton.settings import (
    Settings,
    rectangle_settings,
    triangle_settings,
)

# What partial sums may take. Every tile of a triangle leaves four numbers for each of its rows, so
# large batches go in bands of blocks, and what a band leaves is merged before the next one.
PARTIAL_BYTES = 32 * 2**20
# What weights of the backward pass may take: less than the second-level cache of large devices
# (50 MB on an H100), so that the products can find there what the kernel before them wrote.
WORKSPACE_BYTES = 32 * 2**20
# What products may take that the forward pass keeps for the backward.
KEPT_BYTES = 32 * 2**20
# Depth from which they are kept, by bytes per element; an estimate for an H100. If a
# multiprocessor moves 24 bytes a cycle, writing and reading a tile of 128x128 takes 5,500 of them;
# computing it again takes 8 for each unit of depth in bfloat16, 48 in float32 (three of tf32).
KEPT_DEPTH = {2: 768, 4: 128}
# Blocks that a band has whatever its size: fewer would not fill a device.
MIN_BAND = 8
# Tiles that a program of a triangle visits: few enough to spread, enough to share a block.
TRIANGLE_RUN = 8
# Tiles of 128x128 per multiprocessor from which sorting by label pays, and in self mode with it the
# triangle. Sorting costs a few launches and a copy; it saves half of the work around the product,
# and the triangle half of the product.
SORTED_TILES = 24
# More runs than this only add merging: one should have several tiles to itself.
_MAX_RUNS = 64


@dataclass(frozen=True)
class Band:
    """Blocks that one launch visits, and the shapes of what it leaves."""

    first: int  # row (column in a triangle)
    size: int  # rows or columns
    blocks: int
    run_sums: tuple[int, int, int]  # (4, runs, size)
    tile_sums: tuple[int, int, int]  # (4, blocks, N), in a triangle
    is_first: bool
    is_last: bool


@dataclass(frozen=True)
class Chunks:
    """Chunks of rows and columns; the weights of a pair of them are in the workspace at a time.

    In self mode the weight of (j, i) is that of (i, j): a pair of chunks is visited once.
    """

    num_rows: int
    num_columns: int
    self_mode: bool
    rows: int  # of a chunk; a multiple of ROW_PADDING, whole tiles
    columns: int

    @property
    def row_chunks(self) -> int:
        return triton.cdiv(self.num_rows, self.rows)

    @property
    def column_chunks(self) -> int:
        return triton.cdiv(self.num_columns, self.columns)

    def row_range(self, chunk: int) -> tuple[int, int]:
        """First row and number of rows of a chunk."""
        first = chunk * self.rows
        return first, min(self.rows, self.num_rows - first)

    def column_range(self, chunk: int) -> tuple[int, int]:
        """First column and number of columns of a chunk."""
        first = chunk * self.columns
        return first, min(self.columns, self.num_columns - first)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Pairs in an order that finishes the chunks of the larger side one after the other."""
        if self.self_mode:
            yield from itertools.combinations_with_replacement(range(self.row_chunks), 2)
        elif self.row_chunks >= self.column_chunks:
            yield from itertools.product(range(self.row_chunks), range(self.column_chunks))
        else:
            for column in range(self.column_chunks):
                yield from ((row, column) for row in range(self.row_chunks))


# How labels lie: as given; in ascending order on both sides; or, of columns that are class weights,
# each at its place.
Labels = Literal["any order", "ascending", "classes"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What both passes go by, decided by sizes alone, which may be symbolic."""

    labels: Labels
    kept: tuple[int, int]  # shape of the products kept: (padded N, padded M), or (0, 0)

    @property
    def by_label(self) -> bool:
        """Whether both passes sort rows and columns by label."""
        return self.labels == "ascending"


@dataclass(frozen=True, kw_only=True)
class Walk(Layout):
    """Which tiles are visited.

    In a triangle those on and above the diagonal: a program stays with a block of columns, passes a
    run of row tiles, and leaves sums of its columns and of each tile's rows. Otherwise all of them:
    a program stays with a block of rows, passes a run of column tiles, and leaves sums of its rows
    and, where they fit, the products.
    """

    num_rows: int
    triangle: bool
    settings: Settings
    runs: int  # of tiles, per block
    tiles_per_run: int
    band_blocks: int

    @property
    def block(self) -> int:
        """Rows or columns that a program stays with."""
        return self.settings.block_rows

    def bands(self) -> Iterator[Band]:
        """The bands in order; the first is the largest."""
        step = self.band_blocks * self.block
        for first in range(0, self.num_rows, step):
            size = min(step, self.num_rows - first)
            blocks = triton.cdiv(size, self.block)
            yield Band(
                first,
                size,
                blocks,
                (4, self.runs, size),
                (4, blocks, self.num_rows) if self.triangle else (4, 0, 0),
                is_first=first == 0,
                is_last=first + size == self.num_rows,
            )


def plan_layout(problem: PairProblem) -> Layout:
    """The layout of a problem: that of its walk."""
    dtype, depth = operand_layout(problem)
    return _choose_layout(
        problem.embeddings.shape[0],
        problem.columns.shape[0],
        problem.self_mode,
        dtype,
        depth,
        num_multiprocessors(problem.embeddings.device),
        problem.keep_for_backward,
        problem.classes,
    )


def plan_problem(problem: PairProblem) -> Walk:
    """The walk of a problem."""
    dtype, depth = operand_layout(problem)
    device = problem.embeddings.device
    return plan_walk(
        len(problem.embeddings),
        len(problem.columns),
        problem.self_mode,
        dtype,
        depth,
        device_family(device),
        num_multiprocessors(device),
        problem.keep_for_backward,
        problem.classes,
    )


def _choose_layout(
    num_rows: int,
    num_columns: int,
    self_mode: bool,
    dtype: torch.dtype,
    depth: int,
    multiprocessors: int,
    keep_for_backward: bool,
    classes: bool,
) -> Layout:
    tiles = triton.cdiv(num_rows, 128) * triton.cdiv(num_columns, 128)
    labels: Labels = "any order"
    if classes:
        labels = "classes"
    elif tiles >= SORTED_TILES * multiprocessors:
        labels = "ascending"
    rows, columns = (
        triton.cdiv(length, ROW_PADDING) * ROW_PADDING for length in (num_rows, num_columns)
    )
    keep = (
        keep_for_backward
        and not (self_mode and labels == "ascending")  # a triangle
        and depth >= KEPT_DEPTH[dtype.itemsize]
        and 4 * rows * columns <= KEPT_BYTES
    )
    return Layout(labels=labels, kept=(rows, columns) if keep else (0, 0))


def plan_walk(
    num_rows: int,
    num_columns: int,
    self_mode: bool,
    dtype: torch.dtype,
    depth: int,
    family: str,
    multiprocessors: int,
    keep_for_backward: bool = True,
    classes: bool = False,
) -> Walk:
    """Choose order, triangle and settings by size, and bands that bound the partial sums."""
    tiles = triton.cdiv(num_rows, 128) * triton.cdiv(num_columns, 128)
    layout = _choose_layout(
        num_rows,
        num_columns,
        self_mode,
        dtype,
        depth,
        multiprocessors,
        keep_for_backward,
        classes,
    )
    triangle = self_mode and layout.by_label
    if triangle:
        settings = triangle_settings(family, dtype, depth)
        row_blocks = triton.cdiv(num_rows, settings.block_rows)
        # Eight programs or more for each multiprocessor, since they end at different times.
        tiles_per_run = row_blocks * row_blocks // (16 * multiprocessors)
        tiles_per_run = max(1, min(TRIANGLE_RUN, tiles_per_run))
        runs = triton.cdiv(row_blocks, tiles_per_run)
    else:
        settings = rectangle_settings(family, dtype, depth, small=tiles < multiprocessors)
        row_blocks, runs, tiles_per_run = _split_columns(
            num_rows, num_columns, settings.block_rows, settings.block_columns, multiprocessors
        )
    entries = runs * settings.block_rows + (num_rows if triangle else 0)  # of a block
    band_blocks = min(row_blocks, max(MIN_BAND, PARTIAL_BYTES // (16 * entries)))
    return Walk(
        labels=layout.labels,
        kept=layout.kept,
        num_rows=num_rows,
        triangle=triangle,
        settings=settings,
        runs=runs,
        tiles_per_run=tiles_per_run,
        band_blocks=band_blocks,
    )


def _split_columns(
    num_rows: int, num_columns: int, block_rows: int, block_columns: int, multiprocessors: int
) -> tuple[int, int, int]:
    """``(row blocks, runs, tiles per run)`` for about two programs per multiprocessor."""
    row_blocks = triton.cdiv(num_rows, block_rows)
    tiles = triton.cdiv(num_columns, block_columns)
    wanted = triton.cdiv(2 * multiprocessors, row_blocks)
    tiles_per_run = triton.cdiv(tiles, max(1, min(wanted, tiles, _MAX_RUNS)))
    return row_blocks, triton.cdiv(tiles, tiles_per_run), tiles_per_run


def plan_chunks(num_rows: int, num_columns: int, self_mode: bool, itemsize: int) -> Chunks:
    """Chunks as square and as equal as they can be within WORKSPACE_BYTES."""
    entries = WORKSPACE_BYTES // itemsize
    rows = _equal_chunks(num_rows, math.isqrt(entries))
    if self_mode:
        return Chunks(num_rows, num_columns, True, rows, rows)
    columns = _equal_chunks(num_columns, entries // rows)
    # Few columns leave room for more rows.
    rows = _equal_chunks(num_rows, entries // columns)
    return Chunks(num_rows, num_columns, False, rows, columns)


def _equal_chunks(length: int, most: int) -> int:
    """Length of the fewest chunks of at most ``most``, all but the last one equal."""
    largest = max(ROW_PADDING, most // ROW_PADDING * ROW_PADDING)
    each = triton.cdiv(length, triton.cdiv(length, largest))
    return triton.cdiv(each, ROW_PADDING) * ROW_PADDING
