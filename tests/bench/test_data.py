"""The data that is timed: fixed by its seed, and as it is said to be."""

from __future__ import annotations

import pytest
import torch

from bench.measuring.data import REGIMES, at_cosine, make_data


@pytest.mark.parametrize("regime", REGIMES)
def test_data_is_fixed_by_the_seed_and_has_four_rows_per_class(regime: str) -> None:
    embeddings, labels = make_data(regime, 64, 16, seed=3)
    again, _ = make_data(regime, 64, 16, seed=3)
    other, _ = make_data(regime, 64, 16, seed=4)
    assert torch.equal(embeddings, again)
    assert not torch.equal(embeddings, other)
    assert embeddings.requires_grad
    assert embeddings.shape == (64, 16)
    assert torch.equal(labels.unique(return_counts=True)[1], torch.full((16,), 4))


def test_data_takes_rows_that_four_does_not_divide_and_other_dtypes() -> None:
    embeddings, labels = make_data("trained", 7, 8, dtype=torch.bfloat16)
    assert embeddings.shape == (7, 8)
    assert embeddings.dtype == torch.bfloat16
    assert labels.unique(return_counts=True)[1].sort().values.tolist() == [3, 4]


def test_random_data_is_standard_normal() -> None:
    embeddings, _ = make_data("random", 512, 128)
    assert embeddings.mean().abs() < 0.02
    assert abs(embeddings.std() - 1) < 0.02


def test_at_cosine_keeps_unit_length_and_the_cosine() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
    turned = at_cosine(vectors, 0.8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(50))
    torch.testing.assert_close((turned * vectors).sum(1), torch.full((50,), 0.8))


def test_trained_data_has_the_stated_cosines() -> None:
    embeddings, labels = make_data("trained", 400, 2048)
    embeddings = embeddings.detach()
    one_hot = torch.nn.functional.one_hot(labels).float()
    # Noise is nearly orthogonal in so many dimensions: members of two classes lie at 0.8 squared
    # times the cosine of their centres.
    between = (one_hot.T @ (embeddings @ embeddings.T) @ one_hot) / 16 / 0.8**2
    within = (one_hot.T @ embeddings).square().sum(1).sub(4).div(12) / 0.8**2
    torch.testing.assert_close(within, torch.ones(100), atol=0.05, rtol=0)
    between.fill_diagonal_(0)
    confusable = between > 0.25
    assert torch.equal(confusable.sum(1), torch.ones(100, dtype=torch.int64))
    torch.testing.assert_close(between[confusable], torch.full((100,), 0.5), atol=0.1, rtol=0)
    assert between[~confusable].abs().max() < 0.2
    # Four rows of a class stand together, and a confusable class is seldom the next one.
    blocks = labels.view(-1, 4)
    assert (blocks == blocks[:, :1]).all()
    assert (confusable[blocks[:-1, 0], blocks[1:, 0]]).sum() < 10
