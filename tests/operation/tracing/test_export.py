"""Exported programs that hold the loss: they take any batch size, and they can be trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from circle_kernels import CircleLoss, ClassCircleLoss, circle_loss
from tests.support.batches import Batch, batch, value_and_gradients


class NetworkAndLoss(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 6)
        self.loss = loss

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.layer(inputs), labels)


def inputs(n: int) -> Batch:
    return batch(n, classes=5, seed=n, requires_grad=False)


def export(network: nn.Module) -> ExportedProgram:
    rows = {0: Dim("n")}
    return torch.export.export(network, inputs(24), dynamic_shapes=(rows, rows))


def loss_and_gradients(network: nn.Module, n: int) -> list[Tensor]:
    return value_and_gradients(network(*inputs(n)), list(network.parameters()))


@pytest.mark.parametrize(
    ("loss", "with_gradient"),
    [
        (CircleLoss(), True),
        (CircleLoss(), False),
        (CircleLoss(scope="batch"), True),
        (CircleLoss(backend="tiled"), True),
        (ClassCircleLoss(5, 6, gamma=32), True),
    ],
    ids=["anchor", "without gradient", "batch", "tiled", "class"],
)
def test_exported_program_trains_with_any_batch_size(loss: nn.Module, with_gradient: bool) -> None:
    """Also one that was exported where no gradient was wanted."""
    network = NetworkAndLoss(loss)
    with torch.set_grad_enabled(with_gradient):
        exported = export(copy.deepcopy(network)).module()
    for n in (24, 31, 200):
        for ours, expected in zip(
            loss_and_gradients(exported, n), loss_and_gradients(network, n), strict=True
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_decompositions_leave_the_operation_whole() -> None:
    code = export(NetworkAndLoss(CircleLoss())).run_decompositions().graph_module.code
    assert code.count("circle_kernels.pair_logsumexp_forward") == 1


def test_traced_step_with_its_gradient_takes_any_batch_size() -> None:
    def step(embeddings: Tensor, labels: Tensor) -> Tensor:
        leaf = embeddings.detach().requires_grad_()
        return torch.autograd.grad(circle_loss(leaf, labels), leaf)[0]

    graph = make_fx(step, tracing_mode="symbolic")(*inputs(24))
    assert graph.code.count("circle_kernels.pair_logsumexp_backward") == 1
    for n in (24, 31, 200):
        torch.testing.assert_close(graph(*inputs(n)), step(*inputs(n)), rtol=1e-5, atol=1e-6)
