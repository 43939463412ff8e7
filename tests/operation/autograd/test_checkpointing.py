"""Gradient checkpointing around a network with its loss."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from circle_kernels import circle_loss
from tests.support.targets import Target, for_every_backend

pytestmark = pytest.mark.backends


@for_every_backend
@pytest.mark.parametrize(("scope", "use_reentrant"), [("anchor", True), ("batch", False)])
def test_checkpointed_step_has_the_same_gradient(
    target: Target, scope: str, use_reentrant: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(24) % 5).to(target.device)
    for dtype in target.dtypes:
        inputs, weight = (
            torch.randn(rows, 8, generator=generator).to(target.device, dtype).requires_grad_()
            for rows in (24, 6)
        )

        def step(inputs, weight):
            embeddings = inputs @ weight.T
            return circle_loss(embeddings, labels, scope=scope, backend=target.backend)

        expected = step(inputs, weight)
        loss = checkpoint(step, inputs, weight, use_reentrant=use_reentrant)
        assert torch.equal(loss, expected)
        expected_grads = torch.autograd.grad(expected, (inputs, weight))
        loss.backward()  # the re-entrant kind takes no torch.autograd.grad
        assert torch.equal(inputs.grad, expected_grads[0])
        assert torch.equal(weight.grad, expected_grads[1])
