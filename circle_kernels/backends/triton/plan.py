"""Which tiles the passes visit, in which order, and what memory they take for it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton.conditions import Conditions
from circle_kernels.backends.triton.formula.arguments import has_fixed_shift, is_long
from circle_kernels.backends.triton.settings import fit_tile
from circle_kernels.backends.triton.settings_table import Settings
from circle_kernels.backends.triton.sides import ceil_div, operand_layout

# Runs that are worth merging, whatever the number of blocks.
_FEW_RUNS = 128
# Columns of a tile of 64 rows that leave long formulas their registers.
_COLUMNS_OF_LONG = 32


class Shape(NamedTuple):
    """What of a problem decides its plan; the sizes may be symbolic."""

    num_rows: int
    num_columns: int
    self_mode: bool
    dtype: torch.dtype  # of the operands
    depth: int  # of the operands: padded
    classes: bool = False  # columns are class weights
    listed: bool = False  # pairs are listed
    has_fixed_shift: bool = True  # the formula has
    long_formula: bool = False  # formula.arguments.is_long
    both_sides: bool = False  # columns count pairs, too


@dataclass(frozen=True)
class Band:
    """Blocks that one launch visits, and the shapes of what it leaves."""

    first: int  # row (column in a triangle)
    size: int  # rows or columns
    blocks: int
    run_sums: tuple[int, int, int]  # (kinds, runs, size)
    tile_sums: tuple[int, int]  # (blocks, N), in a triangle
    is_first: bool


# How labels lie: as given; in ascending order on both sides; or, of columns that are class weights,
# each at its place. Or a matrix says what each pair is.
Labels = Literal["any order", "ascending", "classes", "listed"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What both passes go by, decided by sizes alone, which may be symbolic."""

    labels: Labels
    small: bool  # whether each pass is one launch
    keeps_sides: bool  # whether prepared sides stay for the backward pass

    @property
    def by_label(self) -> bool:
        """Whether both passes sort rows and columns by label."""
        return self.labels == "ascending"

    @property
    def kinds(self) -> int:
        """Kinds of pairs among those summed against the fixed shift: 1 if all are negative."""
        return 2 if self.labels in ("any order", "listed") else 1


class Runs(NamedTuple):
    """How the column tiles of each block of rows are shared among programs: each takes the next."""

    number: int
    tiles: int  # of the longest

    def efficiency(self, blocks: int, tiles: int, multiprocessors: int) -> float:
        """Share of the multiprocessors' time that has a tile to work on, all tiles alike."""
        longest = ceil_div(blocks * self.number, multiprocessors) * self.tiles
        return blocks * tiles / (longest * multiprocessors)


@functools.lru_cache(maxsize=256)
def plan_runs(blocks: int, tiles: int, multiprocessors: int, most: int | None = None) -> Runs:
    """The fewest runs of those that fill the last wave of programs best."""
    if most is None:
        most = max(_FEW_RUNS, ceil_div(16 * multiprocessors, blocks))
    lengths = {ceil_div(tiles, runs) for runs in range(1, max(1, min(most, tiles)) + 1)}
    candidates = [Runs(ceil_div(tiles, each), each) for each in lengths]
    # A hundredth is not worth the merging of more runs.
    return max(
        candidates,
        key=lambda runs: (round(runs.efficiency(blocks, tiles, multiprocessors), 2), runs.tiles),
    )


@dataclass(frozen=True, kw_only=True)
class Walk(Layout):
    """Which tiles the forward pass visits.

    In a triangle those on and above the diagonal: a program stays with a block of columns, passes a
    run of row tiles, and leaves sums of its columns and of each tile's rows. Otherwise all of them:
    a program stays with a block of rows, passes a run of column tiles, and leaves sums of its rows.
    What these leave over is summed exactly, and so are all tiles of a formula without a fixed shift
    or of columns that count pairs, too. For those every block of rows leaves sums of all columns.
    """

    num_rows: int
    num_columns: int
    triangle: bool
    settings: Settings | None  # None where every tile is summed exactly
    runs: Runs
    band_blocks: int
    exact_settings: Settings
    exact_runs: Runs
    exact_band_blocks: int

    @property
    def tile(self) -> Settings:
        """Whose tiles are visited, or left over."""
        return self.settings or self.exact_settings

    @property
    def exact_slots(self) -> int:
        """Exact sums of a row: for each run, one of each part that its tiles are cut into."""
        parts = self.tile.block_columns // self.exact_settings.block_columns
        return self.exact_runs.number * parts

    @property
    def tiles(self) -> tuple[int, int]:
        """Of rows and of columns."""
        return (
            ceil_div(self.num_rows, self.tile.block_rows),
            ceil_div(self.num_columns, self.tile.block_columns),
        )

    def bands(self) -> Iterator[Band]:
        """The bands in order; the first is the largest. None where every tile is summed exactly."""
        if self.settings is None:
            return
        block = self.settings.block_columns if self.triangle else self.settings.block_rows
        step = self.band_blocks * block
        for first in range(0, self.num_rows, step):
            size = min(step, self.num_rows - first)
            blocks = ceil_div(size, block)
            yield Band(
                first,
                size,
                blocks,
                (self.kinds, self.runs.number, size),
                (blocks, self.num_rows) if self.triangle else (0, 0),
                is_first=first == 0,
            )

    def exact_bands(self) -> Iterator[range]:
        """Blocks of rows that one launch sums exactly; the first are the most."""
        blocks = ceil_div(self.num_rows, self.exact_settings.block_rows)
        for first in range(0, blocks, self.exact_band_blocks):
            yield range(first, min(first + self.exact_band_blocks, blocks))


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
        problem.classes,
        problem.listed is not None,
        has_fixed_shift(problem.formula),
        is_long(problem.formula),
        problem.both_sides,
    )


