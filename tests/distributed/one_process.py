"""A loss over processes beside the same loss in one process that has the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from circle_kernels import circle_loss
from tests.support import batches

SHARING = ("group", "exchange", "same_sizes", "grad_reduction")
DEPTH = 6


@dataclass(frozen=True)
class Case:
    """``sizes`` are the rows of each process, ``references`` theirs."""

    sizes: Sequence[int]
    references: Sequence[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    function: Any = circle_loss
    dtype: torch.dtype = torch.float64
    classes: int = 4


def own_rows(sizes: Sequence[int], rank: int) -> slice:
    first = sum(sizes[:rank])
    return slice(first, first + sizes[rank])


def side(case: Case, sizes: Sequence[int], seed: int) -> batches.Batch:
    return batches.batch(
        sum(sizes),
        DEPTH,
        classes=case.classes,
        random_labels=True,
        dtype=case.dtype,
        seed=seed,
        requires_grad=False,
    )


def compute(case: Case, rank: int | None) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradient of each side's weight, which stands for a network that all rows
    go through; of this rank's part, or without one of everything."""
    options = {"group": "world", **case.options}
    if rank is None:
        options = {name: value for name, value in options.items() if name not in SHARING}
    tensors, weights = [], []
    for place, sizes in enumerate((case.sizes, case.references)):
        if sizes is None:
            continue
        embeddings, labels = side(case, sizes, seed=7 + place)
        rows = slice(None) if rank is None else own_rows(sizes, rank)
        weights.append(torch.eye(DEPTH, dtype=case.dtype, requires_grad=True))
        tensors += [embeddings[rows] @ weights[-1], labels[rows]]
    loss = case.function(*tensors, **options)
    upstream = torch.linspace(0.5, 1.5, sum(case.sizes), dtype=loss.dtype)
    if loss.dim() == 1:
        rows = slice(None) if rank is None else own_rows(case.sizes, rank)
        (loss * upstream[rows]).sum().backward()
    else:
        loss.backward()
    return loss.detach(), [weight.grad for weight in weights]


def reduce_gradient(gradient: Tensor, case: Case) -> Tensor:
    """What DDP makes of the gradient, or a trainer that adds."""
    dist.all_reduce(gradient)
    added = case.options.get("grad_reduction") == "sum"
    return gradient if added else gradient / dist.get_world_size()


def compare(rank: int, cases: Sequence[Case]) -> None:
    """Require of each case the loss and the gradients of one process."""
    for case in cases:
        loss, gradients = compute(case, rank)
        expected, expected_gradients = compute(case, None)
        if loss.dim() == 1:
            expected = expected[own_rows(case.sizes, rank)]
        check(loss, expected, case)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            check(reduce_gradient(gradient, case), wanted, case)


def check(ours: Tensor, expected: Tensor, case: Case) -> None:
    """Equal to 1e-12 of the largest entry."""
    largest = expected.abs().max().clamp_min(1).item() if expected.numel() else 1.0
    torch.testing.assert_close(
        ours, expected, rtol=0, atol=1e-12 * largest, msg=lambda message: f"{case}: {message}"
    )
