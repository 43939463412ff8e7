"""Into which chunks pairs are cut, so that the workspace of the backward pass is bounded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from circle_kernels.backends.triton.conditions import Limits
from circle_kernels.backends.triton.plan import Shape
from circle_kernels.backends.triton.sides import ROW_PADDING, ceil_div


class Chunk(NamedTuple):
    """A chunk of rows and one of columns: the weights of their pairs are in memory at a time."""

    row_index: int
    column_index: int
    first_row: int
    first_column: int
    num_rows: int
    num_columns: int
    on_diagonal: bool  # in self mode, where the weight of (j, i) is that of (i, j)


@dataclass(frozen=True)
class Chunks:
    """Into how many rows and columns the pairs are cut for the backward pass."""

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

    def __iter__(self) -> Iterator[Chunk]:
        """The chunks, in self mode those on and above the diagonal, in an order that finishes the
        chunks of the larger side one after the other."""
        pairs: Iterable[tuple[int, int]]
        if self.self_mode:
            pairs = itertools.combinations_with_replacement(range(self.row_chunks), 2)
        elif self.row_chunks >= self.column_chunks:
            pairs = itertools.product(range(self.row_chunks), range(self.column_chunks))
        else:
            columns = range(self.column_chunks)
            pairs = ((row, column) for column in columns for row in range(self.row_chunks))
        for row, column in pairs:
            first_row, first_column = row * self.rows, column * self.columns
            yield Chunk(
                row_index=row,
                column_index=column,
                first_row=first_row,
                first_column=first_column,
                num_rows=min(self.rows, self.num_rows - first_row),
                num_columns=min(self.columns, self.num_columns - first_column),
                on_diagonal=self.self_mode and row == column,
            )


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
