"""How many tiles each program of a launch visits, and which of them hold more than negatives.

What the kernels in circle_kernels/backends/triton find out on the device, from the same arguments,
for labels that are assumed. A kernel that visits tiles in another way needs its lines here.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.reporting.errors import UserError

if TYPE_CHECKING:  # which imports Triton
    from bench.kernels.planned import Problem

# Labels of a class head are as good as random: row i is of class i times this, modulo the classes.
_SPREAD = 2_654_435_761


@dataclass(frozen=True)
class Tile:
    """Rows and columns of the similarity matrix."""

    row: int
    rows: int
    column: int
    columns: int


class Exceptions:
    """Which tiles are not plain, that is: go to the exact body or kernel.

    In self mode those with pairs of an embedding with itself; classes are assumed to end where
    tiles end, so that label order leaves no others. Of class weights those with the class of one of
    the rows. Of both those that go beyond the edge. The fixed shift is assumed to serve all others.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._columns = problem.num_references or problem.num_rows
        self._classes: dict[tuple[int, int], list[int]] = {}

    def __contains__(self, tile: Tile) -> bool:
        if tile.column + tile.columns > self._columns:
            return True
        if self._problem.classes:
            classes = self._classes_of(tile.row, tile.rows)
            first, end = (
                bisect.bisect_left(classes, column)
                for column in (tile.column, tile.column + tile.columns)
            )
            return first < end
        return (
            self._problem.num_references is None
            and tile.column < tile.row + tile.rows
            and tile.row < tile.column + tile.columns
        )

    def _classes_of(self, row: int, rows: int) -> list[int]:
        if (row, rows) not in self._classes:
            indices = range(row, min(row + rows, self._problem.num_rows))
            self._classes[row, rows] = sorted(index * _SPREAD % self._columns for index in indices)
        return self._classes[row, rows]


def tiles_of_programs(
    name: str,
    programs: int,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    exceptions: Exceptions,
) -> list[tuple[int, int, int]]:
    """Plain and exceptional tiles that each program works on, and tiles that it passes over.

    Raises:
        UserError: nobody has said how this kernel visits tiles.
    """
    takes_plain, takes_exact = _taken(name, arguments, constants)
    counts = []
    for program in range(programs):
        visited = list(_visited(name, program, arguments, constants))
        exact = sum(tile in exceptions for tile in visited)
        plain = len(visited) - exact
        taken = (plain * takes_plain, exact * takes_exact)
        counts.append((*taken, len(visited) - sum(taken)))
    return counts


def _taken(name: str, arguments: dict[str, Any], constants: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a kernel works on plain tiles, and whether on others."""
    if name == "sum_exactly_kernel" or constants.get("TILES") == "others":
        return False, True
    leaves_over = "left_over_ptr" in arguments or constants.get("TILES") == "served"
    return True, not leaves_over


def _visited(
    name: str, program: int, arguments: dict[str, Any], constants: dict[str, Any]
) -> Iterator[Tile]:
    # What is a tile to the kernel that leaves some over, others may take in smaller blocks.
    rows = constants.get("TILE_ROWS", constants["BLOCK_ROWS"])
    columns = constants.get("TILE_COLUMNS", constants["BLOCK_COLUMNS"])
    first_row, first_column = arguments.get("first_row", 0), arguments.get("first_column", 0)
    if name == "sum_triangle_kernel":
        blocks = arguments["num_column_blocks"]
        own = first_column // columns + program % blocks
        diagonal = own * columns // rows
        for tile in range(program // blocks, diagonal + 1, arguments["num_runs"]):
            yield Tile(tile * rows, rows, own * columns, columns)
        return
    blocks = arguments["num_row_blocks"]
    row = program % blocks * constants["BLOCK_ROWS"] // rows * rows
    # Programs that share a tile have a part of its columns each.
    first = program // blocks // (columns // constants["BLOCK_COLUMNS"])
    if name in ("sum_rows_kernel", "sum_exactly_kernel"):
        last = math.ceil(arguments["num_columns"] / columns)
    elif name == "write_weights_kernel":
        last = arguments["num_column_tiles"]
        first += row // columns if constants["MIRROR"] else 0
    else:
        raise UserError(f"bench/kernels/geometry.py does not say which tiles {name} visits")
    for tile in range(first, last, arguments["num_runs"]):
        yield Tile(first_row + row, rows, first_column + tile * columns, columns)
