"""The operation under torch.compile and as registered ops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from circle_kernels import CircleFormula, CircleLoss, circle_loss, unified_loss
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.registered import SAVED_LAYOUT, encode
from tests.support.targets import INTERPRETED


def inputs(n: int, m: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    result = [torch.randn(n, 8, generator=generator).requires_grad_(), torch.arange(n) % 5]
    if m is not None:
        result += [torch.randn(m, 8, generator=generator).requires_grad_(), torch.arange(m) % 5]
    return result


def loss_and_gradients(function, tensors: list[Tensor]) -> list[Tensor]:
    loss = function(*tensors)
    return [loss.detach(), *torch.autograd.grad(loss, tensors[::2])]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


LOSSES = {
    "circle": lambda *tensors: circle_loss(*tensors),
    "unified": lambda *tensors: unified_loss(*tensors, m=0.2, gamma=16),
    "batch": lambda *tensors: circle_loss(*tensors, scope="batch", detach_weights=False),
    "module": CircleLoss(m=0.25, gamma=256),
}


@pytest.mark.parametrize("m", [None, 14])
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_in_one_graph_gives_the_same_loss_and_gradients(name: str, m: int | None) -> None:
    function = LOSSES[name]
    compiled = torch.compile(function, fullgraph=True)
    tensors = inputs(24, m)
    for ours, expected in zip(
        loss_and_gradients(compiled, tensors), loss_and_gradients(function, tensors), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    assert not torch._dynamo.utils.counters["graph_break"]


def compiled_graphs(function, compiled, sizes: list[tuple[int, int | None]]) -> int:
    """How many graphs it took to compute the right loss and gradients of batches of these sizes."""
    for n, m in sizes:
        tensors = inputs(n, m)
        for ours, expected in zip(
            loss_and_gradients(compiled, tensors),
            loss_and_gradients(function, tensors),
            strict=True,
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


SIZES = {
    "self": [(n, None) for n in (24, 31, 40, 77, 500)],
    "both": [(24, 14), (31, 77), (40, 40), (500, 9)],
    "bank": [(24, 300), (31, 300), (77, 300)],
}


@pytest.mark.parametrize(
    ("name", "sizes"), [*((name, "self") for name in LOSSES), ("circle", "both"), ("batch", "bank")]
)
def test_dynamic_batch_sizes_do_not_recompile(name: str, sizes: str) -> None:
    # Graphs are the front end's and no matter of the code generator, which takes seconds.
    compiled = torch.compile(LOSSES[name], fullgraph=True, dynamic=True, backend="aot_eager")
    assert compiled_graphs(LOSSES[name], compiled, SIZES[sizes]) == 1


def test_dynamic_batch_sizes_do_not_recompile_with_generated_code() -> None:
    compiled = torch.compile(circle_loss, fullgraph=True, dynamic=True)
    assert compiled_graphs(circle_loss, compiled, SIZES["self"]) == 1


def test_second_batch_size_is_the_last_to_recompile() -> None:
    """What a user gets who says nothing of sizes: the first is a constant, the others are not."""
    compiled = torch.compile(circle_loss, fullgraph=True, backend="aot_eager")
    assert compiled_graphs(circle_loss, compiled, SIZES["self"]) == 2


def test_compiled_network_under_autocast_is_that_of_eager_mode() -> None:
    layer = torch.nn.Linear(8, 6)

    def step(x: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return circle_loss(layer(x), labels)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    assert compiled_graphs(step, compiled, SIZES["self"]) == 1
    assert compiled(*inputs(24)).dtype == torch.float32


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("m", [None, 40])
def test_dynamic_batch_sizes_do_not_recompile_with_triton(m: int | None) -> None:
    def function(*tensors: Tensor) -> Tensor:
        return circle_loss(*tensors, backend="triton")

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    assert compiled_graphs(function, compiled, [(24, m), (40, m), (130, m)]) == 1


@pytest.mark.parametrize("m", [None, 14])
@pytest.mark.parametrize("backend", ["cpu", "tiled"])
def test_registered_ops_are_well_formed(backend: str, m: int | None) -> None:
    batch = Batch(*inputs(24, m))
    forward = torch.ops.circle_kernels.pair_logsumexp_forward
    for skip_below, keep in ((0.0, True), (0.25, True), (0.0, False)):
        encoded = encode(batch, Operation(CircleFormula(), True, skip_below, backend))
        torch.library.opcheck(forward.default, (*encoded, keep, SAVED_LAYOUT))
    plain = Batch(*(value if value is None else value.detach() for value in batch))
    encoded = encode(plain, Operation(CircleFormula(), backend=backend))
    statistics = forward(*encoded, True, SAVED_LAYOUT)
    grads = (torch.rand(24), torch.rand(24))
    for needs in ((True, m is not None), (True, False), (False, m is not None)):
        torch.library.opcheck(
            torch.ops.circle_kernels.pair_logsumexp_backward.default,
            (*encoded, *statistics, *grads, *needs),
        )


def test_traced_without_a_compiler_keeps_the_operation() -> None:
    """A tracer that saw only the C++ kernel's empty outputs would return what lies in memory."""
    tensors = [value.detach() for value in inputs(24)]
    graph = make_fx(lambda x, labels: circle_loss(x, labels))(*tensors)
    assert "circle_kernels.pair_logsumexp_forward" in graph.code
    other = torch.randn(24, 8)
    torch.testing.assert_close(graph(other, tensors[1]), circle_loss(other, tensors[1]))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_fake_tensors_give_shapes(backend: str, reduction: str) -> None:
    with FakeTensorMode() as mode:
        tensors = [mode.from_tensor(value.detach()) for value in inputs(24)]
    tensors[0].requires_grad_()
    losses = circle_loss(*tensors, reduction=reduction, backend=backend)
    losses.sum().backward()
    assert losses.shape == ((24,) if reduction == "none" else ())
    assert tensors[0].grad is not None
    assert tensors[0].grad.shape == (24, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device")
@pytest.mark.parametrize("m", [None, 14])
def test_compiled_on_the_device(m: int | None) -> None:
    tensors = [
        value.detach().cuda().requires_grad_(value.is_floating_point()) for value in inputs(48, m)
    ]
    compiled = torch.compile(circle_loss, fullgraph=True)
    for ours, expected in zip(
        loss_and_gradients(compiled, tensors),
        loss_and_gradients(circle_loss, tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
