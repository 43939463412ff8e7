"""What ``python -m bench tune`` tries: settings of a kernel, and problems to try them on."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from circle_kernels.backends.triton.conditions import Limits
from circle_kernels.backends.triton.settings import Settings
from circle_kernels.backends.triton.settings_table import FLOAT32_DEPTH, unusable_shape

# What plan_walk counts in.
_TILE = 128
_LIMITS = Limits()
_SORTED_TILES = _LIMITS.sorted_tiles

# Rows and columns of tiles.
_SIDES = {
    "small_batch": ((16, 32, 64), (16, 32, 64)),
    "rectangle": ((64, 128), (64, 128, 256)),
    "rectangle_in_any_order": ((64, 128), (32, 64, 128, 256)),
    "small_rectangle": ((32, 64, 128), (32, 64)),
    "triangle": ((32, 64, 128, 256), (32, 64, 128)),
    "exact_sums": ((64, 128), (32, 64, 128)),
    "weights": ((64, 128, 256), (32, 64, 128)),
    "weights_in_any_order": ((64, 128), (32, 64, 128)),
    "exact_weights": ((64, 128), (32, 64, 128)),
}
_DEPTHS = {2: (32, 64), 4: (FLOAT32_DEPTH,)}  # by bytes per element
_WARPS = (4, 8)
_WARPS_OF = {"weights": (4, 8, 16)}
_STAGES = (2, 3, 4)
_AMD_STAGES = (1, 2)
# Of NVIDIA's devices: without a number their compiler may spill a few to fit one more block.
_MAX_REGISTERS = 255  # of a thread
_ALL_REGISTERS = 65_536  # of a multiprocessor
# Products of a tile that a thread holds in registers: more spill, and fewer leave it too little to
# do between one load and the next. Small batches are small to have programs enough.
_PRODUCTS = range(16, 65)
_PRODUCTS_OF = {
    "rectangle": range(16, 129),
    "rectangle_in_any_order": range(16, 129),
    "triangle": range(16, 129),
    "small_batch": range(1, 33),
}
# Weights of so many go on slice by slice, too.
_MANY_PRODUCTS = 64
_COLUMN_SLICES = 4


@dataclass(frozen=True)
class Gpu:
    """What of a device decides which settings are tried, and on which problems."""

    architecture: str
    multiprocessors: int
    warp_size: int


@dataclass(frozen=True)
class Size:
    """Rows and references of a problem; without references it is compared with itself."""

    rows: int
    references: int | None = None


def is_backward(kernel: str) -> bool:
    """Whether a kernel of the settings table belongs to the backward pass."""
    return "weights" in kernel


def problem_sizes(kernel: str, multiprocessors: int) -> list[Size]:
    """Problems that take a kernel on a device of so many multiprocessors."""

    def rows(tiles: float) -> int:
        """Of a batch of at least so many tiles per multiprocessor."""
        return _TILE * math.ceil(math.sqrt(tiles * multiprocessors))

    if kernel == "small_batch":
        return [Size(_LIMITS.small_rows // 4), Size(_LIMITS.small_rows)]
    in_order = rows(4 / 3 * _SORTED_TILES)
    if kernel == "small_rectangle":
        # Fewer tiles than multiprocessors: a sixteenth and half of them.
        sides = {max(1, math.isqrt((multiprocessors - 1) // part)) for part in (16, 2)}
        return [Size(_TILE * side, _TILE * side) for side in sorted(sides)]
    if kernel == "triangle":
        return [Size(in_order)]
    if kernel in ("weights", "exact_sums", "exact_weights"):
        return [Size(in_order), Size(in_order, in_order)]
    in_any_order = [Size(rows(3)), Size(rows(2 / 3 * _SORTED_TILES))]
    if kernel == "rectangle":
        return [Size(in_order, in_order)]
    return in_any_order


def candidates(
    kernel: str, itemsize: int, depth: int, gpu: Gpu, tile_of: Settings | None = None
) -> list[Settings]:
    """Every combination that can be worth a try.

    Args:
        kernel: of the settings table.
        itemsize: bytes per element.
        depth: no chunk of it is larger, unless the smallest is.
        gpu: the device.
        tile_of: only its tile, with other numbers of warps and stages.
    """
    chunks = [size for size in _DEPTHS[itemsize] if size <= max(depth, _DEPTHS[itemsize][0])]
    is_amd = gpu.architecture.startswith("gfx")
    shapes = itertools.product(*_SIDES[kernel], chunks)
    if tile_of is not None:
        shapes = iter([(tile_of.block_rows, tile_of.block_columns, tile_of.block_depth)])
    stages = _AMD_STAGES if is_amd else _STAGES
    found = []
    all_warps = _WARPS_OF.get(kernel, _WARPS)
    for (rows, columns, chunk), warps, stage in itertools.product(shapes, all_warps, stages):
        threads = warps * gpu.warp_size
        max_registers = None if is_amd else min(_MAX_REGISTERS, _ALL_REGISTERS // threads)
        if tile_of is not None:
            max_registers = tile_of.max_registers
        products = rows * columns // threads
        if products not in _PRODUCTS_OF.get(kernel, _PRODUCTS):
            continue
        choices = [1, _COLUMN_SLICES] if products >= _MANY_PRODUCTS else [1]
        for slices in choices if tile_of is None else [tile_of.column_slices]:
            settings = Settings(rows, columns, chunk, warps, stage, max_registers, slices)
            if unusable_shape(kernel, settings) is None:
                found.append(settings)
    return found
