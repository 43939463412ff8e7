"""Gradients averaged over real processes (gloo), and clipped, where some are sparse."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from circle_kernels import (
    ClassCircleLoss,
    ClassUnifiedLoss,
    SparseSGD,
    average_gradients,
    clip_grad_norm_,
)
from tests.distributed.processes import batch, run_processes
from tests.support.batches import sparse


def in_all_processes(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return parts


def _train(rank: int, options: dict) -> None:
    """A head with sparse gradients beside a network in DDP, and the same in one process.

    DDP averages: one process has the mean of the losses of the parts.
    """
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(6, 5, dtype=torch.float64)
    head = ClassCircleLoss(4, 5, gamma=16, sparse_grad=True, dtype=torch.float64)
    for parameter in (*network.parameters(), *head.parameters()):
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(values)
    alone, dense_head = copy.deepcopy(network), copy.deepcopy(head)
    dense_head.sparse_grad = False
    wrapped = DistributedDataParallel(network)
    optimizers = [torch.optim.SGD(network.parameters(), 1.0), SparseSGD(head.parameters(), 1.0)]
    both = torch.optim.SGD([*alone.parameters(), *dense_head.parameters()], 1.0)
    for step in range(3):
        embeddings, labels = batch(10 + step)
        parts = slice(0, 3), slice(3, None)
        loss = head(wrapped(embeddings[parts[rank]]), labels[parts[rank]])
        loss.backward()
        average_gradients(head.parameters())
        assert head.weight.grad.is_sparse
        ours = clip_grad_norm_([*network.parameters(), *head.parameters()], 0.1)
        losses = [dense_head(alone(embeddings[part]), labels[part]) for part in parts]
        (sum(losses) / 2).backward()
        expected = torch.nn.utils.clip_grad_norm_(both.param_groups[0]["params"], 0.1)
        torch.testing.assert_close(ours, expected)
        assert expected > 0.1
        for optimizer in (*optimizers, both):
            optimizer.step()
            optimizer.zero_grad()
    first, second = in_all_processes(head.weight)
    assert torch.equal(first, second)
    torch.testing.assert_close(head.weight, dense_head.weight)
    torch.testing.assert_close(network.weight, alone.weight)
    # With classes that each process draws for itself, the two still agree bit by bit.
    drawing = ClassUnifiedLoss(200, 6, gamma=16, sample_rate=0.1, sparse_grad=True).double()
    dist.broadcast(drawing.weight.detach(), src=0)
    before = drawing.weight.detach().clone()
    torch.manual_seed(rank)
    drawing(*batch(5 + rank)).backward()
    own_rows = drawing.weight.grad._indices()[0]
    average_gradients(drawing.weight, **options)
    assert len(drawing.weight.grad.coalesce().indices()[0]) > len(own_rows)
    SparseSGD([drawing.weight], 0.1, momentum=0.9).step()
    first, second = in_all_processes(drawing.weight)
    assert torch.equal(first, second)
    assert not torch.equal(first, before)


def test_head_with_sparse_gradients_beside_ddp_trains_as_one_process() -> None:
    run_processes(2, _train, {"group": "world"})


def _average(rank: int) -> None:
    """Layouts that differ between processes, rows listed twice, and no gradient at all."""
    shape = torch.Size([5, 3])
    ones = torch.ones(3, 3, dtype=torch.float64)
    transposed = torch.arange(15.0, dtype=torch.float64).view(3, 5).T
    cases: list[list[Tensor | None]] = [
        [torch.ones(shape).double(), transposed],
        [torch.ones(shape).double(), None],
        [sparse([0, 4, 4], ones, shape), sparse([4], 2 * ones[:1], shape)],
        [sparse([1, 3, 0], ones, shape), sparse([], ones[:0], shape)],
        [None, sparse([2, 1], ones[:2], shape)],
        [sparse([2, 1], ones[:2], shape), torch.ones(shape).double()],
    ]
    for case in cases:
        parameter = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        parameter.grad = case[rank]
        dense = [torch.zeros(shape).double() if g is None else g.to_dense().clone() for g in case]
        average_gradients(parameter)
        assert parameter.grad.is_sparse == all(g is None or g.is_sparse for g in case)
        assert not parameter.grad.is_sparse or parameter.grad.is_coalesced()
        torch.testing.assert_close(parameter.grad.to_dense(), sum(dense) / 2)
    unused = nn.Parameter(torch.zeros(2))
    average_gradients([unused])
    assert unused.grad is None
    other = nn.Parameter(torch.zeros(2 + rank))
    with pytest.raises(ValueError, match=r"1, of which the one at 0 has 2 numbers .* on rank 0, "):
        average_gradients(other)
    with pytest.raises(ValueError, match=r"2, of which .* on rank 0, 1, of which .* on rank 1"):
        average_gradients([unused] * (2 - rank))
    average_gradients(unused, group=dist.group.WORLD)


def test_mean_of_every_pair_of_layouts_is_that_of_dense_gradients() -> None:
    run_processes(2, _average)


def test_average_needs_processes() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        average_gradients(nn.Parameter(torch.zeros(2)))
    with pytest.raises(ValueError, match="group must be 'world'"):
        average_gradients(nn.Parameter(torch.zeros(2)), group="wrold")


class Classifier(nn.Module):
    def __init__(self, sparse_grad: bool = True) -> None:
        super().__init__()
        self.network = nn.Linear(6, 5, dtype=torch.float64)
        self.head = ClassCircleLoss(4, 5, sparse_grad=sparse_grad, dtype=torch.float64)

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        return self.head(self.network(rows), labels)


def _wrap_in_ddp(rank: int) -> None:
    embeddings, labels = batch(8)
    own = slice(0, 3) if rank == 0 else slice(3, None)
    rows = embeddings[own], labels[own]
    with pytest.raises(RuntimeError, match=r"sparse gradient of 'head\.weight'.*average_gradients"):
        DistributedDataParallel(Classifier())(*rows)
    with torch.no_grad():
        DistributedDataParallel(Classifier())(*rows)
    for allowed in (Classifier().eval(), Classifier(sparse_grad=False)):
        wrapped = DistributedDataParallel(allowed)
        wrapped(*rows).backward()
    # As the message says: DDP ignores the weight, which one call averages.
    model = Classifier()
    dist.broadcast(model.head.weight.detach(), src=0)
    model._ddp_params_and_buffers_to_ignore = ["head.weight"]
    wrapped = DistributedDataParallel(model)
    wrapped(*rows).backward()
    average_gradients(model.head.weight)
    model.head.weight.grad = model.head.weight.grad.to_dense()
    for parameter in model.parameters():
        first, second = in_all_processes(parameter)
        assert torch.equal(first, second)
        first, second = in_all_processes(parameter.grad)
        assert torch.equal(first, second)
        assert first.any()


def test_sparse_gradient_inside_ddp_is_refused_with_a_remedy_that_works() -> None:
    run_processes(2, _wrap_in_ddp)


def dense_and_sparse() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with the same gradients: some sparse, in every order of rows; and all dense."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = torch.Size([6, 3])
    gradients = [
        values(4, 3),
        sparse([0, 2, 5], values(3, 3), shape),
        sparse([4, 1, 4, 4], values(4, 3), shape),
        sparse([], values(0, 3), shape),
        values(2),
    ]
    parameters = [nn.Parameter(values(*gradient.shape)) for gradient in gradients]
    dense = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for ours, theirs, gradient in zip(parameters, dense, gradients, strict=True):
        ours.grad, theirs.grad = gradient, gradient.to_dense().clone()
    return [*parameters, nn.Parameter(values(3))], dense


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_that_of_dense_gradients(norm_type: float, max_norm: float) -> None:
    parameters, dense = dense_and_sparse()
    ours = clip_grad_norm_(iter(parameters), max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(dense, max_norm, norm_type)
    torch.testing.assert_close(ours, expected)
    for parameter, other in zip(parameters, dense, strict=False):
        torch.testing.assert_close(parameter.grad.to_dense(), other.grad)
    assert [parameter.grad.is_sparse for parameter in parameters[:5]] == [0, 1, 1, 1, 0]
    assert parameters[5].grad is None


def test_clipping_takes_what_torch_takes() -> None:
    assert clip_grad_norm_([], 1.0) == 0
    assert clip_grad_norm_(nn.Parameter(torch.ones(2)), 1.0) == 0
    (_, *sparse_ones), _ = dense_and_sparse()
    alone = sparse_ones[1]
    clip_grad_norm_(alone, 0.5)
    assert 0.4999 < alone.grad.to_dense().norm() < 0.5


@pytest.mark.parametrize("position", [0, 1])
def test_norm_that_is_not_finite_raises_if_asked(position: int) -> None:
    parameters, _ = dense_and_sparse()
    gradient = parameters[position].grad
    (gradient._values() if gradient.is_sparse else gradient)[0, 0] = math.nan
    with pytest.raises(RuntimeError, match=re.escape("is non-finite")):
        clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    assert clip_grad_norm_(parameters, 1.0).isnan()
