"""Which rows of a batch count, and which hold NaN or infinity."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bench.measuring.operators import CountOperators
from circle_kernels import circle_loss, nonfinite_rows, pair_logsumexp, valid_rows
from circle_kernels.arguments import INTEGER_DTYPES
from circle_kernels.formula import CircleFormula
from tests.support.regimes import REGIMES
from tests.support.targets import ON_GPU

DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


def by_pairs(labels: Tensor, ref_labels: Tensor | None) -> Tensor:
    """The definition, with a matrix of all pairs."""
    same = labels[:, None] == (labels if ref_labels is None else ref_labels)[None, :]
    other = ~same
    if ref_labels is None:
        same = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same.any(1) & other.any(1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("regime", REGIMES)
def test_valid_rows_are_those_with_a_positive_and_a_negative(regime: str, device: str) -> None:
    def draw(rows: int, seed: int) -> Tensor:
        _, labels = REGIMES[regime](max(rows, 1), 2, torch.Generator().manual_seed(seed))
        return labels[:rows].to(device)

    for rows, references in itertools.product((0, 1, 2, 3, 40), (None, 0, 1, 30)):
        labels = draw(rows, seed=rows)
        ref_labels = None if references is None else draw(references, seed=5)
        found = valid_rows(labels, ref_labels)
        assert found.dtype == torch.bool
        assert torch.equal(found, by_pairs(labels, ref_labels)), f"{rows} rows, {references}"


def test_valid_rows_are_those_whose_loss_counts() -> None:
    labels = torch.tensor([3, 3, 4, 5, 5, 5, 6])
    embeddings = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    lse_pos, lse_neg = pair_logsumexp(embeddings, labels, formula=CircleFormula())
    assert torch.equal(valid_rows(labels), (lse_pos + lse_neg).isfinite())
    one_each = torch.arange(7)
    assert not valid_rows(one_each).any()
    assert circle_loss(embeddings, one_each) == 0
    assert circle_loss(embeddings, one_each, scope="batch") == 0


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_valid_rows_of_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    assert valid_rows(labels).all()
    assert valid_rows(labels[:3]).tolist() == [False, True, True]
    assert valid_rows(labels, labels[1:3]).tolist() == [False] * 5
    assert valid_rows(labels, labels[:2]).all()


def test_valid_rows_take_memory_of_the_rows_and_never_wait() -> None:
    class Sizes(CountOperators):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = super().__torch_dispatch__(func, types, args, kwargs)
            for each in result if isinstance(result, (tuple, list)) else (result,):
                self.largest = max(self.largest, each.numel())
            return result

    labels = torch.arange(1000) % 7
    with Sizes() as recorded:
        valid_rows(labels)
        valid_rows(labels, labels[:500])
    assert recorded.waiting == []
    assert recorded.largest == 1000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 1],), TypeError, "labels must be an integer tensor"),
        ((torch.eye(2).long(),), ValueError, r"one-hot labels need .argmax\(1\)"),
        ((torch.tensor(1),), ValueError, r"labels must have shape \(rows,\)"),
        ((torch.arange(2), torch.rand(2)), TypeError, "ref_labels must be integers"),
    ],
)
def test_labels_that_are_none_are_named(
    arguments: tuple, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        valid_rows(*arguments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_rows_with_nan_or_infinity_are_found(dtype: torch.dtype, device: str) -> None:
    embeddings = torch.full((9, 5), torch.finfo(dtype).max, dtype=dtype, device=device)
    for row, value in ((1, "nan"), (4, "inf"), (5, "-inf"), (8, "nan")):
        embeddings[row, row % 5] = float(value)
    embeddings[8, 0] = float("inf")
    leaf = embeddings.requires_grad_()
    assert nonfinite_rows(leaf).tolist() == [1, 4, 5, 8]
    assert nonfinite_rows(leaf[:1]).tolist() == []
    assert nonfinite_rows(leaf[:0]).shape == (0,)


def test_embeddings_that_are_none_are_named() -> None:
    with pytest.raises(ValueError, match="feature maps have to be pooled"):
        nonfinite_rows(torch.zeros(2, 3, 4, 4))


def test_tensors_without_their_numbers_are_named() -> None:
    freed = torch.zeros(4, dtype=torch.int64)
    freed.untyped_storage().resize_(0)
    labels = torch.arange(4)
    for call, name in (
        (lambda: valid_rows(freed), "labels"),
        (lambda: valid_rows(labels, freed), "ref_labels"),
        (lambda: valid_rows(labels, labels.to("meta")), "ref_labels"),
        (lambda: valid_rows(labels.to_sparse()), "labels"),
        (lambda: nonfinite_rows(torch.ones(4, 3).to_sparse()), "embeddings"),
        (lambda: nonfinite_rows(torch.ones(4, 3, device="meta")), "embeddings"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{name} must"):
            call()
