"""What each of the other losses does where a batch is not as training has it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from circle_kernels import losses
from tests.losses.others.naive import (
    CLASS_LOSSES,
    PAIR_LOSSES,
    SIDE_LOSSES,
    assert_near,
    for_every_other_pair_loss,
    for_every_side_loss,
    masks,
    naive_pair_loss,
    side_batch,
)
from tests.support.batches import batch, batch_with_references, leaves_of, value_and_gradients

F64 = torch.float64
REDUCTIONS = ("none", "sum", "mean", "mean_all")
BAD = [math.nan, math.inf, -math.inf]


def _mixed(references: bool) -> list[Tensor | None]:
    """Rows with one positive, with several, without any, and one class that all references lack."""
    x, _ = batch(10, dtype=F64)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3, 4, 0, 5])
    if not references:
        return [x, labels, None, None]
    refs, _ = batch(7, dtype=F64, seed=9)
    return [x, labels, refs, torch.tensor([0, 1, 1, 9, 8, 4, 1])]


@for_every_other_pair_loss
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_are_of_the_rows_that_each_loss_counts(
    name: str, reduction: str, references: bool
) -> None:
    x, y, refs, ref_labels = tensors = _mixed(references)
    ours = PAIR_LOSSES[name].function(*tensors, reduction=reduction)
    truth = naive_pair_loss(name, x, refs, masks(y, ref_labels), reduction)
    leaves = leaves_of(tensors)
    results = value_and_gradients(ours, leaves), value_and_gradients(truth, leaves)
    for value, expected in zip(*results, strict=True):
        assert_near(value, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_means_count_rows_pairs_or_classes(reduction: str) -> None:
    """By hand: three rows of one class and one of another."""
    x, y = torch.eye(4, dtype=F64), torch.tensor([0, 0, 0, 1])
    row = math.log(3) if reduction != "none" else None
    supcon = losses.supcon_loss(x, y, reduction=reduction)
    # Orthogonal rows: each row's loss is the logarithm of how many pairs it has.
    expected = {"sum": 3, "mean": 1, "mean_all": 3 / 4}
    if row is None:
        assert supcon.tolist() == pytest.approx([math.log(3)] * 3 + [0])
    else:
        assert supcon.item() == pytest.approx(row * expected[reduction])
    ntxent = losses.ntxent_loss(x, y, reduction=reduction)
    # Each of the six positive pairs beside one negative.
    expected = {"sum": 6, "mean": 1, "mean_all": 6 / 4}
    if reduction == "none":
        assert ntxent.tolist() == pytest.approx([2 * math.log(2)] * 3 + [0])
    else:
        assert ntxent.item() == pytest.approx(math.log(2) * expected[reduction])
    n_pairs = losses.n_pairs_loss(x, torch.tensor([7, 3, 3, 7]), reduction=reduction)
    expected = {"sum": 2, "mean": 1, "mean_all": 1}
    if reduction == "none":
        assert n_pairs.tolist() == pytest.approx([math.log(2)] * 2)
    else:
        assert n_pairs.item() == pytest.approx(math.log(2) * expected[reduction])


def test_rows_without_one_kind_of_pair_add_what_the_other_kind_says() -> None:
    """Multi-similarity's sets are apart; SupCon and NT-Xent have none without a positive."""
    x, y, *_ = tensors = _mixed(False)
    alone = torch.tensor([5, 6, 7, 9])
    rows = losses.multi_similarity_loss(*tensors, reduction="none")
    assert (rows[alone] > 0).all()
    for function in (losses.supcon_loss, losses.ntxent_loss):
        rows = function(*tensors, reduction="none")
        assert torch.equal((rows == 0).nonzero().squeeze(1), alone)
        (gradient,) = torch.autograd.grad(function(x, y, x.detach(), y, reduction="none")[0], x)
        assert (gradient[1:] == 0).all()
    one_class = torch.zeros(10, dtype=torch.int64)
    assert (losses.multi_similarity_loss(x, one_class, reduction="none") > 0).all()
    for function in (losses.supcon_loss, losses.ntxent_loss):
        loss = function(x, one_class, reduction="none")
        assert torch.equal(*value_and_gradients(loss, x)[1:], torch.zeros_like(x))
        assert (loss == 0).all()


@for_every_other_pair_loss
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("normalize", [True, False])
def test_bad_row_makes_nan_what_saw_it_and_nothing_else(
    name: str, bad: float, normalize: bool
) -> None:
    function = PAIR_LOSSES[name].function
    x, y = batch(12, 5, classes=3, dtype=F64, requires_grad=False)
    clean, ref_labels = batch(9, 5, classes=3, dtype=F64, seed=3, requires_grad=False)
    x[4, 0] = bad
    options = {"normalize": normalize, "reduction": "none"}
    assert function(x, y, **options).isnan().all()
    rows = function(x, y, clean, ref_labels, **options)
    assert torch.equal(rows.isnan(), torch.arange(12) == 4)
    assert_near(rows[5:], function(x[5:], y[5:], clean, ref_labels, **options))
    assert function(clean, ref_labels, x, y, **options).isnan().all()
    assert function(x, y, normalize=normalize).isnan()


