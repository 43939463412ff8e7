"""What forward and backward kernels share: tiles, the kinds of their pairs, products, merging."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)
# Anchors that share one entry of the statistics' last row; every block of rows divides it.
STATISTICS_BLOCK = tl.constexpr(256)


class Points(NamedTuple):
    """The rows or the columns of the similarity matrix, as tiles load them."""

    entries: tl.tensor  # pointer to (length, depth), unit stride along the depth
    labels: tl.tensor  # pointer to (padded length,) int64
    scales: tl.tensor  # pointer to (padded length,) float32
    length: tl.tensor
    stride: tl.tensor  # of the entries


class Pairs(NamedTuple):
    """Both sides of the similarity matrix."""

    rows: Points
    columns: Points
    depth: tl.tensor  # of both


@triton.jit
def load_tile(
    matrix_ptr,  # (num_rows, depth), unit stride along the depth
    rows,  # (R,)
    num_rows,
    row_stride,
    depths,  # (K,)
    depth,
):
    """Load (R, K) entries, zero outside the matrix; offsets are 64-bit."""
    offsets = rows.to(tl.int64)[:, None] * row_stride + depths[None, :]
    inside = (rows < num_rows)[:, None] & (depths < depth)[None, :]
    return tl.load(matrix_ptr + offsets, mask=inside, other=0.0)


@triton.jit
def load_block(values_ptr, start, BLOCK: tl.constexpr):
    """Load a block of a padded vector; one address and constant offsets from it."""
    return tl.load(values_ptr + start + tl.arange(0, BLOCK))


@triton.jit
def store_tile(
    matrix_ptr,
    stride,
    row,
    column,
    tile,  # (R, C)
):
    """Store a tile that lies inside the matrix; offsets within it are 32-bit."""
    one = tl.full((), 1, tl.int64)
    tile_ptr = matrix_ptr + one * row * stride + column
    rows, columns = tl.arange(0, tile.shape[0]), tl.arange(0, tile.shape[1])
    tl.store(tile_ptr + rows[:, None] * stride + columns[None, :], tile)


@triton.jit
def labels_apart(pairs, row, column, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Say of a tile in label order whether its rows' labels and its columns' do not meet."""
    first_row, first_column = pairs.rows.labels + row, pairs.columns.labels + column
    return (tl.load(first_column) > tl.load(first_row + BLOCK_ROWS - 1)) | (
        tl.load(first_column + BLOCK_COLUMNS - 1) < tl.load(first_row)
    )


