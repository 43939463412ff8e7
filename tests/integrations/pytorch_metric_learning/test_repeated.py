"""Pairs that are listed several times, in chunks and blocks of any size."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pytorch_metric_learning")

from circle_kernels.integrations.pytorch_metric_learning import repeated


def sides() -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    rows, columns = (
        torch.randn(size, 5, generator=generator, dtype=torch.float64).requires_grad_()
        for size in (7, 9)
    )
    return rows, columns, generator


@pytest.mark.parametrize("numbers", [1, 20, 2**20])
def test_similarities_of_listed_pairs(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "_NUMBERS", numbers)
    rows, columns, generator = sides()
    places = tuple(torch.randint(size, (23,), generator=generator) for size in (7, 9))

    def function(rows, columns):
        return repeated.pair_similarities(rows, columns, places)

    assert torch.allclose(function(rows, columns), (rows @ columns.T)[places], rtol=1e-14)
    assert torch.autograd.gradcheck(function, (rows, columns))
    assert torch.autograd.gradgradcheck(function, (rows, columns))
    nobody = (places[0][:0], places[1][:0])
    assert repeated.pair_similarities(rows, columns, nobody).shape == (0,)


@pytest.mark.parametrize("numbers", [1, 20, 2**20])
def test_logsumexp_counts_what_is_listed_as_often_as_it_is(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated, "_NUMBERS", numbers)
    rows, columns, generator = sides()
    times = torch.randint(0, 4, (7, 9), generator=generator)
    times[3] = 0
    keys = times.flatten().nonzero().squeeze(1)
    pairs = (keys, times.flatten()[keys])

    def function(rows, columns):
        sums = repeated.repeated_logsumexp(rows, columns, pairs, 1.7)
        return torch.cat([sums[:3], sums[4:]])

    expected = (1.7 * rows @ columns.T + times.double().log()).logsumexp(1)
    found = repeated.repeated_logsumexp(rows, columns, pairs, 1.7)
    assert found[3] == -torch.inf
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(function, (rows, columns))
    assert torch.autograd.gradgradcheck(function, (rows, columns))
    found.exp().sum().backward()  # what comes from above of an empty row makes nothing NaN
    assert rows.grad[3].eq(0).all()
    assert columns.grad.isfinite().all()


def test_nan_is_seen_by_rows_that_list_it_only() -> None:
    rows, columns, _ = sides()
    columns = columns.detach()
    columns[4] = torch.nan
    keys = torch.tensor([0, 4, 9 + 1, 9 + 2])
    found = repeated.repeated_logsumexp(rows, columns, (keys, torch.ones(4)), 1.0)
    assert found[0].isnan()
    assert found[1].isfinite()
