"""What forward and backward kernels share: tiles, products, sums with a shift."""

from __future__ import annotations

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)
# Anchors that share one entry of the statistics' last row; every block of rows divides it.
STATISTICS_BLOCK = tl.constexpr(256)


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
def load_block(
    values_ptr,
    start,
    BLOCK: tl.constexpr,
):
    """Load a block of a padded vector; one address and constant offsets from it."""
    return tl.load(values_ptr + start + tl.arange(0, BLOCK))


@triton.jit
def load_tile_inside(
    matrix_ptr,
    stride,
    row,
    column,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Load a tile that lies inside the matrix; offsets within it are 32-bit."""
    one = tl.full((), 1, tl.int64)
    tile_ptr = matrix_ptr + one * row * stride + column
    rows, columns = tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_COLUMNS)
    return tl.load(tile_ptr + rows[:, None] * stride + columns[None, :])


@triton.jit
def store_tile(
    matrix_ptr,
    stride,
    row,
    column,
    tile,  # (R, C)
    wanted=True,
):
    """Store a tile that lies inside the matrix, if wanted; offsets within it are 32-bit."""
    one = tl.full((), 1, tl.int64)
    tile_ptr = matrix_ptr + one * row * stride + column
    rows, columns = tl.arange(0, tile.shape[0]), tl.arange(0, tile.shape[1])
    mask = tl.full(tile.shape, 1, tl.int1) & wanted
    tl.store(tile_ptr + rows[:, None] * stride + columns[None, :], tile, mask=mask)


@triton.jit
def labels_apart(
    row_labels_ptr,  # (padded N,) ascending
    row_start,
    column_labels_ptr,  # (padded M,) ascending
    column_start,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Say whether the label ranges of a tile's rows and columns do not meet: no positive pairs."""
    first_row, first_column = row_labels_ptr + row_start, column_labels_ptr + column_start
    return (tl.load(first_column) > tl.load(first_row + BLOCK_ROWS - 1)) | (
        tl.load(first_column + BLOCK_COLUMNS - 1) < tl.load(first_row)
    )


@triton.jit
def no_class_among(
    row_labels_ptr,  # (padded N,)
    row_start,
    column_start,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Say whether none of a tile's columns, class weights, is the class of one of its rows."""
    labels = load_block(row_labels_ptr, row_start, BLOCK_ROWS)
    among = (labels >= column_start) & (labels < column_start + BLOCK_COLUMNS)
    return tl.max(among.to(tl.int32), axis=0) == 0


@triton.jit
def only_negatives(
    row_labels_ptr,
    row_start,
    column_labels_ptr,
    column_start,
    LABELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Say of a tile in label order, or of class weights, whether it has no positive pairs."""
    if LABELS == "classes":
        return no_class_among(row_labels_ptr, row_start, column_start, BLOCK_ROWS, BLOCK_COLUMNS)
    return labels_apart(
        row_labels_ptr, row_start, column_labels_ptr, column_start, BLOCK_ROWS, BLOCK_COLUMNS
    )


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
def tile_products(
    rows_ptr,
    first_row,
    num_rows,
    row_stride,
    columns_ptr,
    first_column,
    num_columns,
    column_stride,
    depth,
    NORMALIZED: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,  # depth is a multiple of BLOCK_DEPTH
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Compute a tile of inner products, over chunks of the depth, in float32.

    Beyond the last row or column it stands again, so that loads need no masks. Offsets are 64-bit
    to the tile and 32-bit within it (operands.MAX_STRIDE).
    """
    depths = tl.arange(0, BLOCK_DEPTH)
    # Whether the first row is a loop's variable or not (interpreted, that is a plain int).
    one = tl.full((), 1, tl.int64)
    row_ptr = rows_ptr + one * first_row * row_stride
    rows = tl.minimum(tl.arange(0, BLOCK_ROWS), num_rows - 1 - first_row)
    row_ptrs = row_ptr + (rows[:, None] * row_stride + depths[None, :])
    column_ptr = columns_ptr + one * first_column * column_stride
    columns = tl.minimum(tl.arange(0, BLOCK_COLUMNS), num_columns - 1 - first_column)
    column_ptrs = column_ptr + (columns[:, None] * column_stride + depths[None, :])
    products = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        if EVEN_DEPTH:
            row_chunk = tl.load(row_ptrs)
            column_chunk = tl.load(column_ptrs)
        else:
            inside = (depths < depth - start)[None, :]
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
def pair_scales(
    row_scales,  # (R,)
    column_scales,  # (C,)
):
    """What turns inner products of operands into coordinates, the same for (i, j) as for (j, i).

    Were products scaled by one side first, the two would be rounded apart, and one's logit
    exponentiated against a log-sum-exp that saw the other's.
    """
    return row_scales[:, None] * column_scales[None, :]


@triton.jit
def merge_sums(
    shift,  # (R,)
    sums,  # (R,): sum of 2^exponent is sums * 2^shift
    other_shift,  # (R,)
    other_sums,  # (R,)
):
    """Add two sums of exponentials, whatever their shifts; an empty one is 0 with any shift."""
    larger = tl.maximum(shift, other_shift)
    # Nothing in either: any finite shift keeps the sum at 0, where -inf would make it NaN.
    finite = tl.where(larger == -float("inf"), 0.0, larger)
    merged = sums * tl.exp2(shift - finite) + other_sums * tl.exp2(other_shift - finite)
    return larger, merged


@triton.jit
def finish_logsumexp(
    shift,  # (R,)
    sums,  # (R,)
):
    """Take the logarithm, base 2; -inf for an empty sum.

    Rounded once where it can be: beside a shift of 100 a result of the size of 1 would lose seven
    bits.
    """
    small = (shift < 120.0) & (shift > -120.0) & (sums < 64.0)
    whole = tl.log2(tl.where(small, sums * tl.exp2(tl.where(small, shift, 0.0)), 1.0))
    return tl.where(small, whole, shift + tl.log2(sums))
