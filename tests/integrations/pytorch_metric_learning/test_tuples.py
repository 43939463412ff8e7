"""Pairs and triplets that a miner lists: which count, how often, and which are errors."""

from __future__ import annotations

import collections
import warnings

import pytest
import torch
from torch import Tensor

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

from circle_kernels.integrations.pytorch_metric_learning import CircleLoss
from tests.integrations.pytorch_metric_learning.comparison import (
    assert_same,
    batch,
    rows_and_gradient,
)


@pytest.mark.parametrize("way", ["short", "long"])
def test_triplets_become_pairs_and_what_is_listed_twice_counts_once(way: str) -> None:
    embeddings, labels = batch("random", 40)
    triplets = lmu.get_all_triplets_indices(labels)
    if way == "short":
        triplets = tuple(each[::97] for each in triplets)
    twice = tuple(torch.cat([each, each.flip(0)]) for each in triplets)
    once, again = (
        rows_and_gradient(CircleLoss, embeddings, None, each)[0] for each in (triplets, twice)
    )
    assert torch.equal(once, again)
    assert_same(embeddings, None, twice)


def test_labels_or_indices_of_the_same_pairs_give_the_same_bits() -> None:
    embeddings, labels = batch("random", 120)
    references, _ = batch("clusters", 120)
    for ref_emb, ref_labels in (
        (None, None),
        (embeddings, labels.clone()),
        (references, labels.clone()),
        (references, labels),
        (references[:70], labels[10:80]),
    ):
        pairs = lmu.get_all_pairs_indices(labels, ref_labels)
        results = [
            rows_and_gradient(CircleLoss, embeddings, *arguments)
            for arguments in (
                (labels, None, ref_emb, ref_labels),
                (labels, pairs, ref_emb, ref_labels),
                (None, pairs, ref_emb, None),
            )
        ]
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_one_positive_and_one_negative_pair_have_loss_0() -> None:
    embeddings, labels = batch("random", 4)
    one = torch.tensor([0])
    pairs = (one, one + 1, one, one + 2)
    assert_same(embeddings, labels, pairs)
    assert CircleLoss()(embeddings, indices_tuple=pairs) == 0
    assert_same(
        embeddings[:1], labels[:1], None, embeddings[1:3], torch.stack([labels[0], labels[0] + 1])
    )
    assert_same(embeddings[:1], labels[:1])
    assert_same(embeddings[:2], torch.tensor([5, 5]))


def test_rows_without_positives_or_without_negatives_have_loss_0() -> None:
    embeddings, labels = batch("random", 64)
    a1, p, a2, n = lmu.get_all_pairs_indices(labels)
    keep = (a1 % 3 != 0, a2 % 4 != 0)
    pairs = (a1[keep[0]], p[keep[0]], a2[keep[1]], n[keep[1]])
    assert_same(embeddings, labels, pairs)
    rows, _ = rows_and_gradient(CircleLoss, embeddings, labels, pairs)
    assert (rows[::12] == 0).all()
    assert rows.shape == (64, 1)
    nobody = (a1[:0], p[:0], a2, n)
    leaf = embeddings.clone().requires_grad_()
    loss = CircleLoss()(leaf, labels, nobody)
    loss.backward()
    assert loss == 0
    assert not leaf.grad.any()


@pytest.mark.parametrize("rows", [6, 200])
def test_pair_that_is_positive_and_negative_is_what_the_library_makes_of_it(rows: int) -> None:
    embeddings, _ = batch("random", rows)
    pairs = tuple(torch.tensor(each) for each in ([0, 1, 2], [1, 2, 3], [0, 1, 4], [1, 3, 5]))
    results = []
    for loss in (losses.CircleLoss(), CircleLoss()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                results.append(loss(embeddings, indices_tuple=pairs).item())
            except AssertionError as error:  # since 2.9
                results.append(str(error))
        if isinstance(loss, CircleLoss):
            assert "both as positive and as negative" in str(caught[0].message)
    assert results[0] == results[1]


def random_tuple(generator: torch.Generator, rows: int, columns: int) -> list[Tensor]:
    """Triplets or lists of pairs: of random pairs, or of all; now and then with faults."""

    def draw(*choices: object) -> object:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    if draw(True, False):
        kinds = torch.randint(0, draw(2, 3), (rows, columns), generator=generator)
        indices = [*torch.where(kinds == 0), *torch.where(kinds == 1)]
        if draw(True, False) and len(indices[0]):  # a pair that is both
            indices[2] = torch.cat([indices[2], indices[0][:1]])
            indices[3] = torch.cat([indices[3], indices[1][:1] - draw(0, columns)])
    else:
        lowest, beyond = draw(0, 0, 1), draw(*[0] * 10, 1)
        sizes = [draw(0, 1, 2, 5, 20, 60) for _ in range(2)]
        indices = [
            torch.randint(-lowest * bound, bound + beyond, (size,), generator=generator)
            for size in sizes
            for bound in (rows, columns)
        ]
    if draw(*[False] * 5, True):
        dtype = draw(torch.bool, torch.uint8, torch.int16, torch.int32, torch.float32)
        which = draw(0, 1, 2, 3, None)
        indices = [each.to(dtype) if which in (i, None) else each for i, each in enumerate(indices)]
    if draw(*[False] * 19, True):
        which = draw(0, 1, 2, 3)
        indices[which] = indices[which][: draw(1, 2)]
    return indices[: draw(*[4] * 15, 3)]


@pytest.mark.filterwarnings("ignore")
def test_random_tuples_give_the_librarys_value_or_error() -> None:
    generator = torch.Generator().manual_seed(14)
    outcomes = collections.Counter()
    for _ in range(800):
        rows, columns = (int(torch.randint(1, 9, (), generator=generator)) for _ in range(2))
        embeddings = torch.randn(rows, 4, generator=generator)
        references = torch.randn(columns, 4, generator=generator)
        ref_emb = references if torch.rand((), generator=generator) < 0.7 else None
        indices = random_tuple(generator, rows, rows if ref_emb is None else columns)
        results = []
        for kind in (losses.CircleLoss, CircleLoss):
            try:
                results.append(rows_and_gradient(kind, embeddings, None, indices, ref_emb))
            except (AssertionError, IndexError) as error:
                results.append(error)
        outcomes[type(results[0])] += 1
        assert type(results[0]) is type(results[1]), f"{indices}: {results}"
        if isinstance(results[0], tuple):
            torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    assert min(outcomes.values()) > 25
    assert outcomes[tuple] > 250