@for_every_other_pair_loss
@pytest.mark.parametrize("times", [1, 2], ids=["one positive", "two positives"])
def test_bad_row_without_positives_is_no_finite_loss(name: str, times: int) -> None:
    """Its gradient is NaN, and a finite loss would hide that."""
    x, refs = torch.randn(6, 4), torch.randn(3, 4).repeat(times, 1)
    x[3] = math.nan
    labels, ref_labels = torch.tensor([0, 1, 2, 7, 1, 2]), torch.arange(3).repeat(times)
    function = PAIR_LOSSES[name].function
    rows = function(x, labels, refs, ref_labels, reduction="none")
    assert torch.equal(rows.isnan(), torch.arange(6) == 3)
    assert function(x, labels, refs, ref_labels).isnan()


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_bad_row_to_ignore_is_no_finite_loss(name: str) -> None:
    x, y, weight = (each.detach() for each in side_batch(name))
    x[3], y[3] = math.nan, -100
    rows = SIDE_LOSSES[name].function(x, y, weight, reduction="none")
    assert torch.equal(rows.isnan(), torch.arange(24) == 3)


@for_every_side_loss
@pytest.mark.parametrize("bad", BAD)
def test_bad_numbers_of_either_side_make_nan_what_saw_them(name: str, bad: float) -> None:
    x, y, other = (each.detach().clone() for each in side_batch(name))
    function = SIDE_LOSSES[name].function
    broken, others_broken = x.clone(), other.clone()
    broken[4, 0] = others_broken[2, 1] = bad
    rows = function(broken, y, other, reduction="none")
    if name in CLASS_LOSSES:
        assert torch.equal(rows.isnan(), torch.arange(24) == 4)
    else:
        assert rows.isnan().all()
    rows = function(x, y, others_broken, reduction="none")
    seen = torch.arange(7) == 2 if name == "proxy-anchor" else torch.ones(24, dtype=torch.bool)
    assert torch.equal(rows.isnan(), seen)
    for sides in ((broken, other), (x, others_broken)):
        assert function(sides[0], y, sides[1]).isnan()


@pytest.mark.parametrize("bad", BAD)
def test_n_pairs_loss_of_a_bad_row_is_nan_where_it_is_one_of_the_two(bad: float) -> None:
    x, y = batch(12, classes=3, dtype=F64, requires_grad=False)
    x[7] = bad  # the third of its class
    assert losses.n_pairs_loss(x, y).isfinite()
    x[1] = bad  # the anchor of class 1
    assert losses.n_pairs_loss(x, y, reduction="none").isnan().tolist() == [False, True, False]
    x, _ = batch(12, classes=3, dtype=F64, requires_grad=False)
    x[4] = bad  # the positive of class 1, which all classes see
    assert losses.n_pairs_loss(x, y, reduction="none").isnan().all()


@for_every_other_pair_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_pair_batch_is_0_and_attached_to_the_graph(name: str, reduction: str) -> None:
    function = PAIR_LOSSES[name].function
    for rows, references in ((0, None), (0, 4), (3, 0), (0, 0), (1, None)):
        tensors = batch_with_references(rows, references=references)
        loss = function(*tensors, reduction=reduction)
        assert loss.shape == ((rows,) if reduction == "none" else ())
        assert (loss == 0).all() or (name, rows) == ("multi-similarity", 0)
        for gradient in torch.autograd.grad(loss.sum(), tensors[::2]):
            assert (gradient == 0).all()


@for_every_side_loss
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_empty_batch_beside_another_side_is_0_and_attached_to_the_graph(
    name: str, reduction: str
) -> None:
    x, y, other = side_batch(name, 0)
    loss = SIDE_LOSSES[name].function(x, y, other, reduction=reduction)
    length = 7 if name == "proxy-anchor" else 0
    assert loss.shape == ((length,) if reduction == "none" else ())
    assert (loss == 0).all()
    for gradient in torch.autograd.grad(loss.sum(), (x, other)):
        assert (gradient == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_n_pairs_loss_without_a_pair_is_0_and_attached_to_the_graph(reduction: str) -> None:
    for rows in (0, 1, 5):
        x = torch.randn(rows, 3, requires_grad=True)
        loss = losses.n_pairs_loss(x, torch.arange(rows), reduction=reduction)
        assert loss.shape == ((0,) if reduction == "none" else ())
        assert (loss == 0).all()
        assert (torch.autograd.grad(loss.sum(), x)[0] == 0).all()


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "mean_all"])
def test_class_losses_leave_out_rows_to_ignore(name: str, reduction: str) -> None:
    x, y, weight = side_batch(name)
    y[::3] = -100
    kept = y != -100
    function = SIDE_LOSSES[name].function
    ours = function(x, y, weight, reduction=reduction)
    expected = function(x[kept], y[kept], weight, reduction=reduction)
    if reduction == "none":
        assert (ours[~kept] == 0).all()
        ours = ours[kept]
    elif reduction == "mean_all":
        expected = expected * kept.sum() / len(y)
    results = (value_and_gradients(each, [x, weight]) for each in (ours, expected))
    for value, truth in zip(*results, strict=True):
        assert_near(value, truth)


def test_proxies_without_an_embedding_count_among_negatives_alone() -> None:
    x, _, proxies = side_batch("proxy-anchor")
    y = torch.arange(24) % 2
    rows = losses.proxy_anchor_loss(x, y, proxies, reduction="none")
    loss = losses.proxy_anchor_loss(x, y, proxies)
    s = torch.nn.functional.normalize(proxies) @ torch.nn.functional.normalize(x).T
    for proxy in range(2, 7):
        total = torch.log1p((32 * (s[proxy] + 0.1)).exp().sum())
        torch.testing.assert_close(rows[proxy], total, rtol=1e-12, atol=0)
    assert_near(loss, SIDE_LOSSES["proxy-anchor"].naive(x, y, proxies))
