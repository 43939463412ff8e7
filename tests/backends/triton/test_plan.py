"""What the Triton passes plan to visit: every tile once, within bounds, in waves that are full."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.triton.conditions import Conditions, Hardware, Limits
from circle_kernels.backends.triton.plan import Shape, plan_runs, plan_walk
from circle_kernels.backends.triton.settings_table import load_table

H100 = Conditions(Hardware("sm_90", 132), Limits(), load_table())
SIZES = [1, 100, 1000, 5000, 20_000, 65_536, 1_000_000]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_rows", SIZES)
def test_bands_cover_every_block_once_within_the_bound(num_rows: int, dtype: torch.dtype) -> None:
    for num_columns, self_mode in ((num_rows, True), (4096, False)):
        walk = plan_walk(Shape(num_rows, num_columns, self_mode, dtype, 512), H100)
        bands = list(walk.bands())
        block = walk.tile.block_columns if walk.triangle else walk.tile.block_rows
        assert [band.is_first for band in bands] == [True] + [False] * (len(bands) - 1)
        assert bands[0].first == 0
        for band, following in itertools.pairwise(bands):
            assert band.first + band.size == following.first
            assert band.size == band.blocks * block
        assert bands[-1].first + bands[-1].size == num_rows
        passed = walk.tiles[0] if walk.triangle else walk.tiles[1]
        for runs, tiles in ((walk.runs, passed), (walk.exact_runs, walk.tiles[1])):
            assert runs.number * runs.tiles >= tiles > (runs.number - 1) * runs.tiles
        entries = math.prod(bands[0].run_sums) + math.prod(bands[0].tile_sums)
        smallest = H100.limits.smallest_band * (
            block * walk.runs.number * walk.kinds + num_rows * walk.triangle
        )
        assert 4 * entries <= max(H100.limits.partial_bytes, 4 * smallest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_columns", [None, 100, 512, 4096])
def test_exact_sums_take_no_more_than_the_documents_say(
    num_columns: int | None, dtype: torch.dtype
) -> None:
    """32 MB, or 64 bytes per row where that is more, whatever tiles are cut into."""
    for num_rows in (200_000, 1_000_000, 4_000_000):
        shape = Shape(num_rows, num_columns or num_rows, num_columns is None, dtype, 512)
        walk = plan_walk(shape, H100)
        assert 16 * walk.exact_slots * num_rows <= max(32 * 2**20, 64 * num_rows)


@pytest.mark.parametrize("multiprocessors", range(64, 161, 8))
def test_waves_are_as_full_as_whole_tiles_allow(multiprocessors: int) -> None:
    """Or 0.95 full; a little less where only many more runs would do it."""
    for blocks, tiles in itertools.product(
        (1, 2, 5, 16, 23, 32, 40, 64, 200, 512), (1, 2, 8, 17, 32, 40, 64, 128, 300, 1000, 7813)
    ):
        runs = plan_runs(blocks, tiles, multiprocessors)
        assert (runs.number - 1) * runs.tiles < tiles <= runs.number * runs.tiles
        each = blocks * tiles / multiprocessors
        allowed = min(0.95, each / math.ceil(each))
        assert runs.efficiency(blocks, tiles, multiprocessors) >= allowed - 0.02


def test_triangles_and_sorting_begin_where_they_pay() -> None:
    for size, expected in ((4096, False), (8192, True)):
        for self_mode in (True, False):
            walk = plan_walk(Shape(size, size, self_mode, torch.bfloat16, 512), H100)
            assert (walk.triangle, walk.by_label) == (expected and self_mode, expected)
