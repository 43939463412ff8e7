"""The paper's gradients, written out in float64 without autograd and without our formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, circle_loss, pair_logsumexp
from tests.support.regimes import REGIMES


def equations_9_and_10(
    embeddings: Tensor, labels: Tensor, m: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Summed loss and its gradient with respect to the embeddings, row by row as in the paper."""
    n = len(embeddings)
    norms = embeddings.norm(dim=1).clamp_min(1e-12)
    unit = embeddings / norms[:, None]
    gradient = torch.zeros_like(unit)
    total = torch.zeros((), dtype=embeddings.dtype)
    for anchor in range(n):
        others = torch.arange(n) != anchor
        positives = torch.where(others & (labels == labels[anchor]))[0]
        negatives = torch.where(labels != labels[anchor])[0]
        if len(positives) == 0 or len(negatives) == 0:
            continue
        s_p, s_n = unit[positives] @ unit[anchor], unit[negatives] @ unit[anchor]
        weight_p, weight_n = (1 + m - s_p).clamp_min(0), (s_n + m).clamp_min(0)
        logits_p = -gamma * weight_p * (s_p - (1 - m))
        logits_n = gamma * weight_n * (s_n - m)
        exponent = torch.logsumexp(logits_p, 0) + torch.logsumexp(logits_n, 0)
        loss = torch.logaddexp(exponent, torch.zeros(()).double())
        total += loss
        z = 1 - torch.exp(-loss)
        by_s_n = z * torch.softmax(logits_n, 0) * gamma * weight_n  # Eq. 9
        by_s_p = z * torch.softmax(logits_p, 0) * gamma * -weight_p  # Eq. 10
        for indices, by_s in ((positives, by_s_p), (negatives, by_s_n)):
            gradient[anchor] += by_s @ unit[indices]
            gradient[indices] += by_s[:, None] * unit[anchor]
    projected = gradient - unit * (gradient * unit).sum(1, keepdim=True)
    return total, projected / norms[:, None]


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("m", "gamma"), [(0.4, 80.0), (0.25, 256.0)])
def test_gradient_equals_equations_9_and_10(
    backend: str, regime: str, m: float, gamma: float
) -> None:
    embeddings, labels = REGIMES[regime](30, 7, torch.Generator().manual_seed(1))
    loss, gradient = equations_9_and_10(embeddings, labels, m, gamma)
    embeddings = embeddings.clone().requires_grad_()
    ours = circle_loss(embeddings, labels, m=m, gamma=gamma, reduction="sum", backend=backend)
    ours.backward()
    torch.testing.assert_close(ours, loss, rtol=1e-12, atol=1e-12)
    scale = max(gradient.abs().max().item(), gamma / embeddings.detach().norm(dim=1).min().item())
    torch.testing.assert_close(embeddings.grad, gradient, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("self_mode", [True, False])
def test_gradcheck_passes_undetached_and_fails_detached(backend: str, self_mode: bool) -> None:
    """With constant weights Eq. 9 and 10 are not the derivative of the loss, and must not be."""
    generator = torch.Generator().manual_seed(5)
    embeddings = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    ref_emb = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels, ref_labels = torch.arange(9) % 3, torch.arange(7) % 3

    def run(detach_weights: bool):
        formula = CircleFormula(m=0.25, gamma=4.0, detach_weights=detach_weights)

        def function(embeddings: Tensor, ref_emb: Tensor) -> Tensor:
            references = () if self_mode else (ref_emb, ref_labels)
            lse_pos, lse_neg = pair_logsumexp(
                embeddings, labels, *references, formula=formula, backend=backend
            )
            return torch.nn.functional.softplus(lse_pos + lse_neg).sum() + 0 * ref_emb.sum()

        return torch.autograd.gradcheck(function, (embeddings, ref_emb), raise_exception=False)

    assert run(detach_weights=False)
    assert not run(detach_weights=True)
