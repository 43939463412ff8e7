"""What ``python -m bench tune`` tries, and the problems that it tries them on."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from bench.tune import passes as tune_passes
from bench.tune.grid import Gpu, Size, candidates, problem_sizes
from bench.tune.passes import Job, NotLaunchedError, Pass
from circle_kernels.backends.triton.settings import Settings
from circle_kernels.backends.triton.settings_table import KERNELS, unusable_shape
from tests.bench.tune.tuning import H100, MI300, no_data
from tests.support.targets import INTERPRETED


@pytest.mark.parametrize("gpu", [H100, MI300], ids=lambda gpu: gpu.architecture)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_differ_and_suit_their_kernel(kernel: str, itemsize: int, gpu: Gpu) -> None:
    found = candidates(kernel, itemsize, 512, gpu)
    assert len(found) == len(set(found)) >= 6
    assert all(unusable_shape(kernel, settings) is None for settings in found)
    threads = gpu.warp_size
    wide = ("rectangle", "rectangle_in_any_order", "triangle")
    least, most = (1, 32) if kernel == "small_batch" else (16, 128 if kernel in wide else 64)
    for each in found:
        assert least <= each.block_rows * each.block_columns / (each.num_warps * threads) <= most
    most_rows = {"small_batch": 64, "triangle": 256, "weights": 256}.get(kernel, 128)
    assert max(each.block_rows for each in found) == most_rows
    sliced = kernel in ("rectangle", "rectangle_in_any_order", "weights")
    assert ({1, 4} if sliced else {1}) <= {each.column_slices for each in found} <= {1, 4}
    assert {each.num_stages for each in found} == ({1, 2} if threads == 64 else {2, 3, 4})
    assert {each.block_depth for each in found} == ({32, 64} if itemsize == 2 else {32})
    shallow = candidates(kernel, itemsize, 16, gpu)
    assert {each.block_depth for each in shallow} == {32}


def test_quick_candidates_have_the_current_tile() -> None:
    current = Settings(128, 128, 128, 8, 3)
    found = candidates("triangle", 2, 512, H100, current)
    assert {(each.block_rows, each.block_columns, each.block_depth) for each in found} == {
        (128, 128, 128)
    }
    assert {(each.num_warps, each.num_stages) for each in found} == {
        (warps, stages) for warps in (4, 8) for stages in (2, 3, 4)
    }


@pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90", "sm_100", "gfx942"])
def test_problems_take_the_kernel_that_they_are_for(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.offline.pretended import DEVICES, pretend_device

    monkeypatch.setattr(tune_passes, "make_data", no_data)
    device = DEVICES[target]
    settings = Settings(32, 32, 16, 2, 1)  # what no entry has
    with pretend_device(device):
        for kernel in KERNELS:
            job = Job(kernel, target, torch.bfloat16, 512, "cuda")
            for size in problem_sizes(kernel, device.multiprocessors):
                Pass(job, size).inspect(settings)
        with pytest.raises(NotLaunchedError, match="triangle bfloat16 D=512: wanted"):
            Pass(Job("triangle", target, torch.bfloat16, 512, "cuda"), Size(256)).inspect(settings)
