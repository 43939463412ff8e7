"""One batch over several real processes (gloo): the value and the gradient of one process."""

from __future__ import annotations

import copy
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from circle_kernels import CircleLoss, circle_loss, unified_loss

TIMEOUT = timedelta(seconds=60)


def batch(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    embeddings = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(0, 4, (n,), generator=generator)


def _process(rank: int, world_size: int, folder: str, function, arguments: tuple) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        function(rank, *arguments)
        dist.barrier()
    except BaseException:
        Path(folder, f"error-{rank}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def run_processes(tmp_path: Path, world_size: int, function, *arguments) -> None:
    """Run ``function(rank, *arguments)`` in ``world_size`` processes of one gloo group."""
    mp.spawn(_process, (world_size, str(tmp_path), function, arguments), nprocs=world_size)


def _compare_with_one_process(rank: int, sizes: tuple[int, ...], options: dict) -> None:
    embeddings, labels = batch(sum(sizes))
    first = sum(sizes[:rank])
    # A parameter shared by all rows stands for the network that DDP would average.
    results = []
    for group in (dist.group.WORLD, None):
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


@pytest.mark.parametrize("sizes", [(5, 9), (5, 3, 0), (1, 1, 7)])
def test_value_and_averaged_gradient_are_those_of_one_process(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    run_processes(tmp_path, len(sizes), _compare_with_one_process, sizes, {})


@pytest.mark.parametrize("options", [{"scope": "batch"}, {"reduction": "sum"}, {"gamma": 256.0}])
def test_every_scope_and_reduction(tmp_path: Path, options: dict) -> None:
    run_processes(tmp_path, 2, _compare_with_one_process, (4, 8), options)


def _compare_with_references(rank: int) -> None:
    rows, labels = batch(7)
    references, ref_labels = batch(11)
    own, own_refs = (slice(0, 3), slice(0, 9)) if rank == 0 else (slice(3, 7), slice(9, 11))
    options = {"m": 0.1, "gamma": 8.0}
    loss = unified_loss(
        rows[own], labels[own], references[own_refs], ref_labels[own_refs],
        group=dist.group.WORLD, **options,
    )  # fmt: skip
    expected = unified_loss(rows, labels, references, ref_labels, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


def test_references_of_all_processes_are_compared_with(tmp_path: Path) -> None:
    run_processes(tmp_path, 2, _compare_with_references)


def _expect_errors(rank: int) -> None:
    embeddings, labels = batch(4)
    with pytest.raises(ValueError, match="reduction='none' cannot be combined with group"):
        circle_loss(embeddings, labels, reduction="none", group=dist.group.WORLD)


def test_unreduced_losses_are_refused(tmp_path: Path) -> None:
    run_processes(tmp_path, 2, _expect_errors)


def test_copy_of_a_module_shares_its_group() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        loss = CircleLoss(gamma=32, group=dist.group.WORLD)
        copied = copy.deepcopy(nn.Sequential(loss))[0]
        assert copied.group is loss.group
        assert repr(copied) == repr(loss)
        assert torch.equal(copied(*batch(9)), loss(*batch(9)))
    finally:
        dist.destroy_process_group()


def test_group_of_another_type_is_named() -> None:
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed\.ProcessGroup"):
        circle_loss(*batch(4), group="world")
