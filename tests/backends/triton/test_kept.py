"""What the Triton forward pass leaves for the backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circle_kernels import pair_logsumexp
from tests.support.cases import Case
from tests.support.targets import INTERPRETED
from tests.support.yardstick import gradients

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.triton.conditions import Limits, assuming
from circle_kernels.backends.triton.launch import observe_launches


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize(("n", "m"), [(150, None), (128, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sides_left_by_the_forward_pass_give_the_same_bits_as_prepared_again(
    dtype: torch.dtype, n: int, m: int | None
) -> None:
    def note(launch: Any, proceed: Any) -> Any:
        launched.append(launch.kernel.__name__)
        return proceed(launch)

    case = Case("random", n=n, m=m, d=21)
    results, prepared = [], []
    for limits in (Limits(small_rows=0), Limits(small_rows=0, sides_bytes=0)):
        launched: list[str] = []
        inputs = case.tensors(dtype)
        with assuming(limits=limits), observe_launches(note):
            statistics = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
            results.append(gradients(*statistics, inputs))
        prepared.append(launched.count("prepare_operand_kernel"))
    sides = 1 if m is None else 2
    assert prepared == [sides, 2 * sides]
    for left, again in zip(*results, strict=True):
        torch.testing.assert_close(left, again, rtol=0, atol=0)
