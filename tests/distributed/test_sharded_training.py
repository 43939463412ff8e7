"""Class shards in training: sampling, DDP, FSDP2, clipping, and optimizers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from circle_kernels import SparseSGD, clip_grad_norm_
from tests.distributed.processes import run_processes
from tests.distributed.test_sharded import (
    DEPTH,
    assert_close,
    one_process,
    own_rows,
    problem,
    sharded,
)

SIZES = {2: (5, 9), 3: (7, 0, 6)}


class Model(nn.Module):
    """A network and, if it is given one, a head."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.network = nn.Sequential(nn.Linear(DEPTH, 8), nn.Tanh(), nn.Linear(8, DEPTH)).double()
        for parameter in self.network.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(values)
        self.head = head

    def forward(self, rows: Tensor, labels: Tensor | None = None) -> Tensor:
        embeddings = self.network(rows)
        return embeddings if self.head is None else self.head(embeddings, labels)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _wrap(rank: int) -> None:
    """Three steps with each wrapper, and in one process with all rows."""
    sizes = SIZES[dist.get_world_size()]
    embeddings, labels, weight = problem(sum(sizes), 11)
    rows = own_rows(rank, sizes)
    mesh = init_device_mesh("cpu", (len(sizes),))
    for kind in ("ddp", "ddp around both", "fsdp", "fsdp around both"):
        head = sharded("circle", weight, gamma=16.0)
        model = Model(head if "both" in kind else None)
        if "both" in kind:
            model._ddp_params_and_buffers_to_ignore = ["head.weight"]
        if "ddp" in kind:
            wrapped = DistributedDataParallel(model)
        else:
            ignored = {head.weight} if "both" in kind else set()
            wrapped = fully_shard(model, mesh=mesh, ignored_params=ignored)
        alone = Model(one_process("circle", weight, gamma=16.0))
        ours = [*model.network.parameters(), head.weight]
        theirs = list(alone.parameters())
        optimizers = (
            torch.optim.SGD(ours, 0.1, momentum=0.9),
            torch.optim.SGD(theirs, 0.1, momentum=0.9),
        )
        for step in range(3):
            if "both" in kind:
                loss = wrapped(embeddings[rows], labels[rows])
            else:
                loss = head(wrapped(embeddings[rows]), labels[rows])
            expected = alone(embeddings, labels)
            assert_close(loss, expected)
            loss.backward()
            expected.backward()
            if step == 0:  # the other steps with what clipping leaves
                for one, other in zip(ours, theirs, strict=True):
                    assert_close(whole(one.grad), other.grad)
            norm = clip_grad_norm_(ours, 0.5)
            assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, 0.5))
            assert norm > 0.5
            for one, other in zip(ours, theirs, strict=True):
                assert_close(whole(one.grad), other.grad)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        for one, other in zip(ours, theirs, strict=True):
            assert_close(whole(one.detach()), other.detach())


@pytest.mark.parametrize("world_size", SIZES)
def test_with_ddp_and_fsdp_training_is_that_of_one_process(world_size: int) -> None:
    run_processes(world_size, _wrap)


