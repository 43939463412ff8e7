"""Hyper-parameters that change under a compiled step, and default dtypes."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from circle_kernels import CircleLoss, ClassCircleLoss
from tests.support.batches import (
    DEPTH,
    REFERENCES,
    batch_with_references,
    class_batch,
    value_and_gradients,
)
from tests.support.public_losses import assert_close, head_rows


class Naive(nn.Module):
    """As the field writes it."""

    def __init__(self, gamma: float = 80.0, m: float = 0.4) -> None:
        super().__init__()
        self.gamma, self.m = gamma, m

    def forward(self, x: Tensor, labels: Tensor, *_: Tensor) -> Tensor:
        x = nn.functional.normalize(x)
        similarity = x @ x.T
        same = labels[:, None] == labels
        s_p = -self.gamma * (1 + self.m - similarity.detach()).relu() * (similarity - 1 + self.m)
        s_n = self.gamma * (similarity.detach() + self.m).relu() * (similarity - self.m)
        lse = [
            each.masked_fill(~mask, -torch.inf).logsumexp(1)
            for each, mask in ((s_p, same), (s_n, ~same))
        ]
        return nn.functional.softplus(lse[0] + lse[1]).mean()


SCHEDULED = {
    "circle": lambda: CircleLoss(),
    "batch": lambda: CircleLoss(scope="batch"),
    "class": lambda: ClassCircleLoss(REFERENCES, DEPTH),
}


def graphs_of_schedule(module: nn.Module, name: str) -> int:
    """Graphs that six values of one hyper-parameter take; their results are checked."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(module, backend="aot_eager")
    x, labels, *_ = batch_with_references()
    first = getattr(module, name)
    for step in range(6):
        setattr(module, name, first * (1 + step / 8))
        assert_close(
            value_and_gradients(compiled(x, labels), x), value_and_gradients(module(x, labels), x)
        )
    setattr(module, name, first)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@functools.cache
def graphs_of_naive_schedule(name: str) -> int:
    return graphs_of_schedule(Naive(), name)


@pytest.mark.parametrize("name", ["gamma", "m"])
@pytest.mark.parametrize("loss", SCHEDULED)
def test_schedule_compiles_no_more_graphs_than_a_naive_module(
    loss: str, name: str, fresh_compiler: None
) -> None:
    assert graphs_of_schedule(SCHEDULED[loss](), name) <= graphs_of_naive_schedule(name)


def test_compiled_class_loss_is_float32_whatever_the_default_dtype(fresh_compiler: None) -> None:
    x, labels, weight = class_batch(classes=40)
    compiled = torch.compile(head_rows, backend="aot_eager")
    expected = value_and_gradients(head_rows(x, weight, labels), (x, weight))
    torch.set_default_dtype(torch.float64)
    try:
        ours = value_and_gradients(compiled(x, weight, labels), (x, weight))
        eager = value_and_gradients(head_rows(x, weight, labels), (x, weight))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {each.dtype for each in (*ours, *eager)} == {torch.float32}
    assert_close(ours, expected)
    assert_close(eager, expected)
