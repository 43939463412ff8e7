"""Two sides of different dtypes."""

from __future__ import annotations

import pytest
import torch

from circle_kernels import CircleFormula, pair_logsumexp
from tests.support.batches import batch_with_references, leaves_of, value_and_gradients
from tests.support.public_losses import LOSSES, assert_close, for_every_loss, truth
from tests.support.targets import Target, for_every_backend
from tests.support.yardstick import gradients


@pytest.mark.backends
@for_every_backend
@pytest.mark.parametrize("side", [0, 2], ids=["embeddings", "references"])
def test_narrower_side_is_widened(target: Target, side: int) -> None:
    expect_widened("circle", side, target.backend, target.device)
    expect_widened("class circle", side, target.backend, target.device)


@pytest.mark.parametrize("side", [0, 2], ids=["embeddings", "references"])
@for_every_loss
def test_narrower_side_of_every_loss_is_widened(loss: str, side: int) -> None:
    expect_widened(loss, side, "auto", "cpu")


def expect_widened(loss: str, side: int, backend: str, device: str) -> None:
    wide = torch.float32
    for narrow in (torch.float16, torch.bfloat16):
        tensors = list(batch_with_references(device=device, requires_grad=False))
        tensors[side] = tensors[side].to(narrow)
        leaves = leaves_of(tensors)
        results = value_and_gradients(LOSSES[loss](*tensors, backend=backend), leaves)
        assert [each.dtype for each in results] == [wide, *(leaf.dtype for leaf in leaves)]
        expected = truth(loss, [value.cpu() for value in tensors])
        assert_close([each.cpu() for each in results], expected, 4 * torch.finfo(narrow).eps)


@pytest.mark.backends
@for_every_backend
def test_gradients_of_both_dtypes_are_held_to_the_yardstick_of_one(target: Target) -> None:
    """Widening first or in the loss is the same, to the bit."""
    tensors = list(batch_with_references(device=target.device, requires_grad=False))
    if torch.float32 not in target.dtypes:
        pytest.skip("this level adds bfloat16 products only")
    tensors[2] = tensors[2].to(torch.bfloat16)
    leaves = leaves_of(tensors)
    formula = CircleFormula()
    ours = pair_logsumexp(*tensors, formula=formula, backend=target.backend)
    widened = [tensors[0], tensors[1], tensors[2].float(), tensors[3]]
    expected = pair_logsumexp(*widened, formula=formula, backend=target.backend)
    assert all(map(torch.equal, ours, expected))
    assert all(map(torch.equal, gradients(*ours, leaves), gradients(*expected, leaves)))
