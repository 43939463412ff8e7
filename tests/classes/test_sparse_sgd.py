"""SparseSGD: SGD where every row has a gradient, rest where one has none."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from circle_kernels import SparseSGD
from tests.support.batches import sparse

OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_row_has_the_sgd_of_its_own_gradients(options: dict) -> None:
    """As one parameter for each row, which torch.optim.SGD leaves alone without a gradient."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    alone = [nn.Parameter(row.clone()) for row in start]
    ours = SparseSGD([weight], lr=0.1, **options)
    theirs = torch.optim.SGD(alone, lr=0.1, **options)
    for rows in ([0, 2, 5], [1, 2], [5, 0], [2, 2, 4], []):
        values = torch.randn(len(rows), 3, generator=generator, dtype=torch.float64)
        weight.grad = sparse(rows, values, weight.shape)
        for parameter in alone:
            parameter.grad = None
        for row, value in zip(rows, values, strict=True):
            before = alone[row].grad
            alone[row].grad = value if before is None else before + value
        ours.step()
        theirs.step()
        torch.testing.assert_close(weight.data, torch.stack([row.data for row in alone]))


def test_state_survives_saving() -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    optimizer = SparseSGD([weight], lr=0.5, momentum=0.5)
    weight.grad = sparse([1], torch.ones(1, 2), weight.shape)
    assert optimizer.step(lambda: 7) == 7
    restored_weight = nn.Parameter(weight.detach().clone())
    restored = SparseSGD([restored_weight], lr=0.5, momentum=0.5)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    restored_weight.grad = weight.grad
    for each in (optimizer, restored):
        each.step()
    assert torch.equal(restored_weight, weight)


def test_dense_gradient_is_refused() -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    weight.grad = torch.ones(4, 2)
    with pytest.raises(RuntimeError, match=re.escape("got a dense one of shape (4, 2)")):
        SparseSGD([weight]).step()
    # Also where it would move nothing; a step of nothing is how checkpoints have state made.
    optimizer = SparseSGD([weight], lr=0.0, momentum=0.9)
    with pytest.raises(RuntimeError, match="got a dense one"):
        optimizer.step()
    weight.grad.zero_()
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"momentum": float("nan")}, "momentum must be at least 0, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"nesterov": True}, "nesterov needs a momentum"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SparseSGD([nn.Parameter(torch.ones(2, 2))], **options)


def test_nesterov_that_is_no_boolean_is_named() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(TypeError, match="nesterov must be True or False, got str 'no'"):
        SparseSGD([weight], momentum=0.9, nesterov="no")
