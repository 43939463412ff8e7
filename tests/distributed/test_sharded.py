"""Class shards in real processes: value and gradients are those of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from circle_kernels import (
    ClassCircleLoss,
    ClassUnifiedLoss,
    ShardedClassCircleLoss,
    ShardedClassUnifiedLoss,
)
from tests.distributed.processes import run_processes
from tests.support.batches import class_batch

PAIRS = {
    "circle": (ShardedClassCircleLoss, ClassCircleLoss),
    "unified": (ShardedClassUnifiedLoss, ClassUnifiedLoss),
}
DEPTH = 6


def problem(rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings and labels of all processes, some of them to be ignored, and the weight."""
    batch = class_batch(rows, DEPTH, classes=classes, dtype=torch.float64, seed=rows)
    embeddings, labels, weight = batch
    labels[1::5] = -100
    return embeddings.detach(), labels, weight.detach()


def own_rows(rank: int, sizes: tuple[int, ...]) -> slice:
    first = sum(sizes[:rank])
    return slice(first, first + sizes[rank])


def sharded(name: str, weight: Tensor, **options: Any) -> ShardedClassCircleLoss:
    """A head with these weights; each process copies its rows."""
    head = PAIRS[name][0](*weight.shape, dtype=weight.dtype, **options)
    first = dist.get_rank() * -(-len(weight) // dist.get_world_size())
    own = head.weight.detach().to_local()
    own.copy_(weight[first : first + len(own)])
    return head


def one_process(name: str, weight: Tensor, **options: Any) -> ClassCircleLoss:
    head = PAIRS[name][1](*weight.shape, dtype=weight.dtype, **options)
    head.weight.data.copy_(weight)
    return head


def assert_close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def compare(rank: int, sizes: tuple[int, ...], classes: int, options: dict[str, Any]) -> None:
    name = options.get("name", "circle")
    options = {key: value for key, value in options.items() if key != "name"}
    grad_reduction = options.pop("grad_reduction", "mean")
    embeddings, labels, weight = problem(sum(sizes), classes)
    upstream = torch.linspace(-1, 2, sum(sizes), dtype=torch.float64)
    rows = own_rows(rank, sizes)
    head = sharded(name, weight, grad_reduction=grad_reduction, **options)
    alone = one_process(name, weight, **options)
    own = embeddings[rows].clone().requires_grad_()
    whole = embeddings.clone().requires_grad_()
    ours, expected = head(own, labels[rows]), alone(whole, labels)
    if options.get("reduction") == "none":
        assert_close(ours, expected[rows])
        ours, expected = (ours * upstream[rows]).sum(), (expected * upstream).sum()
    else:
        assert_close(ours, expected)
    ours.backward()
    expected.backward()
    factor = len(sizes) if grad_reduction == "mean" else 1
    assert_close(own.grad, whole.grad[rows] * factor)
    assert_close(head.weight.grad.full_tensor(), alone.weight.grad)
    assert_close(head.get_logits(embeddings, labels), alone.get_logits(embeddings, labels))


def compare_each(rank: int, cases: list[tuple[tuple[int, ...], int, dict[str, Any]]]) -> None:
    for sizes, classes, options in cases:
        try:
            compare(rank, sizes, classes, options)
        except AssertionError as error:
            raise AssertionError(f"{sizes}, {classes} classes, {options}") from error


ALL_SIZES = {
    2: [(5, 9), (7, 0), (0, 0), (3, 3)],
    3: [(5, 3, 0), (0, 8, 1), (4, 4, 4)],
    4: [(2, 0, 9, 1), (0, 0, 0, 5), (3, 3, 3, 3)],
}
OPTIONS: list[dict[str, Any]] = [
    {"reduction": "mean"},
    {"reduction": "mean_all", "gamma": 16.0},
    {"reduction": "sum", "grad_reduction": "sum", "gamma": 16.0},
    {"reduction": "none", "gamma": 16.0},
    {"reduction": "none", "grad_reduction": "sum", "detach_weights": False, "gamma": 16.0},
    {"name": "unified", "gamma": 16.0, "normalize": False},
    {"gamma": 16.0, "backend": "reference"},
]


@pytest.mark.parametrize("world_size", ALL_SIZES)
def test_value_and_gradients_are_those_of_one_process(world_size: int) -> None:
    cases = [
        (sizes, classes, options)
        for sizes in ALL_SIZES[world_size]
        for classes in (11, 3, 1, 24)
        for options in OPTIONS
    ]
    run_processes(world_size, compare_each, cases)
