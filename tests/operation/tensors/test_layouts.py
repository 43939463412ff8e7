"""The order of numbers in memory changes nothing."""

from __future__ import annotations

import pytest
import torch

from circle_kernels import circle_loss
from tests.support.targets import Target, for_every_backend

pytestmark = pytest.mark.backends


@for_every_backend
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "sliced"])
def test_layout_of_the_inputs_does_not_matter(target: Target, layout: str) -> None:
    for dtype in target.dtypes:
        generator = torch.Generator().manual_seed(3)
        base = torch.randn(48, 48, generator=generator).to(target.device, dtype)
        embeddings = {
            "transposed": base.T[:20, :12],
            "strided": base[::2, ::3][:20, :12],
            "expanded": base[:1, :12].expand(20, 12),
            "sliced": base[3:23, 5:17],
        }[layout]
        labels = (torch.arange(40, device=target.device) % 5)[::2]
        results = []
        for value, value_labels in (
            (embeddings, labels),
            (embeddings.contiguous(), labels.contiguous()),
        ):
            value = value.detach().requires_grad_()
            loss = circle_loss(value, value_labels, backend=target.backend)
            results.append((loss, *torch.autograd.grad(loss, value)))
        (loss, grad), (expected, expected_grad) = results
        # Not bitwise: matrix products may add up differently for another layout.
        eps = 1024 * torch.finfo(dtype).eps
        torch.testing.assert_close(loss, expected, rtol=eps, atol=0)
        torch.testing.assert_close(
            grad, expected_grad, rtol=0, atol=eps * expected_grad.abs().max().item()
        )
