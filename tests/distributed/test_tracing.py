"""Compilers hold a shared batch as whole ops; who traces without one is told where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from circle_kernels import circle_loss
from tests.distributed.one_process import Case, check, own_rows, reduce_gradient, side
from tests.distributed.processes import batch, run_processes

UNEVEN = ((5, 9), (7, 0), (0, 0), (12, 3), (4, 4))
EVEN = ((5, 5), (6, 6), (8, 8))


def _compile(rank: int, backend: str, sharing: dict) -> None:
    """Sizes change at every call, and a process without rows has graphs in which compilers know
    every sum beforehand."""

    def function(rows: Tensor, labels: Tensor, weight: Tensor, references: bool) -> Tensor:
        both = (3 * rows @ weight, labels) if references else ()
        return 2 * circle_loss(rows @ weight, labels, *both, group="world", **sharing)

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for sizes in EVEN if sharing.get("same_sizes") else UNEVEN:
        case = Case(sizes, None, sharing)
        embeddings, labels = side(case, sizes, seed=1)
        for references in (False, True):
            results = []
            for call, rows in ((compiled, own_rows(sizes, rank)), (function, slice(None))):
                weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
                if call is function:
                    both = (3 * embeddings @ weight, labels) if references else ()
                    loss = 2 * circle_loss(embeddings @ weight, labels, *both)
                else:
                    loss = call(embeddings[rows], labels[rows], weight, references)
                loss.backward()
                results.append((loss.detach(), weight.grad))
            (loss, gradient), (expected, wanted) = results
            check(loss, expected, case)
            check(reduce_gradient(gradient, case), wanted, case)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("same_sizes", [False, True])
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_whole_graphs_share_batches(exchange: str, same_sizes: bool) -> None:
    sharing = {"exchange": exchange, "same_sizes": same_sizes}
    run_processes(2, _compile, "aot_eager", sharing)


def _compile_with_a_cache(rank: int, folder: str, options: dict) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
        _compile(rank, "inductor", options)


def test_inductor_neither_drops_nor_reorders_what_others_wait_for(tmp_path: Path) -> None:
    run_processes(2, _compile_with_a_cache, str(tmp_path), {"exchange": "gather"})


def _compute_compiled(rank: int, folder: str) -> None:
    """The gradient of the sums of all pairs is another one in each process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
        compiled = torch.compile(circle_loss, fullgraph=True)
        embeddings, labels = batch(6 * dist.get_world_size())
        rows = slice(6 * rank, 6 * rank + 6)
        gradients = []
        for function in (compiled, circle_loss):
            own = embeddings[rows].clone().requires_grad_()
            function(own, labels[rows], group="world", scope="batch").backward()
            gradients.append(own.grad)
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_graphs_kept_on_disk_are_those_of_one_rank_among_as_many(tmp_path: Path) -> None:
    for world_size in (2, 2, 3):
        run_processes(world_size, _compute_compiled, str(tmp_path))


def _trace_in_one_process(rank: int) -> None:
    """A collective here would wait for rank 1, which makes none before it is done."""
    rows, labels = batch(8)
    rows.requires_grad_()

    class Loss(nn.Module):
        def __init__(self, same_sizes: bool) -> None:
            super().__init__()
            self.same_sizes = same_sizes

        def forward(self, rows: Tensor) -> Tensor:
            return circle_loss(rows, labels, group="world", same_sizes=self.same_sizes)

    loss = Loss(False)
    if rank == 0:
        fake = FakeTensorMode()
        for trace in (
            lambda: make_fx(loss, tracing_mode="real")(rows),
            lambda: torch.func.grad(loss)(rows),
            lambda: circle_loss(*map(fake.from_tensor, (rows, labels)), group="world"),
            lambda: circle_loss(rows.to("meta"), labels.to("meta"), group="world"),
        ):
            with pytest.raises(RuntimeError, match="group waits for the other processes' rows"):
                trace()
        for same_sizes in (False, True):
            graph = torch.export.export(Loss(same_sizes), (rows.detach(),), strict=False)
            assert "shared_logsumexp" in str(graph)
    assert torch.isfinite(loss(rows))


def test_tracing_runs_no_collective() -> None:
    run_processes(2, _trace_in_one_process)
