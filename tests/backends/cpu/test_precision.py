"""What the C++ kernel rounds, where the oracle's cases are too small to show it."""

from __future__ import annotations

import pytest
import torch

from circle_kernels import CircleFormula, circle_loss, pair_logsumexp
from circle_kernels.backends import cpu
from tests.backends.cpu.steps import FORMULA, NEEDS_KERNEL, assert_equal, batch, results

pytestmark = NEEDS_KERNEL


@pytest.mark.parametrize("m", [None, 430])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_and_recomputed_tiles_differ_by_rounding_only(m, dtype, monkeypatch) -> None:
    inputs = batch(500, 40, dtype) + ([] if m is None else batch(m, 40, dtype, seed=1))
    everything = results(inputs)
    for tiles in (0, 7):
        monkeypatch.setattr(cpu, "KEPT_BYTES", tiles * 96 * 96 * dtype.itemsize)
        some = results(inputs)
        assert_equal(some[:2], everything[:2])
        for value, other in zip(some[2:], everything[2:], strict=True):
            # A logit of the size of gamma is rounded relative to unlike shifts.
            rounding = (16 + 2 * FORMULA.gamma) * torch.finfo(dtype).eps
            largest = other.abs().max().item()
            torch.testing.assert_close(value, other, rtol=0, atol=rounding * largest)


def test_rows_far_below_their_tile_are_exact() -> None:
    """One exponential for a whole tile would make the sums of such rows 0."""
    formula = CircleFormula(m=0.25, gamma=1024)
    angles = torch.cat([torch.linspace(0, 0.1, 60), torch.tensor([1.5])]).double()
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.arange(61)
    for dtype in (torch.float32, torch.float64):
        lse_pos, lse_neg = pair_logsumexp(
            embeddings.to(dtype), labels, formula=formula, backend="cpu"
        )
        expected = pair_logsumexp(embeddings, labels, formula=formula, backend="reference")[1]
        assert expected.max() - expected.min() > 300
        assert bool(lse_pos.isneginf().all())
        torch.testing.assert_close(
            lse_neg.double(), expected, rtol=0, atol=4096 * torch.finfo(dtype).eps
        )


@pytest.mark.parametrize(
    ("precision", "digits"), [("highest", 1e-6), ("high", 1e-4), ("medium", 3e-2)]
)
def test_matmul_precision_bounds_the_error(precision: str, digits: float) -> None:
    embeddings, labels = batch(300, 64)
    truth = circle_loss(embeddings.double(), labels, gamma=32)
    torch.set_float32_matmul_precision(precision)
    try:
        loss = circle_loss(embeddings, labels, gamma=32, backend="cpu")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert abs(loss.item() - truth.item()) <= digits * truth.item()
