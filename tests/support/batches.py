"""Random batches, in the order in which the losses take their tensors.

``circle_loss(*batch(40, 12))``, ``circle_loss(*batch_with_references(40, 12, references=30))`` and
``class_circle_loss(*class_batch(40, 12, classes=21))``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ROWS, REFERENCES, DEPTH = 12, 9, 8  # where nothing else is asked for


class Batch(NamedTuple):
    embeddings: Tensor  # (rows, depth)
    labels: Tensor  # (rows,)


class BatchWithReferences(NamedTuple):
    embeddings: Tensor  # (rows, depth)
    labels: Tensor  # (rows,)
    ref_emb: Tensor  # (references, depth)
    ref_labels: Tensor  # (references,)


class ClassBatch(NamedTuple):
    embeddings: Tensor  # (rows, depth)
    labels: Tensor  # (rows,), each a row of the weight
    weight: Tensor  # (classes, depth)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed; the same numbers in every dtype, but for their rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def batch(
    rows: int = ROWS,
    depth: int = DEPTH,
    *,
    classes: int = 3,
    random_labels: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    requires_grad: bool = True,
) -> Batch:
    """Embeddings and labels.

    Args:
        rows: number of embeddings.
        depth: their dimension.
        classes: labels are 0 to classes - 1.
        random_labels: draw them, so that some rows may have no positive; by default the classes
            take turns.
        dtype: of the embeddings.
        device: where all tensors are.
        seed: other numbers for another.
        requires_grad: whether the embeddings require a gradient.
    """
    if random_labels:
        generator = torch.Generator().manual_seed(seed + 1)
        labels = torch.randint(0, classes, (rows,), generator=generator)
    else:
        labels = torch.arange(rows) % classes
    embeddings = randn(rows, depth, seed=seed, dtype=dtype).to(device)
    return Batch(embeddings.requires_grad_(requires_grad), labels.to(device))


def batch_with_references(
    rows: int = ROWS,
    depth: int = DEPTH,
    *,
    references: int | None = REFERENCES,
    seed: int = 0,
    **options,
) -> Batch | BatchWithReferences:
    """Embeddings and as many references, if any, as asked for; options as for :func:`batch`."""
    own = batch(rows, depth, seed=seed, **options)
    if references is None:
        return own
    return BatchWithReferences(*own, *batch(references, depth, seed=seed + 100, **options))


def class_batch(
    rows: int = ROWS,
    depth: int = DEPTH,
    *,
    classes: int = REFERENCES,
    random_labels: bool = True,
    seed: int = 0,
    **options,
) -> ClassBatch:
    """Embeddings, labels and the weight of their classes; options as for :func:`batch`."""
    embeddings, labels = batch(
        rows, depth, classes=classes, random_labels=random_labels, seed=seed, **options
    )
    weight, _ = batch(classes, depth, seed=seed + 100, **options)
    return ClassBatch(embeddings, labels, weight)


def leaves_of(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Those of a batch's tensors that can have a gradient, which they are asked for."""
    floating = [value for value in tensors if value is not None and value.is_floating_point()]
    return [value.requires_grad_() for value in floating]


def value_and_gradients(output: Tensor, leaves: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """What a loss is, and the gradient of its sum with respect to each of these tensors."""
    return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]


def sparse(rows: list[int], values: Tensor, size: torch.Size) -> Tensor:
    """Values for some rows, as gradients of embeddings and of class weights have them; rows may be
    listed in any order and more than once."""
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, size, check_invariants=True)
