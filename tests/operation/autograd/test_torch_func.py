"""The losses under torch.func: calls with other parameters, gradients, batches of problems."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from circle_kernels import CircleLoss, circle_loss
from tests.support.batches import randn
from tests.support.public_losses import assert_close

SETTINGS = [{}, {"scope": "batch"}, {"reduction": "sum"}, {"backend": "tiled"}]
for_every_setting = pytest.mark.parametrize("options", SETTINGS, ids=str)
LABELS = torch.arange(24) % 5


def embeddings(seed: int = 0) -> Tensor:
    return randn(24, 8, seed=seed)


def gradient(values: Tensor, **options) -> Tensor:
    leaf = values.clone().requires_grad_()
    return torch.autograd.grad(circle_loss(leaf, LABELS, **options), leaf)[0]


@for_every_setting
def test_functional_call_takes_other_parameters(options: dict) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 6, bias=False)
            self.loss = CircleLoss(**options)

        def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
            return self.loss(self.layer(inputs), labels)

    weight = randn(6, 8, seed=1).requires_grad_()
    arguments = (Network(), {"layer.weight": weight}, (embeddings(), LABELS))
    loss = functional_call(*arguments)
    expected = circle_loss(embeddings() @ weight.T, LABELS, **options)
    torch.testing.assert_close(loss, expected)
    slopes = grad(lambda value: functional_call(arguments[0], value, arguments[2]))(arguments[1])
    torch.testing.assert_close(
        slopes["layer.weight"], torch.autograd.grad(expected, weight)[0], rtol=1e-5, atol=1e-5
    )


@for_every_setting
def test_grad_is_the_gradient(options: dict) -> None:
    transformed = grad(lambda values: circle_loss(values, LABELS, **options))
    torch.testing.assert_close(
        transformed(embeddings()), gradient(embeddings(), **options), rtol=1e-6, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@for_every_setting
def test_batch_of_problems_gives_each_its_gradient(options: dict) -> None:
    problems = torch.stack([embeddings(seed) for seed in range(3)])
    gradients = vmap(grad(lambda values: circle_loss(values, LABELS, **options)))(problems)
    expected = torch.stack([gradient(problem, **options) for problem in problems])
    torch.testing.assert_close(gradients, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_jacobian_of_the_rows_adds_up_to_the_gradient_of_their_sum() -> None:
    jacobian = jacrev(lambda values: circle_loss(values, LABELS, reduction="none"))(embeddings())
    assert jacobian.shape == (24, 24, 8)
    assert_close([jacobian.sum(0)], [gradient(embeddings(), reduction="sum")])


def test_second_derivative_is_a_clear_error() -> None:
    first = grad(lambda values: circle_loss(values, LABELS))
    with pytest.raises(RuntimeError, match="twice"):
        grad(lambda values: first(values).sum())(embeddings())


@for_every_setting
def test_forward_mode_is_an_error(options: dict) -> None:
    with pytest.raises(NotImplementedError, match="jvp"):
        jvp(lambda x: circle_loss(x, LABELS, **options), (embeddings(),), (embeddings(1),))
