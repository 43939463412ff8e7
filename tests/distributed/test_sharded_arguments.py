"""What sharded heads refuse, in all processes together, and how they are made, copied and shown."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DistributedDataParallel

from circle_kernels import ShardedClassCircleLoss, ShardedClassUnifiedLoss, average_gradients
from tests.distributed.processes import run_processes
from tests.distributed.test_sharded import DEPTH, assert_close, own_rows, problem, sharded

CIRCLE = "ShardedClassCircleLoss"


def _differ(rank: int) -> None:
    """Rank 1 has something else; both learn it, and are ready for the next call."""
    embeddings, labels, weight = problem(8, 11)
    head = sharded("circle", weight)
    expected = head(embeddings[: 3 + rank], labels[: 3 + rank]).detach()
    usual: dict[str, Any] = {"x": embeddings, "y": labels, "head": head}
    for other, message in (
        ({"x": embeddings.float()}, r"^embeddings' dtype must .* torch\.float32 on rank 1$"),
        ({"head": sharded("circle", weight, m=0.3)}, r"^m must be .* 0\.25 on rank 0, 0\.3 on"),
        ({"head": sharded("circle", weight, reduction="sum")}, r"^reduction must be the same"),
        ({"head": sharded("circle", weight).eval()}, None),
        ({"head": sharded("circle", weight, sample_rate=0.5)}, r"^sample_rate, or training must"),
        ({"head": sharded("circle", weight, grad_reduction="sum")}, r"^grad_reduction must be"),
        ({"head": sharded("unified", weight)}, r"^the function .*ShardedClassUnifiedLoss on rank"),
        ({"x": embeddings[:, :5]}, r"ValueError: weight must have as many columns"),
        ({"y": labels + 11}, r"ValueError: labels must be in \[0, 11\) or ignore_index=-100"),
        ({"y": labels.double()}, r"TypeError: labels must be integers"),
        ({"x": embeddings.tolist()}, r"TypeError: embeddings must be a tensor of shape"),
        ({"x": embeddings[0]}, r"ValueError: embeddings must have shape \(rows, D\)"),
    ):
        chosen = {**usual, **(other if rank == 1 else {})}
        call = chosen["head"], chosen["x"][:4], chosen["y"][:4]
        if message is None:
            call[0](*call[1:])
            continue
        if "Error: " in message and rank == 1:
            kind, message = message.split(": ", 1)
            error = {"ValueError": ValueError, "TypeError": TypeError}[kind]
        else:
            error = ValueError
        with pytest.raises(error, match=message):
            call[0](*call[1:])
    smoothed = sharded("unified", weight, label_smoothing=0.1 * rank)
    with pytest.raises(ValueError, match=r"^label_smoothing must be .* 0\.0 on rank 0, 0\.1 on"):
        smoothed(embeddings, labels)
    for grads in (torch.no_grad, torch.enable_grad):
        with grads() if rank == 1 else torch.enable_grad():
            if grads is torch.no_grad:
                with pytest.raises(ValueError, match=r"^recording of gradients must be the same"):
                    head(embeddings, labels)
            else:
                head(embeddings, labels)
    with pytest.raises(ValueError, match=r"^num_classes must be the same .* 11 on rank 0, 12 on"):
        ShardedClassCircleLoss(11 + rank, DEPTH)
    error = ValueError if rank == 0 else TypeError
    with pytest.raises(error, match=r"embedding_dim must be an integer, got float 1\.5"):
        ShardedClassCircleLoss(11, DEPTH if rank == 0 else 1.5)
    assert torch.equal(head(embeddings[: 3 + rank], labels[: 3 + rank]).detach(), expected)


def test_where_processes_differ_all_of_them_raise() -> None:
    run_processes(2, _differ)


def _construct(rank: int) -> None:
    world = dist.get_world_size()
    with pytest.raises(ValueError, match=r"got a mesh of 2 dimensions.*mesh\._flatten\(\)"):
        ShardedClassCircleLoss(5, DEPTH, group=init_device_mesh("cpu", (1, world)))
    with pytest.raises(TypeError, match=r"group must have the processes .*; got None"):
        ShardedClassCircleLoss(5, DEPTH, group=None)
    with pytest.raises(ValueError, match="group must be 'world'"):
        ShardedClassCircleLoss(5, DEPTH, group="wrold")
    with pytest.raises(ValueError, match=r"device must be one of the group's \(.*cpu.*got 'xpu'"):
        ShardedClassCircleLoss(5, DEPTH, device="xpu")
    with pytest.raises(ValueError, match=r"or 'meta' with a DeviceMesh as group; got 'meta'"):
        ShardedClassCircleLoss(5, DEPTH, device="meta")
    with pytest.raises(ValueError, match="grad_reduction must be one of 'mean', 'sum'; got 'avg'"):
        ShardedClassCircleLoss(5, DEPTH, grad_reduction="avg")
    with pytest.raises(TypeError, match=r"^ShardedClassCircleLoss\(\) takes no scale"):
        ShardedClassCircleLoss(5, DEPTH, scale=3)

    # The same numbers on one process and on all, and different ones for every class.
    alone, _ = (dist.new_group([each]) for each in range(2))
    pair = dist.new_group([0, 1])
    heads = []
    for group in ("world", init_device_mesh("cpu", (world,)), pair, alone):
        if rank >= {pair: 2, alone: 1}.get(group, world):
            continue
        torch.manual_seed(7)
        heads.append(ShardedClassUnifiedLoss(3000, DEPTH, group=group))
    whole, *others = (head.full_weight() for head in heads)
    assert all(torch.equal(other, whole) for other in others)
    assert whole.shape == (3000, DEPTH)
    assert len(whole.unique()) > 0.99 * whole.numel()
    assert 0.0095 < whole.std() < 0.0105
    # Ranks with seeds of their own agree on that of rank 0, and go on to other numbers.
    torch.manual_seed(7 + rank)
    seeded = ShardedClassUnifiedLoss(3000, DEPTH)
    assert torch.equal(seeded.full_weight(), whole)
    seeded.reset_parameters()
    assert not torch.equal(seeded.full_weight(), whole)

    mesh = DeviceMesh.from_group(dist.distributed_c10d._get_default_group(), "cpu")
    later = ShardedClassUnifiedLoss(3000, DEPTH, group=mesh, device="meta")
    assert later.weight.is_meta
    later.to_empty(device="cpu")
    torch.manual_seed(7)
    later.reset_parameters()
    assert torch.equal(later.full_weight(), whole)


def test_construction_and_first_numbers() -> None:
    run_processes(3, _construct)


def test_group_of_no_processes_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"when the shards are made: call torch\.distributed\.i"):
        ShardedClassCircleLoss(5, DEPTH)


def _copy(rank: int) -> None:
    embeddings, labels, weight = problem(9, 5)
    rows = own_rows(rank, (4, 5))
    head = sharded("circle", weight, group=dist.group.WORLD, detach_weights=False)
    expected = head(embeddings[rows], labels[rows])
    for made in (copy.copy(head), copy.deepcopy(head), copy.deepcopy(nn.Sequential(head))[0]):
        assert made.weight.device_mesh is head.weight.device_mesh
        assert isinstance(made.weight, nn.Parameter)
        assert torch.equal(made(embeddings[rows], labels[rows]), expected)
    copied = copy.deepcopy(head)
    copied.weight.detach().to_local().zero_()
    assert torch.equal(head(embeddings[rows], labels[rows]), expected)
    with pytest.raises(TypeError, match=r"save its state_dict\(\) with torch\.distributed\.check"):
        pickle.dumps(head)
    assert [name for name, _ in head.named_parameters()] == ["weight"] == list(head.state_dict())
    assert repr(head).startswith(f"{CIRCLE}(5, {DEPTH}, m=0.25, gamma=256.0, ")
    assert repr(head).endswith("shards=2, detach_weights=False)")

    # Other dtypes, also of the embeddings alone.
    truth = expected.item()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.01)):
        narrow = copy.deepcopy(head).to(dtype)
        for each, kind in ((narrow, dtype), (head, dtype)):
            own = embeddings[rows].to(kind).requires_grad_()
            loss = each(own, labels[rows])
            assert loss.dtype == (torch.float64 if each is head else torch.float32)
            assert abs(loss.item() - truth) < tolerance * truth
            loss.backward()
            assert own.grad.dtype == kind
            assert own.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(head(embeddings[rows], labels[rows]), expected)

    plain = copy.deepcopy(head)
    plain.weight = nn.Parameter(weight)
    with pytest.raises(TypeError, match=r"weight must be a DTensor .* that is none"):
        plain(embeddings[rows], labels[rows])


def test_copies_dtypes_and_repr() -> None:
    run_processes(2, _copy)


def _refuse(rank: int) -> None:
    embeddings, labels, weight = problem(8, 4)
    head = sharded("circle", weight)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Linear(DEPTH, DEPTH, dtype=torch.float64)
            self.head = head

        def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
            return self.head(self.network(rows), labels)

    def loss(rows: Tensor) -> Tensor:
        return head(rows, labels)

    with pytest.raises(TypeError, match=r"parameters must be those .* shards need no averaging"):
        average_gradients(head.parameters())
    rows = embeddings.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=f"{CIRCLE} waits for the other processes"):
        make_fx(loss, tracing_mode="real")(rows)
    with pytest.raises(RuntimeError, match=f"{CIRCLE} waits for the other processes"):
        torch.func.grad(loss)(rows)
    (gradient,) = torch.autograd.grad(loss(rows), rows, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate.*twice|second derivative"):
        gradient.square().sum().backward()

    model = Model()
    wrapped = DistributedDataParallel(model, init_sync=False)
    with pytest.raises(RuntimeError, match=r"make the shards 'head\.weight' of all processes the"):
        wrapped(embeddings, labels)


def test_tracing_averaging_and_ddp_are_refused() -> None:
    run_processes(2, _refuse)


def _compile(rank: int) -> None:
    embeddings, labels, weight = problem(8, 4)
    head = sharded("circle", weight)
    rows = embeddings.clone().requires_grad_()

    def loss(rows: Tensor, labels: Tensor) -> Tensor:
        return 2 * head(2 * rows, labels)

    compiled = torch.compile(loss, backend="aot_eager")
    for sizes in ((3, 5), (8, 0)):
        own = own_rows(rank, sizes)
        results = [each(rows[own], labels[own]) for each in (compiled, loss)]
        ours, expected = ((each, *torch.autograd.grad(each, rows)) for each in results)
        assert_close(ours[0], expected[0])
        assert_close(ours[1], expected[1])
    (only_break,) = torch._dynamo.utils.counters["graph_break"]
    assert "a sharded class loss waits for the other processes" in only_break
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="sharded_class_loss"):
        torch.compile(loss, backend="aot_eager", fullgraph=True)(rows, labels)


def test_compiled_function_has_the_loss_between_two_graphs() -> None:
    run_processes(2, _compile)
