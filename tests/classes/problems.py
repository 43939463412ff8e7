"""Class losses in both forms, and one small problem for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circle_kernels import ClassCircleLoss, ClassUnifiedLoss, class_circle_loss, class_unified_loss

HEADS = (ClassCircleLoss, ClassUnifiedLoss)
LOSSES = {
    "circle": class_circle_loss,
    "unified": lambda *tensors, **options: class_unified_loss(
        *tensors, **{"m": 0.35, "gamma": 64.0, **options}
    ),
}
for_every_head = pytest.mark.parametrize("head_type", HEADS)
for_every_loss = pytest.mark.parametrize("name", LOSSES)


def problem(n: int = 40, num_classes: int = 21, d: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and weight in float64; both matrices require gradients."""
    generator = torch.Generator().manual_seed(5)
    embeddings, weight = (
        torch.randn(rows, d, generator=generator, dtype=torch.float64).requires_grad_()
        for rows in (n, num_classes)
    )
    return embeddings, torch.randint(0, num_classes, (n,), generator=generator), weight


def head_like(head_type: type, weight: Tensor, **options) -> ClassCircleLoss | ClassUnifiedLoss:
    head = head_type(*weight.shape, dtype=weight.dtype, **options)
    head.weight.data.copy_(weight.detach())
    return head


def value_and_gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


def assert_same(results: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for ours, truth in zip(results, expected, strict=True):
        scale = truth.abs().max().item()
        torch.testing.assert_close(ours, truth, rtol=0, atol=tolerance * scale)
