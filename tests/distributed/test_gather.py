"""One batch over several processes: the value and the gradient of one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from circle_kernels import CircleLoss, circle_loss, unified_loss
from tests.distributed.processes import batch, run_processes


def _compare_with_one_process(rank: int, sizes: tuple[int, ...], options: dict) -> None:
    embeddings, labels = batch(sum(sizes))
    first = sum(sizes[:rank])
    # A parameter shared by all rows stands for the network that DDP would average.
    results = []
    for group in ("world", None):
        weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
        rows = slice(first, first + sizes[rank]) if group is not None else slice(None)
        loss = circle_loss(embeddings[rows] @ weight, labels[rows], group=group, **options)
        loss.backward()
        gradient = weight.grad
        if group is not None:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        results.append((loss.detach(), gradient))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def _compare_each(rank: int, cases: list[tuple[tuple[int, ...], dict]]) -> None:
    for sizes, options in cases:
        _compare_with_one_process(rank, sizes, options)


@pytest.mark.parametrize("all_sizes", [[(5, 9), (0, 0)], [(5, 3, 0), (1, 1, 7)]])
def test_value_and_averaged_gradient_are_those_of_one_process(
    all_sizes: list[tuple[int, ...]],
) -> None:
    cases = [(sizes, {}) for sizes in all_sizes]
    run_processes(len(all_sizes[0]), _compare_each, cases)


def test_every_scope_and_reduction() -> None:
    options = (
        {"scope": "batch"},
        {"reduction": "sum"},
        {"reduction": "mean_all"},
        {"gamma": 256.0},
    )
    run_processes(2, _compare_each, [((4, 8), each) for each in options])


def _compare_with_references(rank: int) -> None:
    rows, labels = batch(7)
    references, ref_labels = batch(11)
    own, own_refs = (slice(0, 3), slice(0, 9)) if rank == 0 else (slice(3, 7), slice(9, 11))
    options = {"m": 0.1, "gamma": 8.0}
    loss = unified_loss(
        rows[own], labels[own], references[own_refs], ref_labels[own_refs],
        group="world", **options,
    )  # fmt: skip
    expected = unified_loss(rows, labels, references, ref_labels, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


def test_references_of_all_processes_are_compared_with() -> None:
    run_processes(2, _compare_with_references)


def _expect_errors(rank: int) -> None:
    embeddings, labels = batch(4)
    with pytest.raises(ValueError, match="reduction='none' cannot be combined with group"):
        circle_loss(embeddings, labels, reduction="none", group="world")


def test_unreduced_losses_are_refused() -> None:
    run_processes(2, _expect_errors)


def _differ(rank: int) -> None:
    """Rank 1 has something else; both learn it, and are ready for the next call."""
    embeddings, labels = batch(4)
    other = embeddings[:, :5], labels, None, None
    narrow = embeddings.float(), labels, None, None
    both = embeddings, labels, embeddings, labels
    alone = embeddings, labels, None, None
    float64 = r"torch\.float64 of shape \(rows, 6\)"
    for first, second, message in (
        (alone, other, rf"^embeddings must .* {float64} on rank 0, .*\(rows, 5\) on rank 1$"),
        (narrow, alone, rf"^embeddings must .* torch\.float32 .* on rank 0, {float64} on rank 1$"),
        (alone, both, rf"^ref_emb must .* got none on rank 0, {float64} on rank 1$"),
    ):
        with pytest.raises(ValueError, match=message):
            circle_loss(*(first, second)[rank], group="world")
    whole = torch.cat([embeddings, embeddings]), torch.cat([labels, labels])
    torch.testing.assert_close(circle_loss(*alone, group="world"), circle_loss(*whole))


def test_where_processes_differ_all_of_them_raise_the_same_error() -> None:
    run_processes(2, _differ)


def test_losses_of_rows_are_refused_by_the_constructor() -> None:
    with pytest.raises(ValueError, match="reduction='none' cannot be combined with group"):
        CircleLoss(reduction="none", group="world")