def exact_settings(kernel: str, shape: Shape, conditions: Conditions) -> Settings:
    """Those of a kernel for tiles of any kind; narrower ones where formulas are long."""
    settings = conditions.settings(kernel, shape.dtype, shape.depth)
    if not shape.long_formula:
        return settings
    return replace(settings, block_columns=min(settings.block_columns, _COLUMNS_OF_LONG))


def plan_layout(shape: Shape, conditions: Conditions) -> Layout:
    """Choose the order, and what the forward pass leaves for the backward, by size."""
    limits = conditions.limits
    tiles = ceil_div(shape.num_rows, 128) * ceil_div(shape.num_columns, 128)
    labels: Labels = "any order"
    if shape.listed:
        labels = "listed"
    elif not shape.has_fixed_shift:
        pass  # tiles that are summed exactly gain nothing by having one kind of pairs
    elif shape.classes:
        if shape.num_columns >= limits.class_columns:
            labels = "classes"
    elif tiles >= limits.sorted_tiles * conditions.hardware.multiprocessors:
        labels = "ascending"
    entries = shape.num_rows if shape.self_mode else shape.num_rows + shape.num_columns
    small = (
        shape.self_mode
        and labels == "any order"
        and not shape.long_formula
        and shape.num_rows <= limits.small_rows
        and shape.depth * shape.dtype.itemsize <= limits.small_row_bytes
    )
    return Layout(
        labels=labels,
        small=small,
        # Large sides are those in label order, too.
        keeps_sides=not small
        and labels != "ascending"
        and entries * shape.depth * shape.dtype.itemsize <= limits.sides_bytes,
    )


def plan_walk(shape: Shape, conditions: Conditions) -> Walk:
    """Choose order, triangle and settings by size, and bands that bound the partial sums."""
    limits, multiprocessors = conditions.limits, conditions.hardware.multiprocessors
    num_rows, num_columns = shape.num_rows, shape.num_columns
    layout = plan_layout(shape, conditions)
    triangle = shape.self_mode and layout.by_label
    exact = exact_settings("exact_sums", shape, conditions)
    settings, runs, band_blocks = None, Runs(0, 0), 0
    columns = exact.block_columns
    if shape.has_fixed_shift and not shape.both_sides:
        kernel = "triangle" if triangle else "rectangle"
        if layout.kinds == 2:
            few = ceil_div(num_rows, 128) * ceil_div(num_columns, 128) < multiprocessors
            # What lists say of pairs takes registers as well.
            few = few or layout.labels == "listed"
            kernel = "small_rectangle" if few else "rectangle_in_any_order"
        settings = conditions.settings(kernel, shape.dtype, shape.depth)
        columns = settings.block_columns
        block = columns if triangle else settings.block_rows  # that a program stays with
        # In a triangle rows are those of a tile or the columns of its mirror image.
        exact = fit_tile(exact, replace(settings, block_rows=block))
        blocks, tiles = ceil_div(num_rows, block), ceil_div(num_columns, columns)
        if triangle:
            tiles = ceil_div(num_rows, settings.block_rows)
            # Eight programs or more for each multiprocessor, since they end at different times.
            each = max(1, min(limits.triangle_run, blocks * tiles // (16 * multiprocessors)))
            runs = Runs(ceil_div(tiles, each), each)
        else:
            runs = plan_runs(blocks, tiles, multiprocessors)
        entries = layout.kinds * runs.number * block
        entries += num_rows if triangle else 0
        band_blocks = min(blocks, max(limits.smallest_band, limits.partial_bytes // (4 * entries)))
    parts = columns // exact.block_columns
    exact_blocks = ceil_div(num_rows, exact.block_rows)
    if shape.both_sides:
        most = limits.partial_bytes // (16 * num_columns)
        exact_blocks = min(exact_blocks, max(limits.smallest_band, most))
    # Most blocks have few tiles for it, and each run leaves four numbers for every row.
    most = ceil_div(4 * multiprocessors, parts * exact_blocks)
    tiles = ceil_div(num_columns, columns)
    exact_runs = plan_runs(parts * exact_blocks, tiles, multiprocessors, most)
    return Walk(
        labels=layout.labels,
        small=layout.small,
        keeps_sides=layout.keeps_sides,
        num_rows=num_rows,
        num_columns=num_columns,
        triangle=triangle,
        settings=settings,
        runs=runs,
        band_blocks=band_blocks,
        exact_settings=exact,
        exact_runs=exact_runs,
        exact_band_blocks=exact_blocks,
    )
