"""Loss and slopes from both log-sum-exps of each row, as the backends compute them at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from circle_kernels import available_backends
from circle_kernels.backends import cpu, tiled
from circle_kernels.operation.reductions import (
    MEAN_NONZERO,
    reduce_exponents,
    row_losses,
    rows_counted,
    softplus,
)
from circle_kernels.options import REDUCTIONS
from tests.support.targets import INTERPRETED

pytestmark = pytest.mark.sanitized


def _triton(*arguments: Any) -> tuple[Tensor, Tensor] | None:
    from circle_kernels.backends import triton

    return triton.row_losses(*arguments)


IMPLEMENTATIONS = [
    pytest.param(
        cpu.row_losses,
        dtype,
        id=f"cpu-{str(dtype)[6:]}",
        marks=pytest.mark.skipif(
            not available_backends()["cpu"].startswith("usable"), reason="no C++ kernel"
        ),
    )
    for dtype in (torch.float32, torch.float64)
]
IMPLEMENTATIONS += [
    pytest.param(
        _triton,
        torch.float32,
        id="triton",
        marks=[
            pytest.mark.backends,
            pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
        ],
    )
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("implementation", "dtype"), IMPLEMENTATIONS)
def test_losses_of_rows_are_those_of_torch(
    implementation: Callable[..., tuple[Tensor, Tensor] | None],
    dtype: torch.dtype,
    reduction: str,
) -> None:
    """Also where exponentials over- or underflow, for empty rows, and for none that is valid."""
    for exponents in (
        [-math.inf, -800.0, -30.0, -12.0, -1e-3, 0.0, 0.7, 30.0, 60.0, 2000.0],
        [0.5, math.nan, -math.inf],
        [math.inf, 1.0],
        [-math.inf] * 3,
        torch.linspace(-20, 20, 3000).tolist(),
    ):
        lse_pos = torch.tensor(exponents, dtype=dtype)
        lse_neg = lse_pos.new_full((len(exponents),), 0.25)
        ours = implementation(lse_pos, lse_neg, reduction)
        assert ours is not None
        total = (lse_pos + lse_neg).requires_grad_()
        losses = softplus(total)
        expected = (
            losses if reduction == "none" else losses.sum() / rows_counted(total, losses, reduction)
        )
        slopes = torch.autograd.grad(expected.sum(), total)[0]
        for value, other in zip(ours, (expected.detach(), slopes), strict=True):
            # Sums of thousands in float32 depend on their order.
            rtol = 1e-6 if dtype == torch.float32 else 1e-12
            torch.testing.assert_close(value, other, equal_nan=True, rtol=rtol, atol=1e-38)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("exponents", "loss"),
    [
        ([-math.inf, -800.0, 1.0, 30.0], (1.0 + math.log1p(math.exp(-1.0)) + 30.0) / 2),
        ([0.0, math.nan, -math.inf], math.nan),
        ([-math.inf, -math.inf], 0.0),
        ([-800.0], 0.0),
    ],
)
def test_mean_over_losses_that_are_not_0(
    exponents: list[float], loss: float, dtype: torch.dtype
) -> None:
    lse_pos = torch.tensor(exponents, dtype=dtype)
    lse_neg = torch.zeros_like(lse_pos)
    counted = softplus(lse_pos) != 0
    slopes = torch.sigmoid(lse_pos).masked_fill(~counted, 0) / max(int(counted.sum()), 1)
    ours = [row_losses(tiled, lse_pos, lse_neg, MEAN_NONZERO)]
    if cpu.supported_levels():
        ours.append(row_losses(cpu, lse_pos, lse_neg, MEAN_NONZERO))
    total = lse_pos.clone().requires_grad_()
    value = reduce_exponents(total, MEAN_NONZERO)
    ours.append((value.detach(), torch.autograd.grad(value, total)[0]))
    for value, gradient in ours:
        torch.testing.assert_close(value.item(), loss, rtol=1e-6, atol=1e-30, equal_nan=True)
        torch.testing.assert_close(gradient, slopes, equal_nan=True)


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_one_launch_takes_no_more_rows_than_are_fast() -> None:
    from circle_kernels.backends.triton.reduction import MAX_ROWS

    assert _triton(torch.zeros(MAX_ROWS), torch.zeros(MAX_ROWS), "sum") is not None
    assert _triton(torch.zeros(MAX_ROWS + 1), torch.zeros(MAX_ROWS + 1), "sum") is None
    assert _triton(torch.zeros(0), torch.zeros(0), "mean") is None
