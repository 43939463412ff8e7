"""The operation under torch.compile."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleLoss, circle_loss, unified_loss
from tests.support.batches import batch_with_references, value_and_gradients
from tests.support.targets import INTERPRETED

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def inputs(n: int, m: int | None = None) -> tuple[Tensor, ...]:
    return batch_with_references(n, references=m, classes=5, seed=n)


def loss_and_gradients(
    function: Callable[..., Tensor], tensors: tuple[Tensor, ...]
) -> list[Tensor]:
    return value_and_gradients(function(*tensors), tensors[::2])


LOSSES = {
    "circle": lambda *tensors: circle_loss(*tensors),
    "unified": lambda *tensors: unified_loss(*tensors, m=0.2, gamma=16),
    "batch": lambda *tensors: circle_loss(*tensors, scope="batch", detach_weights=False),
    "module": CircleLoss(m=0.25, gamma=256),
}


@pytest.mark.parametrize(("name", "m"), [("batch", None), ("batch", 14), ("module", 14)])
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
    ("name", "sizes"),
    [("module", "self"), ("batch", "self"), ("unified", "both"), ("batch", "bank")],
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


def test_losses_do_not_share_a_limit_of_recompiles() -> None:
    """Which counts by code: one wrapper around all of them would be compiled too often."""
    tensors = inputs(24)
    with torch._dynamo.config.patch(recompile_limit=1):
        for loss, options in (
            (circle_loss, {}),
            (unified_loss, {"m": 0.2, "gamma": 16}),
            (CircleLoss(), {}),
        ):
            compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(*tensors, **options), loss(*tensors, **options))


WRONG = {
    "rows": ({"labels": torch.arange(23)}, {}),
    "floats": ({"labels": torch.rand(24)}, {}),
    "no tensor": ({"embeddings": [1.0]}, {}),
    "one axis": ({"embeddings": torch.rand(24, requires_grad=True)}, {}),
    "no labels": ({"ref_emb": torch.rand(3, 4)}, {}),
    "m": ({}, {"m": 1.5}),
    "gamma": ({}, {"gamma": -1.0}),
    "integer gamma": ({}, {"gamma": 0}),
    "skip_below": ({}, {"skip_below": 1.0}),
    "normalize": ({}, {"normalize": 1}),
    "scope": ({}, {"scope": "row"}),
    "reduction": ({}, {"reduction": "men"}),
    "backend": ({}, {"backend": "gpu"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_compiled_refuses_what_eager_mode_refuses_in_its_words(name: str) -> None:
    """Also where the arguments are otherwise those that are not checked while they are traced."""
    wrong_tensors, wrong_options = WRONG[name]
    embeddings, labels, *_ = inputs(24)
    given = {"embeddings": embeddings, "labels": labels, **wrong_tensors, **wrong_options}
    with pytest.raises((TypeError, ValueError)) as expected:
        circle_loss(**given)
    with pytest.raises(expected.type, match=f"^{re.escape(str(expected.value))}$"):
        torch.compile(circle_loss, backend="aot_eager")(**given)


@pytest.mark.parametrize("name", ["circle", "unified", "module"])
def test_usual_arguments_are_not_traced_through_the_checks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name that they look up would be looked up again at every step."""
    embeddings, labels, *_ = inputs(24)
    expected = loss_and_gradients(LOSSES[name], (embeddings, labels))
    for checks in ("operation_of", "reduction_of", "check_batch"):
        monkeypatch.delattr(f"circle_kernels.losses.functional.{checks}")
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    for ours, wanted in zip(
        loss_and_gradients(compiled, (embeddings, labels)), expected, strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)


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
    assert compiled_graphs(function, compiled, [(24, m), (40, m), (70, m)]) == 1


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


@pytest.mark.parametrize("m", [None, 14])
def test_penalty_on_the_gradient_raises(m: int | None) -> None:
    """With a compiler whose backward pass is autograd's own."""
    tensors = inputs(24, m)
    leaves = [each for each in tensors[::2] if each is not None]
    loss = torch.compile(circle_loss, backend="eager")(*tensors)
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        (loss + sum(each.square().sum() for each in gradients)).backward()
