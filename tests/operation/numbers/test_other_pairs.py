"""Pairs beside those of labels alone: own copies left out, and columns that count pairs, too."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula, pair_logsumexp
from circle_kernels.formula import PairFormula
from circle_kernels.logsumexp import masked_logsumexp
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.eager import logsumexps
from circle_kernels.reference import similarity_matrix
from tests.support.targets import Target, for_every_backend
from tests.support.yardstick import Yardstick, gradients

pytestmark = [pytest.mark.backends, pytest.mark.sanitized]

SIZES = [(1, 1), (7, 30), (67, 41), (130, 200), (200, 97)]
FORMULAS = [
    CircleFormula(m=0.25, gamma=64.0),
    UnifiedFormula(m=0.1, gamma=30.0),
    UnifiedFormula(gamma_pos=2.0, gamma_neg=50.0, margin_pos=0.5, margin_neg=0.5),
]


def _drawn(rows: int, columns: int, dtype: torch.dtype, device: str, of_others: bool) -> Batch:
    """A batch some of whose rows are among the references; ``of_others``: with another label."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    values = torch.randn(rows + columns, 24, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, max(rows // 4, 1), (rows + columns,), generator=generator)
    own = torch.full((rows,), -1)
    copied = min(rows, columns) // 2 + 1
    places = torch.randperm(columns, generator=generator)[:copied]
    which = torch.randperm(rows, generator=generator)[:copied]
    own[which] = places
    values[rows + places] = values[which]
    if not of_others:
        labels[rows + places] = labels[which]
    sides = (values[:rows].to(device, dtype), values[rows:].to(device, dtype))
    return Batch(
        sides[0].requires_grad_(),
        labels[:rows].to(device),
        sides[1].requires_grad_(),
        labels[rows:].to(device),
        own_columns=own.to(device),
    )


def _naive(batch: Batch, operation: Operation, dtype: torch.dtype) -> list[Tensor]:
    """Log-sum-exps and gradients by the whole matrix."""
    sides = [
        side.detach().cpu().to(dtype).requires_grad_()
        for side in (batch.embeddings, batch.ref_emb)
        if side is not None
    ]
    similarity = similarity_matrix(*sides, normalize=operation.normalize)
    assert batch.ref_labels is not None
    same = batch.labels.cpu()[:, None] == batch.ref_labels.cpu()[None, :]
    counted = torch.ones_like(same)
    if batch.own_columns is not None:
        counted = batch.own_columns.cpu()[:, None] != torch.arange(same.shape[1])
    kinds = (
        (operation.formula.positive_logits(similarity), same & counted),
        (operation.formula.negative_logits(similarity), ~same & counted),
    )
    dims = (1, 0) if operation.both_sides else (1,)
    sums = [torch.cat([masked_logsumexp(*kind, dim=dim) for dim in dims]) for kind in kinds]
    return [*(each.detach() for each in sums), *gradients(sums[0], sums[1], [*sides])]


def _hold(target: Target, batch: Batch, operation: Operation) -> None:
    lse_pos, lse_neg = logsumexps(batch, operation)
    results = [lse_pos, lse_neg, *gradients(lse_pos, lse_neg, [batch.embeddings, batch.ref_emb])]
    dtype = batch.embeddings.dtype
    truths, eager = (_naive(batch, operation, each) for each in (torch.float64, dtype))
    gamma = max(operation.formula.gammas)
    for place, result in enumerate(results):
        eps = torch.finfo(torch.float32 if place < 2 and dtype != torch.float64 else dtype).eps
        scale = 4 * gamma if place >= 2 else 0.0
        Yardstick(truths[place], eager[place]).assert_close(result, eps, gamma, scale)


@for_every_backend
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("formula", FORMULAS, ids=["circle", "unified", "two scales"])
def test_own_copies_count_as_neither_kind(
    target: Target, sizes: tuple[int, int], formula: PairFormula
) -> None:
    for dtype, of_others in itertools.product(target.few_dtypes, (False, True)):
        batch = _drawn(*sizes, dtype, target.device, of_others)
        _hold(target, batch, Operation(formula, backend=target.backend))


@for_every_backend
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("formula", FORMULAS, ids=["circle", "unified", "two scales"])
def test_columns_count_pairs_as_rows_do(
    target: Target, sizes: tuple[int, int], formula: PairFormula
) -> None:
    for dtype in target.few_dtypes:
        batch = _drawn(*sizes, dtype, target.device, False)._replace(own_columns=None)
        _hold(target, batch, Operation(formula, backend=target.backend, both_sides=True))


@for_every_backend
def test_both_sides_of_equal_labels_in_order(target: Target) -> None:
    """As CLIP has them: one positive in each row and in each column."""
    for dtype in target.few_dtypes:
        batch = _drawn(150, 150, dtype, target.device, False)._replace(own_columns=None)
        places = torch.arange(150, device=target.device)
        batch = batch._replace(labels=places, ref_labels=places)
        _hold(target, batch, Operation(UnifiedFormula(gamma=40.0), True, 0.0, target.backend, True))


@for_every_backend
def test_nan_reaches_all_that_saw_it_and_nothing_else(target: Target) -> None:
    batch = _drawn(40, 50, torch.float32, target.device, False)
    with torch.no_grad():
        batch.embeddings[3] = float("nan")
    both = batch._replace(own_columns=None)
    operation = Operation(UnifiedFormula(gamma=10.0), backend=target.backend, both_sides=True)
    lse_pos, lse_neg = logsumexps(both, operation)
    assert batch.ref_labels is not None
    same = batch.ref_labels == batch.labels[3]
    assert torch.equal(lse_neg[40:].isnan(), ~same)
    assert torch.equal(lse_pos[40:].isnan(), same)
    assert lse_neg[:40].isnan().sum() == 1


def test_public_operation_takes_masks_and_own_copies() -> None:
    batch = _drawn(20, 30, torch.float64, "cpu", True)
    formula = FORMULAS[0]
    assert batch.ref_labels is not None
    ours = pair_logsumexp(*batch[:4], formula=formula, self_index=batch.own_columns)
    mask = batch.labels[:, None] == batch.ref_labels[None, :]
    masked = pair_logsumexp(
        batch.embeddings,
        None,
        batch.ref_emb,
        formula=formula,
        pair_mask=mask,
        self_index=batch.own_columns,
    )
    expected = logsumexps(batch, Operation(formula))
    for results in (ours, masked):
        torch.testing.assert_close(results, expected)
    with pytest.raises(TypeError, match="pair_logsumexp wants labels, or pair_mask"):
        pair_logsumexp(batch.embeddings, None, formula=formula)