@triton.jit
def no_class_among(pairs, row, column, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Say whether none of a tile's columns, class weights, is the class of one of its rows."""
    labels = load_block(pairs.rows.labels, row, BLOCK_ROWS)
    among = (labels >= column) & (labels < column + BLOCK_COLUMNS)
    return tl.max(among.to(tl.int32), axis=0) == 0


@triton.jit
def no_copy_among(
    row,
    column,
    copies_ptr,  # (padded rows,) int64: operands.own_copies
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Say whether no pair of a tile is one of a row and its own copy."""
    copies = load_block(copies_ptr, row, BLOCK_ROWS)
    among = (copies >= column) & (copies < column + BLOCK_COLUMNS)
    return tl.max(among.to(tl.int32), axis=0) == 0


@triton.jit
def no_copies(
    row,
    column,
    copies_ptr,  # (padded rows,) or (padded columns,) int64: operands.own_copies
    COPIED: tl.constexpr,  # the side that has them: "rows" or "columns"
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Say of each pair of a tile whether it is not that of a row and its own copy."""
    if COPIED == "rows":
        columns = column + tl.arange(0, BLOCK_COLUMNS)
        different = load_block(copies_ptr, row, BLOCK_ROWS)[:, None] != columns[None, :]
    else:
        rows = row + tl.arange(0, BLOCK_ROWS)
        different = load_block(copies_ptr, column, BLOCK_COLUMNS)[None, :] != rows[:, None]
    return different


@triton.jit
def is_plain(
    pairs,
    row,
    column,
    copies_ptr,  # or None
    SELF_MODE: tl.constexpr,
    LABELS: tl.constexpr,  # plan.Labels
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Say whether every pair of a tile counts, as what its labels say, but for padding.

    In label order and among class weights all have to be negative.
    """
    plain = tl.full((), 1, tl.int1)
    if SELF_MODE and LABELS != "listed":
        plain = (column >= row + BLOCK_ROWS) | (column + BLOCK_COLUMNS <= row)
    if LABELS == "ascending":
        plain = plain & labels_apart(pairs, row, column, BLOCK_ROWS, BLOCK_COLUMNS)
    if LABELS == "classes":
        plain = plain & no_class_among(pairs, row, column, BLOCK_ROWS, BLOCK_COLUMNS)
    if copies_ptr is not None:
        plain = plain & no_copy_among(row, column, copies_ptr, BLOCK_ROWS, BLOCK_COLUMNS)
    return plain


@triton.jit
def same_labels(pairs, row, column, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Say of each pair of a tile whether its labels are equal."""
    labels = load_block(pairs.rows.labels, row, BLOCK_ROWS)
    return labels[:, None] == load_block(pairs.columns.labels, column, BLOCK_COLUMNS)[None, :]


@triton.jit
def listed_kinds(
    pairs,
    row,
    column,
    listed_ptr,  # (padded N, padded M) uint8: problem.PairProblem.listed
    listed_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Load what a list says of each pair: as :func:`pair_kinds`."""
    rows, columns = row + tl.arange(0, BLOCK_ROWS), column + tl.arange(0, BLOCK_COLUMNS)
    offsets = rows.to(tl.int64)[:, None] * listed_stride + columns[None, :]
    inside = (rows < pairs.rows.length)[:, None] & (columns < pairs.columns.length)[None, :]
    kinds = tl.load(listed_ptr + offsets, mask=inside, other=0).to(tl.int32)
    # ROW_POSITIVE, ROW_NEGATIVE, COLUMN_POSITIVE and COLUMN_NEGATIVE are 1, 2, 4 and 8.
    return (kinds & 5) != 0, (kinds & 3) != 0, (kinds & 12) != 0


@triton.jit
def pair_kinds(
    pairs,
    row,
    column,
    listed_ptr,  # if LABELS is "listed"
    listed_stride,
    copies_ptr,  # or None
    COPIED: tl.constexpr,
    SELF_MODE: tl.constexpr,
    LABELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Say of each pair of any tile whether it is positive, and counts for its row and column."""
    if LABELS == "listed":
        positive, for_row, for_column = listed_kinds(
            pairs, row, column, listed_ptr, listed_stride, BLOCK_ROWS, BLOCK_COLUMNS
        )
    else:
        positive = same_labels(pairs, row, column, BLOCK_ROWS, BLOCK_COLUMNS)
        rows, columns = row + tl.arange(0, BLOCK_ROWS), column + tl.arange(0, BLOCK_COLUMNS)
        for_row = (rows < pairs.rows.length)[:, None] & (columns < pairs.columns.length)[None, :]
        if SELF_MODE:
            for_row = for_row & (rows[:, None] != columns[None, :])
        if copies_ptr is not None:
            for_row = for_row & no_copies(
                row, column, copies_ptr, COPIED, BLOCK_ROWS, BLOCK_COLUMNS
            )
        for_column = for_row
    return positive, for_row, for_column


@triton.jit
def multiply_add(
    left,  # (R, K)
    right,  # (K, C)
    sums,  # (R, C) float32
    INPUT_PRECISION: tl.constexpr,
):
    """Add a matrix product to float32 sums at one of the precisions of ``dot_precision``."""
    if INPUT_PRECISION == "float64":
        # sums + product rather than a dot onto the sums, so that the product is rounded once.
        sums += tl.dot(left.to(tl.float64), right.to(tl.float64)).to(tl.float32)
    else:
        sums = tl.dot(left, right, sums, input_precision=INPUT_PRECISION)
    return sums


@triton.jit
def first_chunk(points, start, BLOCK: tl.constexpr, BLOCK_DEPTH: tl.constexpr):
    """Point to the first chunk of a block's depth; beyond the last row it stands again."""
    # Whether the start is a loop's variable or not (interpreted, that is a plain int).
    one = tl.full((), 1, tl.int64)
    block_ptr = points.entries + one * start * points.stride
    rows = tl.minimum(tl.arange(0, BLOCK), points.length - 1 - start)
    return block_ptr + (rows[:, None] * points.stride + tl.arange(0, BLOCK_DEPTH)[None, :])


@triton.jit
def tile_products(
    pairs,
    row,
    column,
    PRODUCT: tl.constexpr,  # (INPUT_PRECISION, EVEN_DEPTH, NORMALIZED, BLOCK_DEPTH) of the kernel
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Compute a tile of inner products, over chunks of the depth, in float32.

    Loads need no masks for rows: beyond the last one it stands again. Offsets are 64-bit to the
    tile and 32-bit within it (sides.MAX_STRIDE).
    """
    INPUT_PRECISION: tl.constexpr = PRODUCT[0]
    EVEN_DEPTH: tl.constexpr = PRODUCT[1]
    NORMALIZED: tl.constexpr = PRODUCT[2]
    BLOCK_DEPTH: tl.constexpr = PRODUCT[3]
    row_ptrs = first_chunk(pairs.rows, row, BLOCK_ROWS, BLOCK_DEPTH)
    column_ptrs = first_chunk(pairs.columns, column, BLOCK_COLUMNS, BLOCK_DEPTH)
    depths = tl.arange(0, BLOCK_DEPTH)
    products = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for start in range(0, pairs.depth, BLOCK_DEPTH):
        if EVEN_DEPTH:
            row_chunk = tl.load(row_ptrs)
            column_chunk = tl.load(column_ptrs)
        else:
            inside = (depths < pairs.depth - start)[None, :]
            row_chunk = tl.load(row_ptrs, mask=inside, other=0.0)
            column_chunk = tl.load(column_ptrs, mask=inside, other=0.0)
        products = multiply_add(row_chunk, tl.trans(column_chunk), products, INPUT_PRECISION)
        row_ptrs += BLOCK_DEPTH
        column_ptrs += BLOCK_DEPTH
    if not NORMALIZED:
        # An infinite one becomes NaN: a clamp would make a finite logit of it, whatever the sign
        # that a sum beyond float32 should have had.
        products = tl.fma(products, tl.zeros_like(products), products)
    return products


@triton.jit
def column_slice(
    tile,  # (R, C)
    SLICE: tl.constexpr,
    SLICES: tl.constexpr,  # a power of 2
):
    """Take one of the equal slices of a tile's columns.

    With Hopper's matrix instructions threads hold the same columns of each slice, so that nothing
    moves; what goes on slice by slice takes fewer registers.
    """
    tl.static_assert(SLICES <= 8)
    for level in tl.static_range(3):  # halves, halves of them, and theirs
        if SLICES >> level > 1:
            halves = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
            first, second = tl.split(tl.permute(halves, (0, 2, 1)))
            tile = second if (SLICE << level) % SLICES >= SLICES // 2 else first
    return tile


@triton.jit
def pair_scales(pairs, row, column, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Load what turns inner products of operands into coordinates, for (i, j) as for (j, i).

    Were products scaled by one side first, the two would be rounded apart, and one's logit
    exponentiated against a log-sum-exp that saw the other's.
    """
    scales = load_block(pairs.rows.scales, row, BLOCK_ROWS)
    return scales[:, None] * load_block(pairs.columns.scales, column, BLOCK_COLUMNS)[None, :]
