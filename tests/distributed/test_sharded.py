"""Class shards in real processes: value and gradients are those of one process."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

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
    1: [(9,)],
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
    {"name": "unified", "gamma": 16.0, "label_smoothing": 0.2},
    {"name": "unified", "gamma": 16.0, "label_smoothing": 0.2, "reduction": "none"},
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


def _need_no_gradient(rank: int) -> None:
    """Rank 1 has inputs that need none, or nobody's do, or the weight is frozen: nobody waits."""
    embeddings, labels, weight = problem(9, 11)
    rows = own_rows(rank, (4, 5))
    whole = embeddings.clone().requires_grad_()
    alone = one_process("circle", weight)
    alone(whole, labels).backward()
    for reduction in ("mean", "none"):
        for needing in (1, 0):
            head = sharded("circle", weight, reduction=reduction)
            own = embeddings[rows].clone().requires_grad_(rank < needing)
            loss = head(own, labels[rows])
            loss = loss.sum() / (labels >= 0).sum() if reduction == "none" else loss
            loss.backward()
            assert_close(head.weight.grad.full_tensor(), alone.weight.grad)
            if rank < needing:
                assert_close(own.grad, 2 * whole.grad[rows])
    head.weight.requires_grad_(False)
    own = embeddings[rows].clone().requires_grad_(rank == 0)
    head(own, labels[rows]).sum().backward()
    assert (own.grad is None) == (rank == 1)
    assert not head(embeddings[rows], labels[rows]).requires_grad


def test_backward_pass_where_not_all_need_gradients() -> None:
    run_processes(2, _need_no_gradient)


def _wrong_labels(rank: int) -> None:
    """As on a device, where the host does not look at labels."""
    embeddings, labels, weight = problem(9, 11)
    rows = own_rows(rank, (4, 5))
    labels[6] = 11
    labels[0] = -7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circle_kernels.classes.arguments.host_may_look", lambda tensor: False)
        for name, options in (
            ("circle", {"reduction": "mean"}),
            ("circle", {"reduction": "none"}),
            ("unified", {"reduction": "none", "label_smoothing": 0.2}),
        ):
            head = sharded(name, weight, **options)
            alone = one_process(name, weight, **options)
            ours, expected = head(embeddings[rows], labels[rows]), alone(embeddings, labels)
            expected = expected[rows] if options["reduction"] == "none" else expected
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
            assert ours.isnan().sum() == 1


def test_label_out_of_range_that_nobody_saw_makes_the_loss_nan() -> None:
    run_processes(2, _wrong_labels)


def _not_finite(rank: int) -> None:
    """A NaN or infinity anywhere reaches every loss that saw it, as in one process."""
    embeddings, labels, weight = problem(9, 11)
    rows = own_rows(rank, (4, 5))
    for value in (math.nan, math.inf):
        for change in ("embedding", "class"):
            x, w = embeddings.clone(), weight.clone()
            (x if change == "embedding" else w)[7, 2] = value
            results = []
            for make, own in ((sharded, rows), (one_process, slice(None))):
                losses = make("circle", w, reduction="none")(x[own], labels[own])
                results.append(losses if make is sharded else losses[rows])
            torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_numbers_that_are_not_finite() -> None:
    run_processes(2, _not_finite)


def _groups(rank: int) -> None:
    """Two heads of two processes each, beside one another."""
    pairs = [dist.new_group(ranks) for ranks in ((0, 1), (3, 2))]
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    embeddings, labels, _ = problem(9, 5)
    for group in (pairs[rank // 2], mesh["shards"]):
        torch.manual_seed(rank // 2)
        head = ShardedClassCircleLoss(5, DEPTH, group=group, dtype=torch.float64)
        place = dist.get_rank(head.weight.device_mesh.get_group())
        own = own_rows(place, (4, 5))
        alone = one_process("circle", head.full_weight())
        assert_close(head(embeddings[own], labels[own]), alone(embeddings, labels))


def test_group_that_is_not_the_world() -> None:
    run_processes(4, _groups)
