"""in_chunks with DDP, FSDP2 and torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from circle_kernels import in_chunks
from tests.distributed.processes import run_processes
from tests.training.networks import convolutions, images, plain, step_of

CHUNK_SIZE = 5
SIZES = (13, 27)  # rows of the two processes: 3 and 6 chunks


class Chunked(nn.Module):
    """What is to be wrapped where the wrapper is not to see chunks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        return in_chunks(self.network, rows, chunk_size=CHUNK_SIZE)


class Biased(nn.Module):
    """The gradient of its last parameter takes nothing that was recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network_of_the_tests()
        self.bias = nn.Parameter(torch.zeros(8, dtype=torch.float64))
        self.unused = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, rows: Tensor) -> Tensor:
        return self.network(rows) + self.bias


def network_of_the_tests() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8))
    return nn.Sequential(*layers).double()


def rows_of(sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return list(torch.randn(sum(sizes), 6, generator=generator).double().split(sizes))


def expected_step(network: nn.Module, rows: Tensor, seed: int) -> Tensor:
    """Plain training in chunks, its gradients averaged as the wrappers do."""
    torch.manual_seed(seed)
    network.zero_grad()
    chunks = rows.tensor_split(-(-len(rows) // CHUNK_SIZE))
    output = torch.cat([network(chunk) for chunk in chunks])
    output.pow(2).mean().backward()
    for parameter in network.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    return output


def wrapped_step(call: Any, network: nn.Module, rows: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    network.zero_grad()
    output = call(rows)
    output.pow(2).mean().backward()
    return output


def assert_same_training(
    call: Any, network: nn.Module, other: nn.Module, rows: Tensor, *, broadcast: bool
) -> None:
    """Three steps; ``broadcast`` is what DDP does to buffers before each."""
    for step in range(3):
        if broadcast:
            for buffer in other.buffers():
                dist.broadcast(buffer, 0)
        seed = 10 * step + dist.get_rank()
        expected = expected_step(other, rows, seed)
        assert torch.equal(wrapped_step(call, network, rows, seed), expected)
        for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
            if theirs.grad is None:
                assert ours.grad is None
                continue
            assert theirs.grad.abs().max() > 0
            gradient = ours.grad.full_tensor() if hasattr(ours.grad, "full_tensor") else ours.grad
            torch.testing.assert_close(gradient, theirs.grad, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(network.buffers(), other.buffers(), strict=True):
            assert torch.equal(ours, theirs)


def _train_with_ddp(rank: int, kind: str) -> None:
    network, other = ((Biased() if kind == "unused" else network_of_the_tests()) for _ in range(2))
    options: dict[str, Any] = {
        "unused": {"find_unused_parameters": True},
        "static": {"static_graph": True},
        "own buffers": {"broadcast_buffers": False},
    }.get(kind, {})
    inside = kind == "around in_chunks"
    wrapper = DistributedDataParallel(Chunked(network) if inside else network, **options)
    reductions = []

    def count(_, bucket):  # torch looks at annotations, which are strings here
        reductions.append(1)
        work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    wrapper.register_comm_hook(None, count)
    call = wrapper if inside else lambda rows: in_chunks(wrapper, rows, chunk_size=CHUNK_SIZE)
    keep = kind == "own buffers"
    assert_same_training(call, network, other, rows_of(SIZES)[rank], broadcast=not keep)
    assert len(reductions) == 3  # one bucket in each of three steps
    assert wrapper.module in (network, *wrapper.children())
    with wrapper.no_sync():
        wrapped_step(call, network, rows_of(SIZES)[rank], 0)
    assert len(reductions) == 3


@pytest.mark.parametrize("kind", ["plain", "around in_chunks", "unused", "static", "own buffers"])
@pytest.mark.filterwarnings("ignore:.*broadcast_buffers.*:FutureWarning")
def test_ddp_reduces_once_whatever_the_number_of_chunks(kind: str) -> None:
    run_processes(2, _train_with_ddp, kind)


def _train_with_fsdp(rank: int, kind: str) -> None:
    network, other = network_of_the_tests(), network_of_the_tests()
    if kind == "nested":
        fully_shard(network[4])
    if kind == "around in_chunks":
        call = fully_shard(Chunked(network))
    else:
        fully_shard(network)

        def call(rows: Tensor) -> Tensor:
            return in_chunks(network, rows, chunk_size=CHUNK_SIZE)

    assert_same_training(call, network, other, rows_of((20, 18))[rank], broadcast=False)


@pytest.mark.parametrize("kind", ["whole", "nested", "around in_chunks"])
def test_fsdp_with_as_many_chunks_in_every_process(kind: str) -> None:
    run_processes(2, _train_with_fsdp, kind)


def _refuse(rank: int) -> None:
    wrapper = DistributedDataParallel(network_of_the_tests())
    rows = rows_of(SIZES)[rank]
    with pytest.raises(RuntimeError, match=r"network\.0 is a DistributedDataParallel module"):
        in_chunks(nn.Sequential(wrapper), rows, chunk_size=CHUNK_SIZE)
    with pytest.raises(RuntimeError, match="what network calls is a DistributedDataParallel"):
        in_chunks(wrapper.forward, rows, chunk_size=CHUNK_SIZE)


def test_ddp_inside_is_refused() -> None:
    run_processes(2, _refuse)


@pytest.mark.parametrize(
    ("compiler", "rows", "dynamic"),
    [("aot_eager", 40, None), ("inductor", 37, True)],  # chunks of one size, and of two
)
def test_compiled_network_is_compiled_once(compiler: str, rows: int, dynamic: bool | None) -> None:
    torch._dynamo.reset()
    network, other = convolutions(), convolutions()
    compiled, theirs = (
        torch.compile(each, backend=compiler, dynamic=dynamic) for each in (network, other)
    )

    def chunked(_: nn.Module, rows: Tensor) -> Tensor:
        return in_chunks(compiled, rows, chunk_size=8)

    torch._dynamo.utils.counters.clear()
    ours = [step_of(network, chunked, images(rows), seed) for seed in range(3)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for seed, step in enumerate(ours):
        step_of(other, lambda _, rows: plain(theirs, rows), images(rows), seed).assert_same(step)


def test_compiled_step_ends_a_graph_before_the_call() -> None:
    torch._dynamo.reset()
    network, other = convolutions(), convolutions()

    def step(rows: Tensor) -> Tensor:
        return in_chunks(network, rows * 1.0, chunk_size=8) * 1.0

    compiled = torch.compile(step, backend="aot_eager")
    step_of(network, lambda _, rows: compiled(rows), images()).assert_same(
        step_of(other, plain, images())
    )
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="circle_kernels runs it outside"):
        torch.compile(step, backend="aot_eager", fullgraph=True)(images())
