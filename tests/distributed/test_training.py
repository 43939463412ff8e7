"""Networks that DDP and FSDP2 train on a shared batch, beside one process that has all of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from circle_kernels import CircleLoss
from tests.distributed.one_process import DEPTH, Case, own_rows, side
from tests.distributed.processes import run_processes

STEPS = 4
SIZES = ((5, 4), (9, 0), (0, 0), (1, 12))


def _network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(DEPTH, 8), nn.Tanh(), nn.Linear(8, 5)
    return nn.Sequential(*layers).double()


def _train(rank: int, wrap: str, options: dict) -> None:
    network, alone = _network(), _network()
    wrapped = DistributedDataParallel(network) if wrap == "DDP" else fully_shard(network)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (network, alone)]
    ours = CircleLoss(gamma=8.0, group="world", **options)
    one = CircleLoss(gamma=8.0, scope=ours.scope, reduction=ours.reduction)
    for step in range(STEPS):
        # The last batch has no positives at all.
        case = Case(SIZES[step], classes=4 if step + 1 < STEPS else 10**6)
        inputs, labels = side(case, case.sizes, seed=step)
        rows = own_rows(case.sizes, rank)
        loss = ours(wrapped(inputs[rows]), labels[rows])
        expected = one(alone(inputs), labels)
        if ours.reduction != "none":
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        for optimizer, each in zip(optimizers, (loss, expected), strict=True):
            each.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        for parameter, wanted in zip(network.parameters(), alone.parameters(), strict=True):
            whole = parameter if wrap == "DDP" else parameter.full_tensor()
            torch.testing.assert_close(whole, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrap", ["DDP", "FSDP2"])
def test_weights_stay_those_of_one_process(wrap: str) -> None:
    for options in (
        {},
        {"exchange": "ring", "scope": "batch"},
        {"reduction": "none"},
        {"reduction": "sum", "exchange": "ring"},
    ):
        run_processes(2, _train, wrap, options)


def _copy_and_save(rank: int) -> None:
    loss = CircleLoss(group="world", exchange="ring", grad_reduction="sum")
    for each in (copy.deepcopy(loss), copy.copy(loss)):
        assert repr(each) == repr(loss)
        assert "exchange='ring', same_sizes=False, grad_reduction='sum'" in repr(each)
    assert "group=None (this process alone)" in repr(CircleLoss())


def test_modules_say_with_whom_they_share() -> None:
    run_processes(1, _copy_and_save)
