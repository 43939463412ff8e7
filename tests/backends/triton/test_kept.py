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


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("layout", ["sliced", "wide rows", "offset"])
@pytest.mark.parametrize("references", [True, False])
def test_side_that_is_copied_for_the_backward_pass_may_get_other_strides(
    layout: str, references: bool
) -> None:
    """A side without a gradient is copied, of a slice the numbers alone."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(70, 32, generator=generator)
    if layout == "offset":
        fixed = torch.cat([torch.zeros(8), numbers.flatten()])[8:].view(70, 32)
    else:
        wide = numbers.new_zeros(70, 48 if layout == "sliced" else 33)
        first = 8 if layout == "sliced" else 0
        fixed = wide[:, first : first + 32]
        fixed.copy_(numbers)
    trained = torch.randn(40, 32, generator=generator).requires_grad_()
    formula, results = Case("random").formula, []
    for given in (fixed, numbers):
        sides = [trained, torch.arange(40) // 4, given, torch.arange(70) // 7]
        if not references:
            sides = sides[2:] + sides[:2]
        lse_pos, lse_neg = pair_logsumexp(*sides, formula=formula, backend="triton")
        total = lse_pos[lse_pos.isfinite()].sum() + lse_neg.sum()
        results.append(torch.autograd.grad(total, trained)[0])
    torch.testing.assert_close(*results, rtol=0, atol=0)
