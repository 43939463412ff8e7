"""Compilers and tracers: nothing gathers while they look."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from circle_kernels import circle_loss
from tests.distributed.processes import batch, run_processes


def _compile(rank: int) -> None:
    def function(rows: Tensor, labels: Tensor, weight: Tensor, group: str | None) -> Tensor:
        return 2 * circle_loss(rows @ weight, labels, group=group).sqrt()

    compiled = torch.compile(function, backend="aot_eager")
    for sizes in ((5, 9), (7, 0), (0, 0), (12, 3)):
        embeddings, labels = batch(sum(sizes))
        own = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
        results = []
        for call, rows, group in ((compiled, own, "world"), (function, slice(None), None)):
            weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
            loss = call(embeddings[rows], labels[rows], weight, group)
            (gradient,) = torch.autograd.grad(loss, weight)
            if group is not None:
                dist.all_reduce(gradient)
                gradient /= 2
            results.append((loss.detach(), gradient))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(
                ours, expected, rtol=1e-12, atol=1e-12, equal_nan=sum(sizes) == 0
            )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1
    # Nothing inside of the gather was looked at, which hangs only now and then.
    (only_break,) = torch._dynamo.utils.counters["graph_break"]
    assert "gather_batch_now" in only_break


def test_compiled_function_gathers_between_two_graphs() -> None:
    run_processes(2, _compile)


def _trace_in_one_process(rank: int) -> None:
    """A collective here would wait for rank 1, which makes none before it is done."""
    rows, labels = batch(8)
    rows.requires_grad_()

    class Loss(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return circle_loss(rows, labels, group="world")

    loss = Loss()
    if rank == 0:
        fake = FakeTensorMode()
        for trace in (
            lambda: make_fx(loss, tracing_mode="real")(rows),
            lambda: make_fx(loss, tracing_mode="fake")(rows),
            lambda: torch.export.export(loss, (rows,), strict=False),
            lambda: torch.func.grad(loss)(rows),
            lambda: circle_loss(*map(fake.from_tensor, (rows, labels)), group="world"),
            lambda: circle_loss(rows.to("meta"), labels.to("meta"), group="world"),
        ):
            with pytest.raises(RuntimeError, match="group waits for the other processes' rows"):
                trace()
        for trace in (
            lambda: torch.compile(loss, fullgraph=True, backend="eager")(rows),
            lambda: torch.export.export(loss, (rows,), strict=True),
        ):
            with pytest.raises(torch._dynamo.exc.Unsupported, match="gather_batch_now"):
                trace()
    assert torch.isfinite(loss(rows))


def test_tracing_runs_no_collective_and_says_why() -> None:
    run_processes(2, _trace_in_one_process)
