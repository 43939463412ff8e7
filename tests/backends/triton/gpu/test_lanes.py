"""The lanes of a device take every kernel, as an H100 would be planned for."""

from __future__ import annotations

import pytest
import torch

from tests.support.targets import INTERPRETED

pytest.importorskip("triton", minversion="3.3")

from bench.offline.pretended import DEVICES, plan_launches
from circle_kernels.backends.triton.conditions import assuming
from circle_kernels.backends.triton.launch import Launch
from circle_kernels.backends.triton.settings import Settings
from circle_kernels.backends.triton.settings_table import KERNELS
from tests.backends.triton.gpu.lanes import ON_DEVICE, Lane
from tests.backends.triton.gpu.test_ways import CASES, sized
from tests.support.cases import Case

H100 = DEVICES["sm_90"]
pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="lanes are as the device has them"),
]


def _launches(lane: Lane, case: Case) -> list[Launch]:
    """Of both passes."""
    case = sized(case, lane)
    with lane.limits():
        return plan_launches(
            H100,
            dtype=torch.bfloat16,
            num_rows=case.n,
            depth=case.d,
            formula=case.formula,
            num_references=case.m,
            normalize=case.normalize,
        )


def test_every_entry_of_the_settings_table_is_taken() -> None:
    names = list(KERNELS)
    # What no entry has: a number of stages of each kernel's own, by which launches tell it.
    table = {
        (name, H100.hardware.architecture, 2): ((1, Settings(32, 32, 32, 2, number)),)
        for number, name in enumerate(names)
    }
    with assuming(table=table):
        launches = [each for lane in ON_DEVICE for case in CASES for each in _launches(lane, case)]
    taken = {names[each.settings.num_stages] for each in launches if each.settings is not None}
    assert taken == set(names)


@pytest.mark.parametrize("kernel", ["sum_rows_kernel", "write_weights_kernel"])
@pytest.mark.parametrize("self_mode", [False, True])
def test_tiles_with_both_kinds_of_pairs_are_taken_in_either_mode(
    self_mode: bool, kernel: str
) -> None:
    """Their bodies differ: in self mode a pair counts for its row and for its column."""
    found = [
        each.constants
        for lane in ON_DEVICE
        for case in CASES
        for each in _launches(lane, case)
        if each.kernel.__name__ == kernel
    ]
    assert any(
        constants["LABELS"] == "any order"
        and constants["SELF_MODE"] == self_mode
        and constants.get("TILES", "served") == "served"
        for constants in found
    )
