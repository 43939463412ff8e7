"""Sizes whose numbers or bytes overflow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circle_kernels import circle_loss, class_circle_loss
from tests.support.apart import apart
from tests.support.public_losses import REFUSALS

WIDE, LONG = (2, 2**58), (2**58, 2)
HUGE = {
    "wide": lambda like: (like.new_zeros(1).expand(WIDE), torch.arange(2)),
    "wide references": lambda like: (
        *(like.new_zeros(1).expand(WIDE), torch.arange(2)),
        *(like.new_zeros(1).expand(WIDE), torch.arange(2)),
    ),
    "long": lambda like: (like.new_zeros(1).expand(LONG), torch.zeros(1).long().expand(2**58)),
    "long references": lambda like: (
        *(like.new_zeros(2, 2), torch.arange(2)),
        *(like.new_zeros(1).expand(LONG), torch.zeros(1).long().expand(2**58)),
    ),
}


@pytest.mark.parametrize("size", HUGE)
@apart
def test_sizes_that_overflow_raise(size: str) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        tensors = HUGE[size](torch.zeros((), dtype=dtype))
        name = "ref_emb" if tensors[2:] else "embeddings"
        for backend in ("auto", "cpu", "tiled"):
            expect_overflow(circle_loss, tensors, backend, name)
            if tensors[2:]:
                expect_overflow(class_circle_loss, tensors[:3], backend, "weight")


def expect_overflow(
    loss: Callable[..., Tensor], tensors: tuple[Tensor, ...], backend: str, name: str
) -> None:
    for leaf in (False, True):
        first = tensors[0].detach().requires_grad_(leaf)
        with pytest.raises((*REFUSALS, MemoryError)) as caught:
            loss(first, *tensors[1:], backend=backend).backward()
        text = str(caught.value)
        assert name in text or "embeddings" in text or "allocate" in text, f"{backend}: {text}"
