"""Class losses in both forms, and one small problem for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circle_kernels import ClassCircleLoss, ClassUnifiedLoss, class_circle_loss, class_unified_loss
from tests.support.batches import ClassBatch, class_batch

HEADS = (ClassCircleLoss, ClassUnifiedLoss)
LOSSES = {
    "circle": class_circle_loss,
    "unified": lambda *tensors, **options: class_unified_loss(
        *tensors, **{"m": 0.35, "gamma": 64.0, **options}
    ),
}
for_every_head = pytest.mark.parametrize("head_type", HEADS)
for_every_loss = pytest.mark.parametrize("name", LOSSES)


def problem(n: int = 40, num_classes: int = 21, d: int = 12) -> ClassBatch:
    """Embeddings, labels and weight in float64; both matrices require gradients."""
    return class_batch(n, d, classes=num_classes, dtype=torch.float64)


def head_like(head_type: type, weight: Tensor, **options) -> ClassCircleLoss | ClassUnifiedLoss:
    head = head_type(*weight.shape, dtype=weight.dtype, **options)
    head.weight.data.copy_(weight.detach())
    return head


def assert_same(results: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for ours, truth in zip(results, expected, strict=True):
        scale = truth.abs().max().item()
        torch.testing.assert_close(ours, truth, rtol=0, atol=tolerance * scale)
