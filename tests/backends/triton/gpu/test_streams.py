"""What only a device has: streams, CUDA graphs, waiting, and other devices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from circle_kernels import CircleLoss, ClassCircleLoss
from tests.backends.triton.gpu.steps import (
    MANY,
    assert_bitwise_equal,
    batch,
    captured,
    for_every_dtype,
    for_every_size,
    loss_and_gradients,
    refill,
)
from tests.support.targets import ON_GPU

pytestmark = ON_GPU


@for_every_dtype
@for_every_size
def test_step_in_a_cuda_graph_gives_the_same_for_new_data(
    n: int, m: int | None, d: int, dtype: torch.dtype
) -> None:
    static = batch(n, m, d, dtype)
    graph, results = captured(lambda: loss_and_gradients(static))
    for seed in (1, 2):
        new = batch(n, m, d, dtype, seed=seed)
        refill(static, new)
        graph.replay()
        assert_bitwise_equal(results, loss_and_gradients(new))


class _LayerAndLoss(nn.Module):
    """The last layer of a network and its loss, as one step that is captured."""

    def __init__(self, width: int, depth: int, **options) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(width, depth, generator=generator))
        self.loss = CircleLoss(**options)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.loss(inputs @ self.weight, labels)


@pytest.mark.parametrize("options", [{}, {"scope": "batch"}, {"reduction": "sum"}], ids=str)
@pytest.mark.parametrize(("n", "d"), [(256, 64), (MANY, 64)])
def test_make_graphed_callables_trains_as_without(n: int, d: int, options: dict) -> None:
    eager, graphed = (_LayerAndLoss(32, d, **options).cuda() for _ in range(2))
    sample, labels = batch(n, None, 32, torch.float32)
    graphed_step = torch.cuda.make_graphed_callables(graphed, (sample, labels))
    for seed in (1, 2):
        inputs, labels = batch(n, None, 32, torch.float32, seed=seed)
        results = []
        for module, step in ((eager, eager), (graphed, graphed_step)):
            module.zero_grad()
            leaf = inputs.detach().requires_grad_()
            loss = step(leaf, labels)
            loss.backward()
            results.append([loss.detach(), leaf.grad, module.weight.grad])
        for ours, expected in zip(results[1], results[0], strict=True):
            # Not bitwise: the layer's products may add up differently in a graph.
            scale = expected.abs().max().item()
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("backend", ["triton", "tiled"])
@for_every_dtype
@for_every_size
def test_no_synchronisation_on_the_device(
    n: int, m: int | None, d: int, dtype: torch.dtype, backend: str
) -> None:
    inputs = batch(n, m, d, dtype)
    settings = [
        {"scope": scope, "reduction": reduction, "backend": backend}
        for scope in ("anchor", "batch")
        for reduction in ("mean", "mean_all", "sum", "none")
    ]
    for options in settings:
        loss_and_gradients(inputs, **options)  # kernels compile
    torch.cuda.set_sync_debug_mode("error")
    try:
        for options in settings:
            loss_and_gradients(inputs, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("num_classes", [1_000, 30_000])
@for_every_dtype
def test_class_loss_and_sampling_do_not_wait(num_classes: int, dtype: torch.dtype) -> None:
    head = ClassCircleLoss(num_classes, 64, device="cuda", dtype=dtype)
    embeddings = torch.randn(300, 64, device="cuda", dtype=dtype).requires_grad_()
    labels = torch.randint(0, num_classes, (300,), device="cuda")
    try:
        for mode in ("default", "error"):  # kernels compile in the first
            torch.cuda.set_sync_debug_mode(mode)
            for sample_rate, sparse_grad in ((1.0, False), (0.4, False), (0.4, True)):
                head.sample_rate, head.sparse_grad = sample_rate, sparse_grad
                head.weight.grad = None
                head(embeddings, labels).backward()
                assert head.weight.grad.is_sparse == sparse_grad
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_check_sees_a_synchronisation() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(3, device="cuda").sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@for_every_size
def test_kernels_run_on_the_current_stream(n: int, m: int | None, d: int) -> None:
    source = batch(n, m, d, torch.bfloat16)
    expected = loss_and_gradients(source)
    inputs = [torch.zeros_like(value).requires_grad_(value.requires_grad) for value in source]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second in which others would run
        with torch.no_grad():
            for into, value in zip(inputs, source, strict=True):
                into.copy_(value)
        results = loss_and_gradients(inputs)
    stream.synchronize()
    assert_bitwise_equal(results, expected)


@for_every_dtype
@for_every_size
def test_steps_on_two_streams_at_once_do_not_mix(
    n: int, m: int | None, d: int, dtype: torch.dtype
) -> None:
    """Nothing that one stream's programs count or leave is read by the other's."""
    inputs = [batch(n, m, d, dtype, seed=seed) for seed in (1, 2)]
    expected = [loss_and_gradients(each) for each in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    results: list[list[list[Tensor]]] = [[], []]
    for _ in range(5 if n > 1_000 else 20):
        for stream, own, found in zip(streams, inputs, results, strict=True):
            with torch.cuda.stream(stream):
                found.append(loss_and_gradients(own))
    torch.cuda.synchronize()
    for found, wanted in zip(results, expected, strict=True):
        for each in found:
            assert_bitwise_equal(each, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize(("current", "other"), [(0, 1), (1, 0)])
@for_every_dtype
@for_every_size
def test_tensors_on_a_device_that_is_not_the_current_one(
    n: int, m: int | None, d: int, dtype: torch.dtype, current: int, other: int
) -> None:
    with torch.cuda.device(other):
        expected = loss_and_gradients(batch(n, m, d, dtype, device=f"cuda:{other}"))
    with torch.cuda.device(current):
        results = loss_and_gradients(batch(n, m, d, dtype, device=f"cuda:{other}"))
        assert torch.cuda.current_device() == current
    assert all(result.device.index == other for result in results)
    assert_bitwise_equal(results, expected)