def _sample(rank: int) -> None:
    sizes = SIZES[dist.get_world_size()]
    embeddings, labels, weight = problem(sum(sizes), 40)
    rows = own_rows(rank, sizes)

    def results(head: nn.Module, times: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        own = embeddings[rows].clone().requires_grad_()
        for _ in range(times):
            loss = head(own, labels[rows])
            loss.backward()
        return loss.detach(), own.grad, head.weight.grad

    # All classes taken: as without sampling, dense or sparse, also after several backward passes.
    for times in (1, 3):
        dense = results(sharded("circle", weight, gamma=16.0), times)
        for options in ({"sparse_grad": True}, {"sample_rate": 0.9999}):
            head = sharded("circle", weight, gamma=16.0, sample_correction=True, **options)
            ours = results(head, times)
            is_sparse = options.get("sparse_grad", False)
            with torch.no_grad():
                assert ours[2].to_local().is_sparse == is_sparse
                own = ours[2].to_local().to_dense() if is_sparse else ours[2].to_local()
                assert_close(own, dense[2].to_local())
            assert_close(ours[0], dense[0])
            assert_close(ours[1], dense[1])
    # Few taken: all that the rows of all processes have, others at random; dense equals sparse.
    made = []
    for sparse_grad in (True, False):
        torch.manual_seed(rank)
        head = sharded("circle", weight, gamma=16.0, sample_rate=0.3, sparse_grad=sparse_grad)
        made.append(results(head))
    with torch.no_grad():
        gradient = made[0][2].to_local().coalesce()
        assert_close(gradient.to_dense(), made[1][2].to_local())
    for ours, expected in zip(made[0][:2], made[1][:2], strict=True):
        assert_close(ours, expected)
    shard = -(-len(weight) // len(sizes))
    own_classes = {
        label - rank * shard for label in labels.tolist() if label >= 0 and label // shard == rank
    }
    taken = gradient.indices()[0].tolist()
    here = len(gradient)
    assert own_classes <= set(taken)
    positives = sum(label >= 0 and label // shard == rank for label in labels.tolist())
    assert len(taken) == min(here, max(math.ceil(0.3 * here), positives)) < here
    # In evaluation mode all take part.
    head.eval()
    assert_close(head(embeddings[rows], labels[rows]), dense[0])
    # The correction counts each shard as if the classes left out were like the others: they are.
    same = torch.cat([weight[:1]] * len(weight))
    alike = [
        sharded("unified", same, gamma=16.0, sample_rate=rate, sample_correction=True)
        for rate in (1.0, 0.5)
    ]
    for each in alike:
        each.m = 0.0
    full, few = (each(embeddings[rows], labels[rows]) for each in alike)
    # But for the class of the row itself, which is not among the negatives of its shard.
    torch.testing.assert_close(few, full, rtol=0.02, atol=0)


@pytest.mark.parametrize("world_size", SIZES)
def test_sampling(world_size: int) -> None:
    run_processes(world_size, _sample)


def _sparse_steps(rank: int) -> None:
    """SparseSGD on shards is what it is on the whole weight."""
    sizes = SIZES[dist.get_world_size()]
    weight = problem(4, 11)[2]
    options: dict[str, Any] = {"gamma": 16.0, "sparse_grad": True}
    head, alone = (make("circle", weight, **options) for make in (sharded, one_process))
    ours, theirs = (
        SparseSGD([each.weight], 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
        for each in (head, alone)
    )
    for step in range(4):
        embeddings, labels, _ = problem(sum(sizes) + step, 11)
        rows = own_rows(rank, (sizes[0] + step, *sizes[1:]))
        loss, expected = head(embeddings[rows], labels[rows]), alone(embeddings, labels)
        assert_close(loss, expected)
        loss.backward()
        expected.backward()
        assert_close(
            clip_grad_norm_(head.weight, 0.1 * step + 1e-3),
            clip_grad_norm_(alone.weight, 0.1 * step + 1e-3),
        )
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        assert_close(head.full_weight(), alone.weight.detach())
    buffer = ours.state[head.weight]["momentum_buffer"]
    assert_close(buffer.full_tensor(), theirs.state[alone.weight]["momentum_buffer"])
    # Dense steps of torch's own optimizers.
    for make in (torch.optim.AdamW, torch.optim.SGD):
        head, alone = (each("circle", weight, gamma=16.0) for each in (sharded, one_process))
        ours, theirs = (make(each.parameters(), 0.1) for each in (head, alone))
        for _ in range(3):
            head(embeddings[rows], labels[rows]).backward()
            alone(embeddings, labels).backward()
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
        assert_close(head.full_weight(), alone.weight.detach())


def _scale(rank: int) -> None:
    """An infinity in one shard has every process leave out the step."""
    embeddings, labels, weight = (each.to(torch.float32) for each in problem(8, 5))
    head = sharded("circle", weight)
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for is_infinite in (True, False):
        optimizer.zero_grad()
        scaler.scale(head(embeddings, labels.long())).backward()
        if is_infinite and rank == 1:
            with torch.no_grad():
                head.weight.grad.to_local()[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 2.0
        assert torch.equal(head.full_weight(), weight) == is_infinite


def test_grad_scaler_asks_all_shards() -> None:
    run_processes(2, _scale)


@pytest.mark.parametrize("world_size", SIZES)
def test_optimizers_on_shards(world_size: int) -> None:
    run_processes(world_size, _sparse_steps)


def _clip(rank: int) -> None:
    """Plain, sharded and sparse gradients together, some of them empty or missing."""
    world = dist.get_world_size()
    for classes in (11, 1):
        weight = problem(4, classes)[2]
        gradients = torch.randn(
            3, classes, DEPTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
        for norm_type in (1.0, 2.0, 3.0, math.inf):
            for max_norm in (0.5, 1e6):
                spread = sharded("circle", weight)
                other = sharded("circle", weight)
                unused = sharded("circle", weight)
                plain, nothing = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
                first = rank * -(-classes // world)
                part = slice(first, first + len(spread.weight.to_local()))
                with torch.no_grad():
                    for each, gradient in ((spread, gradients[0]), (other, gradients[1])):
                        each.weight.grad = torch.zeros_like(each.weight)
                        each.weight.grad.to_local().copy_(gradient[part])
                    local = other.weight.grad.to_local().to_sparse(1)
                    other.weight.grad = type(other.weight)(
                        local, other.weight._spec, requires_grad=False
                    )
                plain.grad = gradients[2].clone()
                alone = [nn.Parameter(weight.clone()) for _ in gradients]
                for parameter, gradient in zip(alone, gradients, strict=True):
                    parameter.grad = gradient.clone()
                parameters = [spread.weight, plain, nothing, other.weight, unused.weight]
                ours = clip_grad_norm_(parameters, max_norm, norm_type)
                expected = torch.nn.utils.clip_grad_norm_(alone, max_norm, norm_type)
                assert_close(ours, expected)
                assert type(ours) is Tensor
                assert_close(plain.grad, alone[2].grad)
                assert_close(spread.weight.grad.full_tensor(), alone[0].grad)
                with torch.no_grad():
                    assert_close(other.weight.grad.to_local().to_dense(), alone[1].grad[part])
        # One NaN, in one process, is everyone's.
        for norm_type in (2.0, math.inf):
            spread.weight.grad = torch.zeros_like(spread.weight)
            if rank == 0:
                with torch.no_grad():
                    spread.weight.grad.to_local()[0, 0] = math.nan
            with pytest.raises(RuntimeError, match="is non-finite"):
                clip_grad_norm_([plain, spread.weight], 1.0, norm_type, error_if_nonfinite=True)
            assert clip_grad_norm_(spread.weight, 1.0, norm_type).isnan()


@pytest.mark.parametrize("world_size", SIZES)
def test_clipping_counts_all_shards(world_size: int) -> None:
    run_processes(world_size, _clip)
