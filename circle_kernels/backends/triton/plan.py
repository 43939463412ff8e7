"""Which tiles the passes visit, in which order, and what memory they take for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton.conditions import Conditions, Limits
from circle_kernels.backends.triton.settings import Settings, rectangle_settings, triangle_settings
from circle_kernels.backends.triton.sides import ROW_PADDING, ceil_div, operand_layout

# More runs than this only add merging: one should have several tiles to itself.
_MAX_RUNS = 64


class Shape(NamedTuple):
    """What of a problem decides its plan; the sizes may be symbolic."""

    num_rows: int
    num_columns: int
    self_mode: bool
    dtype: torch.dtype  # of the operands
    depth: int  # of the operands: padded
    keep_for_backward: bool = True
    classes: bool = False  # columns are class weights


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
        return ceil_div(self.num_rows, self.rows)

    @property
    def column_chunks(self) -> int:
        return ceil_div(self.num_columns, self.columns)

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
    keeps_sides: bool  # whether prepared sides stay for the backward pass

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
            blocks = ceil_div(size, self.block)
            yield Band(
                first,
                size,
                blocks,
                (4, self.runs, size),
                (4, blocks, self.num_rows) if self.triangle else (4, 0, 0),
                is_first=first == 0,
                is_last=first + size == self.num_rows,
            )


def shape_of(problem: PairProblem) -> Shape:
    """The shape of a problem."""
    dtype, depth = operand_layout(problem)
    # Not len(), which would make a constant of a symbolic size.
    return Shape(
        problem.embeddings.shape[0],
        problem.columns.shape[0],
        problem.self_mode,
        dtype,
        depth,
        problem.keep_for_backward,
        problem.classes,
    )


def plan_layout(shape: Shape, conditions: Conditions) -> Layout:
    """Choose the order, and what the forward pass leaves for the backward, by size."""
    limits = conditions.limits
    tiles = ceil_div(shape.num_rows, 128) * ceil_div(shape.num_columns, 128)
    labels: Labels = "any order"
    if shape.classes:
        labels = "classes"
    elif tiles >= limits.sorted_tiles * conditions.hardware.multiprocessors:
        labels = "ascending"
    rows, columns = (
        ceil_div(length, ROW_PADDING) * ROW_PADDING
        for length in (shape.num_rows, shape.num_columns)
    )
    keep = (
        shape.keep_for_backward
        and not (shape.self_mode and labels == "ascending")  # a triangle
        and shape.depth >= limits.kept_depth(shape.dtype.itemsize)
        and 4 * rows * columns <= limits.kept_bytes
    )
    entries = shape.num_rows if shape.self_mode else shape.num_rows + shape.num_columns
    return Layout(
        labels=labels,
        kept=(rows, columns) if keep else (0, 0),
        # Large sides are those in label order, too.
        keeps_sides=labels != "ascending"
        and entries * shape.depth * shape.dtype.itemsize <= limits.sides_bytes,
    )


def plan_walk(shape: Shape, conditions: Conditions) -> Walk:
    """Choose order, triangle and settings by size, and bands that bound the partial sums."""
    (architecture, multiprocessors), limits, table = conditions
    num_rows, num_columns, _, dtype, depth, *_ = shape
    layout = plan_layout(shape, conditions)
    triangle = shape.self_mode and layout.by_label
    if triangle:
        settings = triangle_settings(architecture, dtype, depth, table)
        row_blocks = ceil_div(num_rows, settings.block_rows)
        # Eight programs or more for each multiprocessor, since they end at different times.
        tiles_per_run = row_blocks * row_blocks // (16 * multiprocessors)
        tiles_per_run = max(1, min(limits.triangle_run, tiles_per_run))
        runs = ceil_div(row_blocks, tiles_per_run)
    else:
        tiles = ceil_div(num_rows, 128) * ceil_div(num_columns, 128)
        small = tiles < multiprocessors
        settings = rectangle_settings(architecture, dtype, depth, small, table)
        row_blocks, runs, tiles_per_run = _split_columns(
            num_rows, num_columns, settings.block_rows, settings.block_columns, multiprocessors
        )
    entries = runs * settings.block_rows + (num_rows if triangle else 0)  # of a block
    band_blocks = max(limits.smallest_band, limits.partial_bytes // (16 * entries))
    return Walk(
        labels=layout.labels,
        kept=layout.kept,
        keeps_sides=layout.keeps_sides,
        num_rows=num_rows,
        triangle=triangle,
        settings=settings,
        runs=runs,
        tiles_per_run=tiles_per_run,
        band_blocks=min(row_blocks, band_blocks),
    )


def _split_columns(
    num_rows: int, num_columns: int, block_rows: int, block_columns: int, multiprocessors: int
) -> tuple[int, int, int]:
    """``(row blocks, runs, tiles per run)`` for about two programs per multiprocessor."""
    row_blocks = ceil_div(num_rows, block_rows)
    tiles = ceil_div(num_columns, block_columns)
    wanted = ceil_div(2 * multiprocessors, row_blocks)
    tiles_per_run = ceil_div(tiles, max(1, min(wanted, tiles, _MAX_RUNS)))
    return row_blocks, ceil_div(tiles, tiles_per_run), tiles_per_run


def plan_chunks(shape: Shape, limits: Limits) -> Chunks:
    """Chunks as square and as equal as they can be within the limit of the workspace."""
    num_rows, num_columns = shape.num_rows, shape.num_columns
    entries = limits.workspace_bytes // shape.dtype.itemsize
    rows = _equal_chunks(num_rows, math.isqrt(entries))
    if shape.self_mode:
        return Chunks(num_rows, num_columns, True, rows, rows)
    columns = _equal_chunks(num_columns, entries // rows)
    # Few columns leave room for more rows.
    rows = _equal_chunks(num_rows, entries // columns)
    return Chunks(num_rows, num_columns, False, rows, columns)


def _equal_chunks(length: int, most: int) -> int:
    """Length of the fewest chunks of at most ``most``, all but the last one equal."""
    largest = max(ROW_PADDING, most // ROW_PADDING * ROW_PADDING)
    each = ceil_div(length, ceil_div(length, largest))
    return ceil_div(each, ROW_PADDING) * ROW_PADDING
