"""Every public loss with the same tensors, and what it is worth in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circle_kernels import (
    CircleFormula,
    CircleLoss,
    circle_loss,
    class_circle_loss,
    class_unified_loss,
    pair_logsumexp,
    unified_loss,
)
from circle_kernels.operation.listed_pairs import (
    PairIndices,
    gathered_logsumexp,
    matrix_logsumexp,
    pair_matrix,
    unique_pairs,
)
from tests.support.batches import ROWS, value_and_gradients

# What a tensor that cannot be served ends in.
REFUSALS = (TypeError, ValueError, RuntimeError, NotImplementedError)

LOSSES: dict[str, Callable[..., Tensor]] = {
    "circle": lambda *tensors, **options: circle_loss(*tensors, gamma=16, **options),
    "unified": lambda *tensors, **options: unified_loss(*tensors, m=0.2, gamma=16, **options),
    "batch": lambda *tensors, **options: circle_loss(*tensors, scope="batch", gamma=16, **options),
    "module": lambda *tensors, **options: CircleLoss(gamma=16, **options)(*tensors),
    "logsumexp": lambda *tensors, **options: torch.stack(
        pair_logsumexp(*tensors, formula=CircleFormula(gamma=16), **options)
    ).sum(),
    "class circle": lambda x, y, weight, _, **options: class_circle_loss(
        x, y, weight, gamma=16, **options
    ),
    "class unified": lambda x, y, weight, _, **options: class_unified_loss(
        x, y, weight, m=0.2, gamma=16, **options
    ),
    "class unified smoothed": lambda x, y, weight, _, **options: class_unified_loss(
        x, y, weight, m=0.2, gamma=16, label_smoothing=0.2, **options
    ),
}
for_every_loss = pytest.mark.parametrize("loss", LOSSES)


def assert_close(
    ours: list[Tensor] | tuple[Tensor, ...], expected: list[Tensor], digits: float = 1e-4
) -> None:
    """Equal beside the largest entry of each."""
    for value, truth in zip(ours, expected, strict=True):
        scale = truth.detach().abs().max().item()
        torch.testing.assert_close(value.double(), truth.double(), rtol=0, atol=digits * scale)


def truth(loss: str, tensors: list[Tensor]) -> list[Tensor]:
    """The loss and both gradients in float64, naively."""
    wide = [
        value.detach().double().requires_grad_() if value.is_floating_point() else value.long()
        for value in tensors
    ]
    return value_and_gradients(LOSSES[loss](*wide, backend="reference"), wide[::2])


SAMPLED = [{}, {"sample_rate": 0.5}, {"sparse_grad": True}]


def head_rows(
    x: Tensor, weight: Tensor, labels: Tensor, backend: str = "auto", **options
) -> Tensor:
    """Rows of a class loss; a sample is always the same."""
    generator = torch.Generator().manual_seed(2)
    return class_circle_loss(
        x, labels, weight, gamma=16, reduction="none", backend=backend, generator=generator,
        **options,
    )  # fmt: skip


def listed_logsumexps(
    x: Tensor, references: Tensor | None, short: bool, indices: PairIndices | None = None
) -> tuple[Tensor, Tensor]:
    """Over listed pairs, worked off one by one or as a matrix."""
    columns = ROWS if references is None else len(references)
    same = torch.arange(ROWS)[:, None] % 3 == torch.arange(columns) % 3
    if references is None:
        same.fill_diagonal_(False)
    rows_pos, columns_pos = same.nonzero().T
    rows_neg, columns_neg = (~same).fill_diagonal_(False).nonzero().T
    indices = indices or PairIndices(rows_pos, columns_pos, rows_neg, columns_neg)
    options = {"formula": CircleFormula(gamma=16)}
    if short:
        return gathered_logsumexp(x, references, unique_pairs(indices, ROWS, columns), **options)
    return matrix_logsumexp(x, references, pair_matrix(indices, ROWS, columns), **options)


def miners_tuple(short: bool) -> tuple[Tensor, ...]:
    """Positive and negative pairs as a miner lists them: all, or six of each."""
    labels = torch.arange(ROWS) % 3
    same = labels[:, None] == labels
    negative = (~same).nonzero().T
    positive = same.fill_diagonal_(False).nonzero().T
    pairs = [*positive, *negative]
    return tuple(each[::40] for each in pairs) if short else tuple(each[:-1] for each in pairs)


def drop_in(rows: bool = False, **options):
    pml = pytest.importorskip("pytorch_metric_learning")
    from circle_kernels.integrations.pytorch_metric_learning import CircleLoss as DropIn

    reducer = pml.reducers.DoNothingReducer() if rows else None
    loss = DropIn(gamma=16, reducer=reducer, **options)
    return (lambda *tensors: loss(*tensors)["loss"]["losses"][:, 0]) if rows else loss


for_every_list = pytest.mark.parametrize("short", [True, False], ids=["short", "long"])
