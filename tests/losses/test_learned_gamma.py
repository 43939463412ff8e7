"""``gamma`` as a tensor: its gradient, beside the derivative that PyTorch's matrix gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circle_kernels import (
    CircleLoss,
    ClassCircleLoss,
    circle_loss,
    class_circle_loss,
    class_unified_loss,
    unified_loss,
)
from tests.distributed.one_process import Case, compute, reduce_gradient
from tests.distributed.processes import run_processes
from tests.support.batches import batch, batch_with_references, class_batch
from tests.support.targets import Target, for_every_backend

pytestmark = pytest.mark.backends
GAMMA = 24.0

LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, object]]] = {
    "circle": (circle_loss, {}),
    "undetached": (circle_loss, {"detach_weights": False}),
    "sum": (circle_loss, {"reduction": "sum"}),
    "batch": (circle_loss, {"scope": "batch"}),
    "ignored": (circle_loss, {"ignore_label": 1}),
    "unified": (unified_loss, {"m": 0.2}),
    "class circle": (class_circle_loss, {}),
    "class unified": (class_unified_loss, {"m": 0.2}),
}


def tensors_of(name: str, references: bool, dtype: torch.dtype, device: str) -> list[Tensor]:
    if name.startswith("class"):
        drawn = class_batch(30, classes=11, dtype=dtype)
    elif references:
        drawn = batch_with_references(70, references=41, dtype=dtype)
    else:
        drawn = batch(70, dtype=dtype)
    return [each.detach().to(device) for each in drawn]


def derivative(function: Callable[..., Tensor], tensors: list[Tensor], **options: object) -> float:
    """By differences of the naive loss in float64, which are exact to ten digits."""
    doubled = [each.double() if each.is_floating_point() else each for each in tensors]
    step = 1e-4
    losses = [
        function(*doubled, gamma=GAMMA + side * step, backend="reference", **options)
        for side in (1, -1)
    ]
    return ((losses[0] - losses[1]) / (2 * step)).item()


@for_every_backend
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_gamma_is_the_derivative(target: Target, name: str, references: bool) -> None:
    function, options = LOSSES[name]
    for dtype in target.few_dtypes:
        tensors = tensors_of(name, references, dtype, target.device)
        tensors[0].requires_grad_()
        of_gamma = torch.float64 if dtype == torch.float64 else torch.float32
        gamma = torch.tensor(GAMMA, dtype=of_gamma, requires_grad=True)
        loss = function(*tensors, gamma=gamma, backend=target.backend, **options)
        plain = function(*tensors, gamma=GAMMA, backend=target.backend, **options)
        torch.testing.assert_close(loss, plain)
        ours, gradient = torch.autograd.grad(loss, (gamma, tensors[0]))
        (expected,) = torch.autograd.grad(plain, tensors[0])
        # Of half types the two ways may round apart.
        wide_enough = {
            "rtol": 0.0,
            "atol": 8 * torch.finfo(dtype).eps * expected.abs().max().item(),
        }
        torch.testing.assert_close(gradient, expected, **wide_enough if dtype.itemsize == 2 else {})
        tolerance = 1e-8 if dtype == torch.float64 else 2e-3 if dtype.itemsize == 2 else 1e-4
        truth = derivative(function, tensors, **options)
        assert ours.item() == pytest.approx(truth, rel=tolerance, abs=tolerance)


def test_empty_sets_and_empty_batches_have_gradient_0() -> None:
    for rows, labels in ((0, []), (3, [0, 1, 2]), (3, [0, 0, 0])):
        gamma = torch.tensor(GAMMA, requires_grad=True)
        embeddings = torch.randn(rows, 4, requires_grad=True)
        circle_loss(embeddings, torch.tensor(labels, dtype=torch.int64), gamma=gamma).backward()
        assert gamma.grad is not None
        assert gamma.grad.item() == 0


def test_parameter_is_learned_by_modules() -> None:
    for module, drawn in (
        (CircleLoss(gamma=torch.nn.Parameter(torch.tensor(GAMMA))), batch(40)),
        (
            ClassCircleLoss(11, 8, gamma=torch.nn.Parameter(torch.tensor(GAMMA))),
            class_batch(30, 8, classes=11)[:2],
        ),
    ):
        assert "gamma" in dict(module.named_parameters())
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(*drawn).backward()
        optimizer.step()
        assert module.gamma.item() != GAMMA


def test_no_recompilation_for_each_value() -> None:
    embeddings, labels = batch(40)
    counts = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        counts.append(1)
        return graph.forward

    compiled = torch.compile(
        lambda x, gamma: circle_loss(x, labels, gamma=gamma), fullgraph=True, backend=backend
    )
    for value in (8.0, 16.0, 31.0):
        gammas = [torch.tensor(value, requires_grad=True) for _ in range(2)]
        losses = compiled(embeddings, gammas[0]), circle_loss(embeddings, labels, gamma=gammas[1])
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(
            *(torch.autograd.grad(*both)[0] for both in zip(losses, gammas, strict=True))
        )
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("gamma", "error", "message"),
    [
        (torch.tensor([1.0, 2.0]), TypeError, "gamma must be a number or a floating-point tensor"),
        (torch.tensor(3), TypeError, "gamma must be a number or a floating-point tensor"),
        (torch.tensor(-1.0), ValueError, "gamma must be greater than 0, got -1.0"),
        (torch.tensor(float("nan")), ValueError, "gamma must be finite"),
    ],
)
def test_other_tensors_are_refused(gamma: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        circle_loss(*batch(), gamma=gamma)
    with pytest.raises(error, match=message):
        CircleLoss(gamma=gamma)


def test_second_derivative_is_refused() -> None:
    gamma = torch.tensor(GAMMA, requires_grad=True)
    loss = circle_loss(*batch(), gamma=gamma)
    (gradient,) = torch.autograd.grad(loss, gamma, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.backward()


def test_gradient_of_embeddings_is_not_differentiated_by_gamma() -> None:
    """Also where a backend has its second derivative: it holds gamma constant."""
    x, y = batch(dtype=torch.float64)
    gamma = torch.tensor(GAMMA, dtype=torch.float64, requires_grad=True)
    loss = circle_loss(x, y, gamma=gamma, backend="reference")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(gradient.square().sum(), gamma)


def _compare(rank: int, options: dict[str, str]) -> None:
    gradients = []
    for part in (rank, None):
        gamma = torch.tensor(GAMMA, dtype=torch.float64, requires_grad=True)
        case = Case((5, 0, 9), None, {**options, "gamma": gamma})
        compute(case, part)
        assert gamma.grad is not None
        gradients.append(gamma.grad)
    torch.testing.assert_close(reduce_gradient(gradients[0], case), gradients[1])


@pytest.mark.parametrize("grad_reduction", ["mean", "sum"])
def test_processes_that_share_a_batch_share_the_gradient(grad_reduction: str) -> None:
    run_processes(3, _compare, {"grad_reduction": grad_reduction})
