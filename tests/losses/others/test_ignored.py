"""Rows and references that take part in nothing, and rows whose own copy is among the references,
beside the whole matrix in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleLoss, circle_loss, losses, unified_loss
from tests.losses.others.naive import (
    PAIR_LOSSES,
    SIDE_LOSSES,
    assert_near,
    for_every_pair_loss,
    masks,
    naive_pair_loss,
    side_batch,
)
from tests.losses.others.test_pair_masks import kinds
from tests.support.batches import batch, leaves_of, value_and_gradients
from tests.support.targets import Target, for_every_backend

REDUCTIONS = ("none", "sum", "mean", "mean_all")
IGNORED = -7


def drawn(references: int | None, ignored: str = "some") -> list[Tensor | None]:
    """Rows of four classes, some without a positive, and some to ignore on both sides."""
    x, y = batch(14, classes=5, random_labels=True, dtype=torch.float64)
    y[-1] = 77
    tensors: list[Tensor | None] = [x, y, None, None]
    if references is not None:
        tensors[2:] = batch(references, classes=6, random_labels=True, dtype=torch.float64, seed=4)
    for labels in tensors[1::2]:
        if labels is not None:
            labels[{"some": slice(1, None, 3), "none": slice(0), "all": slice(None)}[ignored]] = (
                IGNORED
            )
    return tensors


def taking_part(tensors: list[Any]) -> tuple[Tensor, Tensor]:
    """Both kinds of pair without those to ignore."""
    _, y, _, ref_labels = tensors
    both = (y != IGNORED)[:, None] & ((y if ref_labels is None else ref_labels) != IGNORED)
    positive, negative = masks(y, ref_labels)
    return positive & both, negative & both


def expected(
    name: str, tensors: list[Any], pairs: tuple[Tensor, Tensor], reduction: str, rows: Tensor
) -> Tensor:
    """The naive loss; of means those over rows count the ones that take part."""
    each = naive_pair_loss(name, tensors[0], tensors[2], pairs, "none")
    if reduction == "mean" and name == "multi-similarity":
        return each.sum() / max(int(rows.sum()), 1)
    return naive_pair_loss(name, tensors[0], tensors[2], pairs, reduction)


def hold(ours: Tensor, truth: Tensor, leaves: list[Tensor]) -> None:
    results = value_and_gradients(ours, leaves), value_and_gradients(truth, leaves)
    for value, wanted in zip(*results, strict=True):
        assert_near(value, wanted)


@for_every_pair_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignored", ["some", "none", "all"])
def test_rows_and_references_to_ignore_take_part_in_nothing(
    name: str, reduction: str, ignored: str
) -> None:
    for references in (None, 9):
        tensors = drawn(references, ignored)
        ours = PAIR_LOSSES[name].function(*tensors, ignore_label=IGNORED, reduction=reduction)
        pairs, rows = taking_part(tensors), tensors[1] != IGNORED
        truth = expected(name, tensors, pairs, reduction, rows)
        hold(ours, truth, leaves_of(tensors))
        if reduction == "none":
            assert (ours[~rows] == 0).all()


@for_every_pair_loss
def test_what_is_ignored_may_be_nan(name: str) -> None:
    """Unlike rows without a positive: nothing is compared with it."""
    tensors = drawn(9)
    function = PAIR_LOSSES[name].function
    before = function(*tensors, ignore_label=IGNORED, reduction="none")
    with torch.no_grad():
        for side, labels in ((tensors[0], tensors[1]), (tensors[2], tensors[3])):
            side[labels == IGNORED] = float("nan")
    ours = function(*tensors, ignore_label=IGNORED, reduction="none")
    assert torch.equal(ours, before)
    for gradient in torch.autograd.grad(ours.sum(), leaves_of(tensors)):
        assert gradient.isfinite().all()


@pytest.mark.backends
@for_every_backend
@for_every_pair_loss
def test_every_backend_leaves_out_own_copies_and_what_is_ignored(target: Target, name: str) -> None:
    for dtype in target.few_dtypes:
        tensors, own = with_copies(70, 90)
        tensors[1][::5] = IGNORED
        given = [
            each.detach().to(target.device, dtype if each.is_floating_point() else None)
            for each in tensors
        ]
        leaves = leaves_of(given)
        ours = PAIR_LOSSES[name].function(
            *given, self_index=own, ignore_label=IGNORED, backend=target.backend
        )
        wide = [each.detach().cpu() for each in given]
        wide[::2] = [each.double().requires_grad_() for each in wide[::2]]
        pairs = tuple(each & ~copies(own, 90) for each in taking_part(wide))
        truth = expected(name, wide, pairs, "mean", wide[1] != IGNORED)
        eps = torch.finfo(ours.dtype).eps
        assert_near(ours.detach().cpu().double(), truth.detach(), 200 * eps)
        eps = max(200 * eps, 4 * torch.finfo(dtype).eps)
        gradients = (torch.autograd.grad(ours, leaves), torch.autograd.grad(truth, wide[::2]))
        for gradient, wanted in zip(*gradients, strict=True):
            assert_near(gradient.cpu().double(), wanted, eps)


def with_copies(rows: int, references: int) -> tuple[list[Tensor], Tensor]:
    """A batch of which some rows are among the references, and where: two rows have no copy."""
    x, y = batch(rows, classes=4, random_labels=True, dtype=torch.float64)
    refs, ref_labels = batch(references, classes=4, random_labels=True, dtype=torch.float64, seed=3)
    generator = torch.Generator().manual_seed(0)
    own = torch.randperm(references, generator=generator)[:rows]
    with torch.no_grad():
        refs[own] = x
        ref_labels[own] = y
    ref_labels[own[2]] = y[2] + 1  # of another class: left out of the negatives
    own[:2] = -1
    return [x, y, refs, ref_labels], own


def copies(own: Tensor, references: int) -> Tensor:
    return own[:, None] == torch.arange(references)


@for_every_pair_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_own_copies_are_neither_positive_nor_negative(name: str, reduction: str) -> None:
    tensors, own = with_copies(9, 12)
    function = PAIR_LOSSES[name].function
    for index in (own, own.int(), own.to(torch.int16), torch.full_like(own, -1)):
        ours = function(*tensors, self_index=index, reduction=reduction)
        pairs = tuple(each & ~copies(index, 12) for each in masks(tensors[1], tensors[3]))
        truth = naive_pair_loss(name, tensors[0], tensors[2], pairs, reduction)
        hold(ours, truth, leaves_of(tensors))


@for_every_pair_loss
def test_batch_among_its_references_is_the_batch_itself(name: str) -> None:
    x, y = batch(12, classes=4, dtype=torch.float64)
    function = PAIR_LOSSES[name].function
    ours = function(x, y, x, y, self_index=torch.arange(12))
    hold(ours, function(x, y), [x])


@for_every_pair_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_own_copies_beside_what_is_ignored(name: str, reduction: str) -> None:
    """Places are those among the references that are given, also where some are left out."""
    tensors, own = with_copies(9, 12)
    tensors[1][4] = IGNORED  # a row whose copy takes part
    tensors[3][own[5]] = tensors[3][0] = IGNORED  # a copy whose row takes part
    ours = PAIR_LOSSES[name].function(
        *tensors, self_index=own, ignore_label=IGNORED, reduction=reduction
    )
    pairs = tuple(each & ~copies(own, 12) for each in taking_part(tensors))
    truth = expected(name, tensors, pairs, reduction, tensors[1] != IGNORED)
    hold(ours, truth, leaves_of(tensors))


@for_every_pair_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_own_copies_beside_a_mask(name: str, reduction: str) -> None:
    tensors, own = with_copies(9, 12)
    chosen = kinds(9, 12, symmetric=False)
    given = [tensors[0], None, tensors[2], None]
    ours = PAIR_LOSSES[name].function(*given, pair_mask=chosen, self_index=own, reduction=reduction)
    pairs = ((chosen > 0) & ~copies(own, 12), (chosen < 0) & ~copies(own, 12))
    truth = naive_pair_loss(name, tensors[0], tensors[2], pairs, reduction)
    hold(ours, truth, leaves_of(tensors))


@pytest.mark.parametrize("scope", ["anchor", "batch"])
def test_one_loss_of_all_pairs_leaves_out_the_same(scope: str) -> None:
    tensors = drawn(None)
    kept = tensors[1] != IGNORED
    for function, numbers in ((circle_loss, {}), (unified_loss, {"m": 0.2, "gamma": 16.0})):
        ours = function(*tensors, ignore_label=IGNORED, scope=scope, **numbers)
        alone = function(tensors[0][kept], tensors[1][kept], scope=scope, **numbers)
        hold(ours, alone, [tensors[0]])


def test_modules_have_what_to_ignore_and_take_own_copies_at_the_call() -> None:
    tensors, own = with_copies(9, 12)
    tensors[1][4] = IGNORED
    for module, function in (
        (CircleLoss, circle_loss),
        (losses.MultiSimilarityLoss, losses.multi_similarity_loss),
        (losses.SupConLoss, losses.supcon_loss),
        (losses.NTXentLoss, losses.ntxent_loss),
    ):
        loss = module(ignore_label=IGNORED)
        assert f"ignore_label={IGNORED}" in repr(loss)
        ours = loss(*tensors, self_index=own)
        assert torch.equal(ours, function(*tensors, self_index=own, ignore_label=IGNORED))
    with pytest.raises(TypeError, match="ignore_label must be"):
        CircleLoss(ignore_label="x")


def test_proxy_anchor_leaves_out_embeddings_to_ignore() -> None:
    x, y, proxies = side_batch("proxy-anchor")
    y[::3] = IGNORED
    kept = y != IGNORED
    function = SIDE_LOSSES["proxy-anchor"].function
    for reduction in ("none", "sum", "mean"):
        ours = function(x, y, proxies, ignore_label=IGNORED, reduction=reduction)
        hold(ours, function(x[kept], y[kept], proxies, reduction=reduction), [x, proxies])
    with pytest.raises(ValueError, match="labels must be in"):
        function(x, y, proxies)


X, REFS, Y, REF_LABELS = torch.randn(4, 3), torch.randn(5, 3), torch.arange(4), torch.arange(5)


@for_every_pair_loss
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"self_index": torch.tensor([0, 1, 2, 5])}, ValueError, "5 references, got 5 in row 3"),
        ({"self_index": torch.tensor([0, -2, 2, 4])}, ValueError, "5 references, got -2 in row 1"),
        ({"self_index": torch.arange(5)}, ValueError, r"wanted \(4,\), got a torch.int64"),
        ({"self_index": torch.zeros(4)}, TypeError, "self_index must be integers"),
        ({"self_index": [0, 1, 2, 3]}, TypeError, "self_index must be integers"),
        ({"self_index": torch.arange(4, device="meta")}, ValueError, "self_index must hold numb"),
        ({"ignore_label": 0.5}, TypeError, "ignore_label must be"),
        ({"ignore_label": True}, TypeError, "ignore_label must be"),
        ({"ignore_label": 2**63}, ValueError, "ignore_label must be"),
    ],
    ids=str,
)
def test_wrong_choices_are_named(name: str, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        PAIR_LOSSES[name].function(X, Y, REFS, REF_LABELS, **options)


@for_every_pair_loss
def test_own_copies_need_references(name: str) -> None:
    with pytest.raises(ValueError, match="self_index needs ref_emb"):
        PAIR_LOSSES[name].function(X, Y, self_index=torch.arange(4))


@pytest.mark.parametrize("name", ["circle", "supcon", "ntxent"])
def test_own_copies_compile_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    tensors, own = with_copies(9, 12)
    function = PAIR_LOSSES[name].function
    step = torch.compile(function, fullgraph=True, backend="aot_eager")
    hold(step(*tensors, self_index=own), function(*tensors, self_index=own), leaves_of(tensors))
    given = [tensors[0], None, tensors[2], None]
    mask = kinds(9, 12, symmetric=False)
    expected = function(*given, pair_mask=mask, self_index=own)
    hold(step(*given, pair_mask=mask, self_index=own), expected, leaves_of(tensors))


@for_every_pair_loss
@pytest.mark.parametrize(("references", "ignored"), [(0, None), (0, IGNORED), (3, IGNORED)])
def test_own_copies_where_no_reference_is_left(
    name: str, references: int, ignored: int | None
) -> None:
    x, y = batch(dtype=torch.float64)
    others = torch.randn(references, x.shape[1], dtype=torch.float64)
    loss = PAIR_LOSSES[name].function(
        x,
        y,
        others,
        torch.full((references,), IGNORED),
        self_index=torch.arange(len(x)).clamp_max(references - 1),
        ignore_label=ignored,
    )
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(x))
