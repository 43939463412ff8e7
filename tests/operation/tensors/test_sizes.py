"""Sizes whose numbers or bytes overflow."""

from __future__ import annotations

import pytest
import torch

from circle_kernels import (
    circle_loss,
    class_circle_loss,
)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["auto", "cpu", "tiled"])
@pytest.mark.parametrize("size", HUGE)
@apart
def test_sizes_that_overflow_raise(size: str, backend: str, dtype: torch.dtype) -> None:
    tensors = HUGE[size](torch.zeros((), dtype=dtype))
    losses = [circle_loss, *([] if len(tensors) == 2 else [class_circle_loss])]
    for loss in losses:
        inputs = tensors if loss is circle_loss else tensors[:3]
        name = "weight" if loss is class_circle_loss else "ref_emb" if tensors[2:] else "embeddings"
        for leaf in (False, True):
            first = tensors[0].detach().requires_grad_(leaf)
            with pytest.raises((*REFUSALS, MemoryError)) as caught:
                loss(first, *inputs[1:], backend=backend).backward()
            text = str(caught.value)
            assert name in text or "embeddings" in text or "allocate" in text, text
