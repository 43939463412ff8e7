"""What plans go by, and launches that are observed: both can be put in place, and come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.triton.conditions import (
    Hardware,
    Limits,
    assuming,
    conditions_on,
    hardware_is_assumed,
)
from circle_kernels.backends.triton.launch import Launch, launch_kernel, observe_launches
from circle_kernels.backends.triton.settings import Settings

CPU = torch.device("cpu")


def test_what_is_assumed_holds_until_the_end_and_the_rest_stays() -> None:
    usual = conditions_on(CPU)
    limits = Limits(sorted_tiles=0)
    with assuming(limits=limits):
        assert conditions_on(CPU) == usual._replace(limits=limits)
        assert not hardware_is_assumed()
        with assuming(hardware=Hardware("sm_90", 132)):
            assert conditions_on(CPU) == (Hardware("sm_90", 132), limits, usual.table)
            assert hardware_is_assumed()
        assert conditions_on(CPU).limits == limits
    with assuming(table={}):
        assert conditions_on(CPU) == usual._replace(table={})
    assert conditions_on(CPU) == usual


def test_an_error_ends_what_is_assumed() -> None:
    def fail() -> None:
        with assuming(hardware=Hardware("sm_90", 132)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not hardware_is_assumed()


def test_nothing_else_can_be_assumed() -> None:
    with pytest.raises(TypeError, match="depth"), assuming(depth=3):
        pass


class _Kernel:
    """Stands for a kernel: notes how it is launched."""

    def __init__(self) -> None:
        self.launched: list[tuple[Any, dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., str]:
        def launch(**arguments: Any) -> str:
            self.launched.append((grid, arguments))
            return "compiled"

        return launch


def test_observer_takes_the_place_of_a_launch() -> None:
    kernel = _Kernel()
    blocks = {"BLOCK_ROWS": 64, "BLOCK_COLUMNS": 32, "BLOCK_DEPTH": 16}
    given = (kernel, 7, {"x": 1}, blocks, 4, 2, 255)
    options = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True, "maxnreg": 255}
    seen = []

    def watch(launch: Launch, proceed: Callable[[Launch], Any]) -> tuple[str, Any]:
        seen.append(launch)
        return "watched", proceed(launch)

    assert launch_kernel(*given) == "compiled"
    with observe_launches(watch):
        assert launch_kernel(*given) == ("watched", "compiled")
        with observe_launches(lambda launch, proceed: proceed(launch._replace(programs=8))):
            assert launch_kernel(*given) == ("watched", "compiled")
        with observe_launches(lambda launch, proceed: None):
            assert launch_kernel(*given) is None
    assert launch_kernel(*given) == "compiled"
    assert kernel.launched == [
        ((programs,), {"x": 1, **blocks, **options}) for programs in (7, 7, 8, 7)
    ]
    assert seen == [Launch(*given), Launch(*given)._replace(programs=8)]
    assert seen[0].options == options
    assert seen[0].settings == Settings(64, 32, 16, 4, 2, 255)
    assert Launch(kernel, 1, {}, {}, 4, 2, None).settings is None


def test_limits_are_values() -> None:
    assert Limits() == replace(Limits(sorted_tiles=0), sorted_tiles=Limits().sorted_tiles)
