"""Weights: ``dL/ds`` of a chunk of pairs, in a bounded workspace that matrix products read.

Two kernels write them: one for tiles that the fixed shift serves, one for what is left.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.triton.backward_pass.chunks import Chunk
from circle_kernels.backends.triton.backward_pass.gradients import (
    fixed_shift_serves,
    pair_weights,
)
from circle_kernels.backends.triton.formula.pairs import Formula, Kind
from circle_kernels.backends.triton.launch import launch_tiles
from circle_kernels.backends.triton.plan import Runs, plan_runs
from circle_kernels.backends.triton.primitives import (
    Pairs,
    Points,
    column_slice,
    is_plain,
    store_tile,
    tile_products,
)
from circle_kernels.backends.triton.settings import Settings
from circle_kernels.backends.triton.sides import ceil_div


@triton.jit
def is_served(
    pairs,
    row,
    column,
    table_ptr,
    column_table_ptr,  # or None: pairs count for rows only
    fixed_shift,
    copies_ptr,  # or None
    SELF_MODE: tl.constexpr,
    LABELS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """Say whether one exponential against the fixed shift serves each pair of a tile.

    Padding does not matter: products pass over its weights.
    """
    served = is_plain(pairs, row, column, copies_ptr, SELF_MODE, LABELS, TILE_ROWS, TILE_COLUMNS)
    served = served & fixed_shift_serves(table_ptr, row, fixed_shift)
    if column_table_ptr is not None:
        served = served & fixed_shift_serves(column_table_ptr, column, fixed_shift)
    return served


@triton.jit
def store_weights(
    weights_ptr,  # (rows of the chunk, columns of the chunk)
    weights_stride,
    row,  # of the tile, in the chunk
    column,
    weights,  # (R, C)
    mirror,
):
    """Store a tile of weights, and if ``mirror`` its transpose; workspaces hold whole tiles."""
    weights = weights.to(weights_ptr.dtype.element_ty)
    store_tile(weights_ptr, weights_stride, row, column, weights)
    if mirror:
        store_tile(weights_ptr, weights_stride, column, row, tl.trans(weights))


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "num_columns",
        "first_row",
        "first_column",
        "num_row_blocks",
        "num_column_tiles",
        "num_runs",
    ]
)
def write_weights_kernel(
    rows_ptr,  # (N, D)
    row_labels_ptr,  # (padded N,) int64
    row_scales_ptr,  # (padded N,) float32
    columns_ptr,  # (M, D)
    column_labels_ptr,  # (padded M,) int64
    column_scales_ptr,  # (padded M,) float32
    listed_ptr,  # (padded N, padded M) uint8, or None
    copies_ptr,  # (padded N,) int64: operands.own_copies; or None
    table_ptr,  # (blocks, TABLE_ROWS, STATISTICS_BLOCK) float32: of rows, in self mode of columns
    reference_table_ptr,  # the same of references that count each pair, too; or None
    weights_ptr,  # (rows of the chunk, columns of the chunk), the dtype of the operands
    num_rows,
    num_columns,
    depth,
    row_stride,
    column_stride,
    listed_stride,
    weights_stride,
    first_row,  # of the chunk
    first_column,
    num_row_blocks,
    num_column_tiles,
    num_runs,
    vertex_pos,
    floor_pos,
    vertex_neg,
    floor_neg,
    factor,
    fixed_shift,
    TILES: tl.constexpr,  # "served" by one exponential, "others", or "every" one, exactly
    SELF_MODE: tl.constexpr,
    MIRROR: tl.constexpr,  # the chunk lies on the diagonal: only tiles on and above it, and theirs
    LABELS: tl.constexpr,  # plan.Labels
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
    NORMALIZED: tl.constexpr,  # else products may overflow
    INPUT_PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    TILE_ROWS: tl.constexpr,  # that are served or not
    TILE_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,  # of them that a program multiplies at a time
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    COLUMN_SLICES: tl.constexpr,  # of a block, from products to weights one after the other
):
    """Write the weights of one block of rows, of one part of some tiles in a run."""
    rows = Points(rows_ptr, row_labels_ptr, row_scales_ptr, num_rows, row_stride)
    columns = Points(columns_ptr, column_labels_ptr, column_scales_ptr, num_columns, column_stride)
    pairs = Pairs(rows, columns, depth)
    formula = Formula(
        Kind(vertex_pos, floor_pos, factor), Kind(vertex_neg, floor_neg, factor), fixed_shift
    )
    chunk_row = tl.multiple_of(tl.program_id(0) % num_row_blocks * BLOCK_ROWS, BLOCK_ROWS)
    row = tl.multiple_of(first_row + chunk_row, BLOCK_ROWS)
    tile_row = chunk_row // TILE_ROWS * TILE_ROWS
    PARTS: tl.constexpr = TILE_COLUMNS // BLOCK_COLUMNS
    # Mirroring takes registers, and so do slopes that are not detached.
    MORE: tl.constexpr = (MIRROR or not DETACH_WEIGHTS) and TILES == "served"
    SLICES: tl.constexpr = 2 * COLUMN_SLICES if MORE and COLUMN_SLICES > 1 else COLUMN_SLICES
    SLICE_COLUMNS: tl.constexpr = BLOCK_COLUMNS // SLICES
    part = tl.program_id(0) // num_row_blocks % PARTS * BLOCK_COLUMNS
    first_tile = tl.program_id(0) // (num_row_blocks * PARTS)
    column_table_ptr = table_ptr if SELF_MODE else reference_table_ptr
    if MIRROR:
        tl.static_assert(TILE_ROWS % TILE_COLUMNS == 0)
        first_tile += tile_row // TILE_COLUMNS
    for tile in range(first_tile, num_column_tiles, num_runs):
        tile_column = tile * TILE_COLUMNS
        wanted = True
        if TILES != "every":
            wanted = is_served(
                pairs,
                first_row + tile_row,
                first_column + tile_column,
                table_ptr,
                column_table_ptr,
                fixed_shift,
                copies_ptr,
                SELF_MODE,
                LABELS,
                TILE_ROWS,
                TILE_COLUMNS,
            )
            if TILES == "others":
                wanted = wanted ^ True
        if wanted:
            chunk_column = tl.multiple_of(tile_column + part, BLOCK_COLUMNS)
            column = tl.multiple_of(first_column + chunk_column, BLOCK_COLUMNS)
            products = tile_products(
                pairs,
                row,
                column,
                (INPUT_PRECISION, EVEN_DEPTH, NORMALIZED, BLOCK_DEPTH),
                BLOCK_ROWS,
                BLOCK_COLUMNS,
            )
            mirror = False
            if MIRROR:
                mirror = tile_column >= tile_row + TILE_ROWS
            for slice in tl.static_range(SLICES):
                weights = pair_weights(
                    column_slice(products, slice, SLICES),
                    pairs,
                    row,
                    column + slice * SLICE_COLUMNS,
                    listed_ptr,
                    listed_stride,
                    copies_ptr,
                    table_ptr,
                    column_table_ptr,
                    formula,
                    TILES == "served",
                    (SELF_MODE, LABELS, FORMULA, DETACH_WEIGHTS),
                )
                store_weights(
                    weights_ptr,
                    weights_stride,
                    chunk_row,
                    chunk_column + slice * SLICE_COLUMNS,
                    weights,
                    mirror,
                )


def write_weights(
    chunk: Chunk,
    workspace: Tensor,  # (rows, columns) of a chunk, whole tiles
    settings: tuple[Settings | None, Settings],  # of tiles that are served, and of others
    arguments: dict[str, Any],
    constants: dict[str, Any],
    multiprocessors: int,
) -> None:
    """Write the weights of the pairs of one chunk of rows and one of columns."""
    served, exact = settings
    tile = served or exact
    column_tiles = ceil_div(chunk.num_columns, tile.block_columns)
    launches = [("every", exact)] if served is None else [("served", served), ("others", exact)]
    for tiles, block in launches:
        row_blocks = ceil_div(chunk.num_rows, block.block_rows)
        parts = tile.block_columns // block.block_columns
        most = None
        if tiles == "others":
            most = ceil_div(4 * multiprocessors, row_blocks * parts)  # there are few of them
        runs = plan_runs(row_blocks * parts, column_tiles, multiprocessors, most)
        if tiles != "others" and chunk.on_diagonal:
            # Half of the tiles are left out: one after the other they spread best.
            runs = Runs(column_tiles, 1)
        launch_tiles(
            write_weights_kernel,
            row_blocks * parts * runs.number,
            {
                **arguments,
                "weights_ptr": workspace,
                "weights_stride": workspace.stride(0),
                "first_row": chunk.first_row,
                "first_column": chunk.first_column,
                "num_row_blocks": row_blocks,
                "num_column_tiles": column_tiles,
                "num_runs": runs.number,
            },
            {
                **constants,
                "TILES": tiles,
                "MIRROR": chunk.on_diagonal,
                "EVEN_DEPTH": arguments["depth"] % block.block_depth == 0,
                "TILE_ROWS": tile.block_rows,
                "TILE_COLUMNS": tile.block_columns,
                "COLUMN_SLICES": block.column_slices,
            },
            block,
        )
