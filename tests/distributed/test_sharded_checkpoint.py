"""Class shards saved by some processes and loaded by another number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from circle_kernels import SparseSGD
from tests.distributed.processes import run_processes
from tests.distributed.test_sharded import assert_close, one_process, own_rows, problem, sharded

ROWS, CLASSES = 12, 11
SIZES = {2: (5, 7), 3: (4, 8, 0), 4: (0, 1, 5, 6)}
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, {}),
    "adamw": (torch.optim.AdamW, {}, {}),
    "sparse": (SparseSGD, {"momentum": 0.9}, {"sparse_grad": True}),
}


def _step(head: nn.Module, optimizer: torch.optim.Optimizer, tensors: tuple) -> Tensor:
    optimizer.zero_grad()
    loss = head(*tensors)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _go_on(rank: int, folder: str, stage: int) -> None:
    """Load what other processes saved, take two steps, save; and all steps in one process."""
    embeddings, labels, weight = problem(ROWS, CLASSES)
    rows = own_rows(rank, SIZES[dist.get_world_size()])
    for name, (make, options, of_head) in OPTIMIZERS.items():
        of_head: dict[str, Any] = {"gamma": 16.0, **of_head}
        # Not the weight that is to be loaded.
        start = weight if stage == 0 else torch.zeros_like(weight)
        head = sharded("circle", start, **of_head)
        optimizer = make(head.parameters(), lr=0.1, **options)
        if stage > 0:
            of_model, of_optimizer = get_state_dict(head, optimizer)
            state = {"model": of_model, "optimizer": of_optimizer}
            dcp.load(state, checkpoint_id=f"{folder}/{name}{stage - 1}")
            set_state_dict(
                head,
                optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
            )
        alone = one_process("circle", weight, **of_head)
        other = make(alone.parameters(), lr=0.1, **options)
        for step in range(2 * stage + 2):
            expected = _step(alone, other, (embeddings, labels))
            if step >= 2 * stage:
                loss = _step(head, optimizer, (embeddings[rows], labels[rows]))
                assert_close(loss, expected)
                assert_close(head.full_weight(), alone.weight.detach())
        assert expected > 0.01
        ours, theirs = optimizer.state[head.weight], other.state[alone.weight]
        assert set(ours) == set(theirs) != set()
        for key, value in theirs.items():
            whole = ours[key].full_tensor() if hasattr(ours[key], "full_tensor") else ours[key]
            assert_close(whole, value)
        of_model, of_optimizer = get_state_dict(head, optimizer)
        dcp.save(
            {"model": of_model, "optimizer": of_optimizer}, checkpoint_id=f"{folder}/{name}{stage}"
        )


# torch's own checkpoints warn of its own deprecated functions.
@pytest.mark.filterwarnings("ignore")
def test_training_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    for stage, world_size in enumerate((3, 2, 4)):
        run_processes(world_size, _go_on, str(tmp_path), stage)
