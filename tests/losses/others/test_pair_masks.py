"""Pairs that users choose, in all forms of ``pair_mask``, beside the whole matrix in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from circle_kernels import (
    CircleLoss,
    circle_loss,
    losses,
    unified_loss,
)
from tests.losses.others.naive import (
    PAIR_LOSSES,
    assert_near,
    for_every_pair_loss,
    naive_pair_loss,
)
from tests.support.batches import batch, leaves_of, value_and_gradients
from tests.support.targets import Target, for_every_backend

REDUCTIONS = ("none", "sum", "mean", "mean_all")
ROWS, REFERENCES = 11, 7


def kinds(rows: int, columns: int, *, symmetric: bool, all_pairs: bool = False) -> Tensor:
    """(rows, columns) int8: 1 positive, -1 negative, 0 neither; some rows lack a kind, or both."""
    generator = torch.Generator().manual_seed(rows + columns)
    drawn = torch.randint(0, 2 if all_pairs else 3, (rows, columns), generator=generator) - 1
    drawn = torch.where(drawn == 0, 1, drawn) if all_pairs else drawn
    drawn = drawn.to(torch.int8)
    if not all_pairs:
        drawn[0], drawn[1] = 0, drawn[1].clamp_min(0)
        drawn[2] = drawn[2].clamp_max(0)
    return drawn.triu(1) + drawn.triu(1).T if symmetric else drawn


def lists(chosen: Tensor) -> tuple[Tensor, ...]:
    return (*(chosen > 0).nonzero().T, *(chosen < 0).nonzero().T)


def sparse_csr(chosen: Tensor) -> Tensor:
    return (chosen > 0).to(torch.float32).to_sparse_csr()


# Of a matrix without pairs that are neither.
WHOLE_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "bool": lambda chosen: chosen > 0,
    "strided bool": lambda chosen: (chosen > 0).T.contiguous().T,
    "coo": lambda chosen: (chosen > 0).to_sparse(),
    "coo of numbers": lambda chosen: ((chosen > 0) * 2.5).to_sparse(),
    "csr": sparse_csr,
    "int8": lambda chosen: chosen,
    "lists": lists,
}
PARTIAL_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "int8": lambda chosen: chosen,
    "larger int8": lambda chosen: chosen * 5,
    "strided int8": lambda chosen: chosen.T.contiguous().T,
    "lists": lists,
    "list of int32": lambda chosen: [each.int() for each in lists(chosen)],
    "lists with pairs twice": lambda chosen: tuple(torch.cat([x, x]) for x in lists(chosen)),
}


def tensors_of(references: bool) -> list[Tensor | None]:
    x, _ = batch(ROWS, dtype=torch.float64)
    return [
        x,
        None,
        batch(REFERENCES, dtype=torch.float64, seed=5)[0] if references else None,
        None,
    ]


def hold(name: str, ours: Tensor, tensors: list[Any], chosen: Tensor, reduction: str) -> None:
    """Value and gradients of the chosen pairs; without references the diagonal is none of them."""
    if tensors[2] is None:
        chosen = chosen.clone().fill_diagonal_(0)
    truth = naive_pair_loss(name, tensors[0], tensors[2], (chosen > 0, chosen < 0), reduction)
    leaves = leaves_of(tensors)
    results = value_and_gradients(ours, leaves), value_and_gradients(truth, leaves)
    for value, expected in zip(*results, strict=True):
        assert_near(value, expected)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@for_every_pair_loss
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("form", WHOLE_FORMS)
def test_every_form_of_a_whole_matrix_chooses_its_pairs(
    name: str, form: str, references: bool
) -> None:
    columns = REFERENCES if references else ROWS
    for symmetric in (False,) if references else (False, True):
        chosen = kinds(ROWS, columns, symmetric=symmetric, all_pairs=True)
        chosen = torch.where(chosen == 0, -1, chosen).to(torch.int8)
        tensors = tensors_of(references)
        ours = PAIR_LOSSES[name].function(*tensors, pair_mask=WHOLE_FORMS[form](chosen))
        hold(name, ours, tensors, chosen, "mean")


@for_every_pair_loss
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("form", PARTIAL_FORMS)
def test_pairs_may_be_neither(name: str, form: str, references: bool) -> None:
    columns = REFERENCES if references else ROWS
    for symmetric in (False,) if references else (False, True):
        chosen = kinds(ROWS, columns, symmetric=symmetric)
        for reduction in REDUCTIONS:
            tensors = tensors_of(references)
            mask = PARTIAL_FORMS[form](chosen)
            ours = PAIR_LOSSES[name].function(*tensors, pair_mask=mask, reduction=reduction)
            hold(name, ours, tensors, chosen, reduction)


@pytest.mark.backends
@for_every_backend
@for_every_pair_loss
def test_every_backend_takes_masks(target: Target, name: str) -> None:
    for dtype in target.few_dtypes:
        for symmetric in (False, True):
            chosen = kinds(70, 70, symmetric=symmetric)
            x, _ = batch(70, 24, dtype=dtype, device=target.device)
            ours = PAIR_LOSSES[name].function(
                x, None, pair_mask=chosen.to(target.device), backend=target.backend
            )
            wide = x.detach().cpu().double().requires_grad_()
            pairs = chosen.clone().fill_diagonal_(0)
            truth = naive_pair_loss(name, wide, None, (pairs > 0, pairs < 0))
            eps = torch.finfo(ours.dtype).eps
            assert_near(ours.detach().cpu().double(), truth.detach(), 200 * eps)
            (gradient,), (expected,) = (
                torch.autograd.grad(loss, leaf) for loss, leaf in ((ours, x), (truth, wide))
            )
            eps = max(200 * eps, 4 * torch.finfo(dtype).eps)
            assert_near(gradient.cpu().double(), expected, eps)


@for_every_pair_loss
def test_mask_of_labels_is_those_labels(name: str) -> None:
    x, y = batch(ROWS, dtype=torch.float64)
    function = PAIR_LOSSES[name].function
    for reduction in REDUCTIONS:
        ours = function(x, None, pair_mask=y[:, None] == y, reduction=reduction)
        expected = function(x, y, reduction=reduction)
        results = value_and_gradients(ours, x), value_and_gradients(expected, x)
        for value, truth in zip(*results, strict=True):
            assert_near(value, truth)


@for_every_pair_loss
@pytest.mark.parametrize("chosen", [0, 1, -1])
def test_masks_of_one_kind_or_none(name: str, chosen: int) -> None:
    for references in (False, True):
        columns = REFERENCES if references else ROWS
        mask = torch.full((ROWS, columns), chosen, dtype=torch.int8)
        tensors = tensors_of(references)
        hold(name, PAIR_LOSSES[name].function(*tensors, pair_mask=mask), tensors, mask, "mean")


@for_every_pair_loss
def test_masks_of_batches_without_rows_or_references(name: str) -> None:
    function = PAIR_LOSSES[name].function
    for rows, references in ((0, None), (1, None), (0, 3), (3, 0)):
        x = torch.randn(rows, 4, requires_grad=True)
        refs = None if references is None else torch.randn(references, 4)
        mask = torch.ones(rows, rows if references is None else references, dtype=torch.bool)
        loss = function(x, None, refs, pair_mask=mask)
        assert loss == 0
        assert (torch.autograd.grad(loss, x)[0] == 0).all()


@for_every_pair_loss
def test_several_positives_of_a_row_with_several_labels(name: str) -> None:
    """Multi-label data: positive where two rows share one of their labels."""
    generator = torch.Generator().manual_seed(0)
    has = torch.rand(ROWS, 5, generator=generator) < 0.3
    mask = (has.float() @ has.float().T) > 0
    tensors = tensors_of(False)
    ours = PAIR_LOSSES[name].function(*tensors, pair_mask=mask)
    hold(name, ours, tensors, torch.where(mask, 1, -1).to(torch.int8), "mean")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@for_every_pair_loss
def test_autocast_changes_nothing_of_masks(name: str, dtype: torch.dtype) -> None:
    x, _ = batch(ROWS, requires_grad=True)
    chosen = kinds(ROWS, ROWS, symmetric=True)
    expected = value_and_gradients(PAIR_LOSSES[name].function(x, None, pair_mask=chosen), x)
    with torch.autocast("cpu", dtype=dtype):
        ours = value_and_gradients(PAIR_LOSSES[name].function(x, None, pair_mask=chosen), x)
    assert all(map(torch.equal, ours, expected))


def test_modules_take_masks_at_the_call() -> None:
    x, _ = batch(ROWS)
    mask = kinds(ROWS, ROWS, symmetric=True)
    for module, function in (
        (CircleLoss(), circle_loss),
        (losses.MultiSimilarityLoss(), losses.multi_similarity_loss),
        (losses.SupConLoss(), losses.supcon_loss),
        (losses.NTXentLoss(), losses.ntxent_loss),
    ):
        assert torch.equal(module(x, None, pair_mask=mask), function(x, None, pair_mask=mask))


X, REFS = torch.randn(4, 3), torch.randn(5, 3)
Y = torch.arange(4)
MASK = torch.ones(4, 4, dtype=torch.bool)
PLACES = torch.arange(2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, Y), {"pair_mask": MASK}, ValueError, "pair_mask in place of labels"),
        ((X, None, REFS, Y), {"pair_mask": MASK}, ValueError, "pair_mask in place of labels"),
        ((X, None), {"pair_mask": MASK, "ignore_label": 1}, ValueError, "in place of labels"),
        ((X, None), {}, TypeError, "wants labels, or pair_mask"),
        ((X, None), {"pair_mask": MASK[1:]}, ValueError, r"wanted \(4, 4\), got a torch.bool"),
        ((X, None, REFS), {"pair_mask": MASK}, ValueError, r"wanted \(4, 5\)"),
        ((X, None), {"pair_mask": MASK.float()}, TypeError, "boolean, int8 or sparse .*float32"),
        ((X, None), {"pair_mask": MASK.long()}, TypeError, "boolean, int8 or sparse .*int64"),
        ((X, None), {"pair_mask": 3}, TypeError, "pair_mask must be .* got int 3"),
        ((X, None), {"pair_mask": (PLACES,) * 3}, TypeError, "four vectors of indices"),
        ((X, None), {"pair_mask": (PLACES.float(),) * 4}, TypeError, "four vectors of indices"),
        (
            (X, None),
            {"pair_mask": (PLACES, PLACES, PLACES, PLACES[1:])},
            ValueError,
            "negative pairs, got 2 r",
        ),
        (
            (X, None),
            {"pair_mask": (PLACES, PLACES + 3) * 2},
            IndexError,
            "pair_mask .*not among 4 e",
        ),
        (
            (X, None),
            {"pair_mask": (PLACES, -4 - PLACES) * 2},
            IndexError,
            "pair_mask .*not among 4 ",
        ),
        ((X, None), {"pair_mask": (PLACES, 1 - PLACES) * 2}, ValueError, "both as positive and"),
        ((X.long(), None), {"pair_mask": MASK}, TypeError, "embeddings must be float16"),
        ((X, None, REFS[:, 1:]), {"pair_mask": MASK}, ValueError, "ref_emb must have as many"),
    ],
)
@for_every_pair_loss
def test_wrong_masks_are_named(
    name: str, arguments: tuple, options: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        PAIR_LOSSES[name].function(*arguments, **options)


@pytest.mark.parametrize("function", [circle_loss, unified_loss])
def test_masks_are_not_for_one_loss_of_all_pairs(function: Callable) -> None:
    numbers = {} if function is circle_loss else {"m": 0.2, "gamma": 16}
    with pytest.raises(ValueError, match="pair_mask with scope='anchor'"):
        function(X, None, pair_mask=MASK, scope="batch", **numbers)


def _freed() -> Tensor:
    mask = MASK.clone()
    mask.untyped_storage().resize_(0)
    return mask


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_freed, ValueError, "pair_mask must have memory for its entries"),
        (lambda: torch.nested.nested_tensor(list(MASK)), TypeError, "pair_mask must be a dense"),
        (lambda: FakeTensorMode().from_tensor(MASK), TypeError, "pair_mask must hold numbers"),
        (lambda: MASK.to("meta"), ValueError, "pair_mask must hold numbers"),
        (lambda: (PLACES, PLACES, PLACES.to("meta"), PLACES), ValueError, "pair_mask must hold"),
    ],
    ids=["freed", "nested", "fake", "meta", "meta list"],
)
def test_masks_without_numbers_are_named(
    make: Callable[[], Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        circle_loss(X, None, pair_mask=make())


@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("name", ["circle", "supcon", "ntxent"])
@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_nan_stays_with_pairs_that_have_it(name: str, references: bool, backend: str) -> None:
    """Not with those which are neither positive nor negative."""
    x, labels = batch(dtype=torch.float64, requires_grad=False)
    mask = torch.where(labels[:, None] == labels, 1, -1).to(torch.int8)
    mask[4], mask[:, 4] = 0, 0
    x[4] = float("nan")
    x.requires_grad_()
    rows = PAIR_LOSSES[name].function(
        x,
        None,
        x.detach() if references else None,
        pair_mask=mask,
        reduction="none",
        backend=backend,
    )
    (gradient,) = torch.autograd.grad(rows.sum(), x)
    others = torch.arange(len(x)) != 4
    assert rows[others].isfinite().all()
    assert (rows[others] > 0).any()
    assert gradient[others].isfinite().all()
