"""Floating-point operations, as PyTorch counts them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.batches import batch_with_references
from tests.support.public_losses import LOSSES, OF_TWO_SIDES, for_every_loss


@pytest.mark.parametrize("references", [True, False])
@for_every_loss
def test_counted_operations_are_those_of_the_naive_products(loss: str, references: bool) -> None:
    if loss in OF_TWO_SIDES and not references:
        pytest.skip("it has another side")
    counts = []
    for backend in ("auto", "reference"):
        tensors = list(batch_with_references()) if references else batch_with_references()[:2]
        leaves = tensors[::2]
        with FlopCounterMode(display=False) as forward:
            output = LOSSES[loss](*tensors, backend=backend)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(output, leaves)
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0
