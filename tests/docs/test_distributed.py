"""The Python of docs/distributed.md, as it stands there, in real processes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from circle_kernels import ClassCircleLoss, circle_loss, clip_grad_norm_
from tests.distributed.processes import batch, run_processes
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "distributed.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SIZES = [5, 9]


def block(marker: str) -> str:
    """The one block with these words."""
    (found,) = [code for code in BLOCKS if marker in code]
    return found


def parts() -> tuple[list[Tensor], list[Tensor]]:
    """The embeddings and labels of two processes."""
    embeddings, labels = batch(sum(SIZES))[:2]
    return list(embeddings.split(SIZES)), list(labels.split(SIZES))


def _train(rank: int) -> None:
    images, labels = parts()
    networks = [nn.Linear(6, 4).double() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    namespace: dict[str, Any] = {
        "network": networks[0],
        "loader": [(images[rank], labels[rank])] * 3,
    }
    exec(block('group="world")\noptimizer'), namespace)
    optimizer = torch.optim.Adam(networks[1].parameters(), lr=1e-3)
    for _ in range(3):
        loss = circle_loss(networks[1](torch.cat(images)), torch.cat(labels), m=0.4, gamma=80)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(namespace["loss"], loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(networks[0].weight, networks[1].weight, rtol=1e-7, atol=1e-9)


def test_loop_trains_as_one_process_does() -> None:
    run_processes(2, _train)


def _weigh(rank: int) -> None:
    namespace: dict[str, Any] = {}
    exec(block("def weighted_loss"), namespace)
    rows, labels = parts()
    weights = list(torch.linspace(0.5, 2, sum(SIZES), dtype=torch.float64).split(SIZES))
    own = rows[rank].clone().requires_grad_()
    value = namespace["weighted_loss"](own, labels[rank], weights[rank])
    value.backward()
    whole = torch.cat(rows).requires_grad_()
    losses = circle_loss(whole, torch.cat(labels), m=0.4, gamma=80, reduction="none")
    expected = (torch.cat(weights) * losses).mean()
    expected.backward()
    total = value.detach().clone()
    dist.all_reduce(total)
    torch.testing.assert_close(total, expected.detach(), rtol=1e-6, atol=0)
    # The average over both processes is what one process has.
    torch.testing.assert_close(own.grad / 2, whole.grad.split(SIZES)[rank], rtol=1e-6, atol=1e-9)


def test_losses_of_rows_are_divided_by_the_rows_of_all() -> None:
    run_processes(2, _weigh)


def _train_shards(rank: int) -> None:
    namespace: dict[str, Any] = {}
    exec(block("ShardedClassCircleLoss(num"), namespace)
    images, labels = parts()
    network = nn.Linear(6, 5).double()
    alone = nn.Linear(6, 5).double()
    alone.load_state_dict(network.state_dict())
    wrapped, head = namespace["make"](network, 4, 5, "cpu")
    head.double()
    one = ClassCircleLoss(4, 5, dtype=torch.float64)
    one.weight.data.copy_(head.full_weight())
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (network, head)]
    both = torch.optim.SGD([*alone.parameters(), *one.parameters()], lr=0.1)
    for _ in range(3):
        loss = namespace["train"](wrapped, head, optimizers, images[rank], labels[rank])
        expected = one(alone(torch.cat(images)), torch.cat(labels))
        expected.backward()
        clip_grad_norm_([*alone.parameters(), *one.parameters()], max_norm=5.0)
        both.step()
        both.zero_grad()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(head.full_weight(), one.weight.data, rtol=1e-9, atol=1e-9)


def test_shards_train_as_one_process_does() -> None:
    run_processes(2, _train_shards)


def test_every_block_is_run_here() -> None:
    here = Path(__file__).read_text("utf-8")
    markers = [
        marker.encode().decode("unicode_escape")
        for marker in re.findall(r"exec\(block\(['\"](.*?)['\"]\), namespace", here)
    ]
    assert sorted(map(block, markers)) == sorted(BLOCKS)


def test_links_lead_somewhere() -> None:
    for page in ("README.md", "docs/distributed.md"):
        text = (ROOT / page).read_text("utf-8")
        for target in re.findall(r"\]\(([^)#:]+?\.md)(?:#[^)]*)?\)", text):
            assert ((ROOT / page).parent / target).is_file(), target
