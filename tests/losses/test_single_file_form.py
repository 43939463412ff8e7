"""The widely copied single-file implementation gives what ours does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from circle_kernels import circle_loss, circle_loss_from_similarity
from tests.losses.single_file_form import expected_loss, similarities

LABELS = {
    "several classes": torch.arange(30) % 7,
    "rows without positives": torch.cat([torch.arange(20) % 4, torch.arange(100, 110)]),
    "no positives": torch.arange(30),
    "no negatives": torch.full((30,), 3),
    "two negative pairs": torch.tensor([0, 0, 1]),
    "one positive pair": torch.zeros(2, dtype=torch.int64),
    "one negative pair": torch.arange(2),
    "one embedding": torch.zeros(1, dtype=torch.int64),
}


@pytest.mark.parametrize(("m", "gamma"), [(0.25, 256), (0.25, 80), (0.25, 32)])
@pytest.mark.parametrize("kind", LABELS)
def test_loss_and_gradient_are_those_of_the_single_file_form(
    kind: str, m: float, gamma: float
) -> None:
    """Without positives or without negatives its log-sum-exp over nothing is -inf: loss 0."""
    labels = LABELS[kind]
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(len(labels), 12, generator=generator, dtype=torch.float64)
    results = []
    for function in (
        lambda x: expected_loss(*similarities(x, labels), m, gamma),
        lambda x: circle_loss(x, labels, m=m, gamma=gamma, scope="batch"),
        lambda x: circle_loss(F.normalize(x), labels, m=m, gamma=gamma, scope="batch"),
        lambda x: circle_loss_from_similarity(*similarities(x, labels), m=m, gamma=gamma),
    ):
        leaf = embeddings.clone().requires_grad_()
        loss = function(leaf)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    (loss, gradient), *ours = results
    assert (loss == 0) == (min(map(len, similarities(embeddings, labels))) == 0)
    assert gradient.isfinite().all()
    for our_loss, our_gradient in ours:
        torch.testing.assert_close(our_loss, loss, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(our_gradient, gradient, rtol=1e-8, atol=1e-8)
