"""``skip_below``: what a backend may leave out of the gradient, and no more."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels import CircleFormula, circle_loss, pair_logsumexp
from circle_kernels.backends import cpu

pytestmark = pytest.mark.sanitized

FORMULA = CircleFormula(m=0.25, gamma=256)


def confusable(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit embeddings of which few pairs carry nearly all weight, as training makes them."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n // 8, d, generator=generator).repeat_interleave(2, dim=0)
    centres = centres + 0.9 * torch.randn(n // 4, d, generator=generator)
    labels = torch.randperm(n // 4, generator=generator).repeat_interleave(4)
    noise = 0.4 * torch.randn(n, d, generator=generator)
    return F.normalize(centres[labels] + noise, dim=1), labels


# Nothing is skipped, by the code that skips; at 0 the kernel rounds elsewhere.
TOO_LITTLE = 1e-30


def gradients(inputs: list[Tensor | None], a: Tensor, b: Tensor, skip_below: float) -> list[Tensor]:
    lse_pos, lse_neg = pair_logsumexp(
        *inputs, formula=FORMULA, normalize=False, skip_below=skip_below, backend="cpu"
    )
    total = (a * lse_pos).nan_to_num(0).sum() + (b * lse_neg).nan_to_num(0).sum()
    return list(torch.autograd.grad(total, [x for x in inputs[::2] if x is not None]))


@pytest.mark.parametrize("kept", [0, 10**9])
@pytest.mark.parametrize("skip_below", [2**-12, 0.01, 0.5])
@pytest.mark.parametrize("m", [None, 600])
def test_error_stays_below_the_documented_bound(
    m: int | None, skip_below: float, kept: int, monkeypatch
) -> None:
    """The bound of docs/derivation.md: share times steepest slope times upstream gradients."""
    monkeypatch.setattr(cpu, "KEPT_BYTES", kept)
    embeddings, labels = confusable(1200, 96)
    rows, row_labels, references, ref_labels = embeddings, labels, None, None
    if m is not None:
        rows, references = embeddings[:-m], embeddings[-m:].clone().requires_grad_()
        row_labels, ref_labels = labels[:-m], labels[-m:]
    rows = rows.clone().requires_grad_()
    generator = torch.Generator().manual_seed(5)
    a, b = torch.rand(2, len(rows), generator=generator)
    inputs = [rows, row_labels, references, ref_labels]
    exact = gradients(inputs, a, b, TOO_LITTLE)
    ours = gradients(inputs, a, b, skip_below)

    columns = len(rows) if m is None else m
    slope = FORMULA.max_slope()
    own = skip_below * slope * (a + b)  # what a row loses of its own sums
    others = skip_below / columns * slope * (a + b).sum()  # what an embedding loses as a column
    bounds = [own + others] if m is None else [own, others.expand(columns)]
    dropped = False
    for value, expected, bound in zip(ours, exact, bounds, strict=True):
        error = (value - expected).norm(dim=1)
        rounding = 1e-5 * expected.norm(dim=1).max()
        assert bool((error <= bound + rounding).all())
        dropped |= not torch.equal(value, expected)
    assert dropped, "nothing was dropped: the test shows nothing"


def test_even_weights_leave_nothing_to_skip() -> None:
    """Every pair has about an equal share; only pairs with a quarter of one may go."""
    embeddings, labels = confusable(384, 64)
    embeddings.requires_grad_()
    results = []
    for skip_below in (TOO_LITTLE, 0.25):
        loss = circle_loss(embeddings, labels, gamma=0.1, skip_below=skip_below, backend="cpu")
        results += torch.autograd.grad(loss, embeddings)
    assert torch.equal(results[0], results[1])


def test_loss_is_exact_whatever_is_skipped() -> None:
    embeddings, labels = confusable(400, 64)
    losses = [circle_loss(embeddings, labels, skip_below=share) for share in (0.0, 0.9)]
    assert losses[0] == losses[1]


def test_rows_without_a_gradient_cost_nothing_and_change_nothing() -> None:
    """Tiles without any upstream gradient are left out, also without ``skip_below``."""
    embeddings, labels = confusable(800, 32)
    embeddings.requires_grad_()
    upstream = torch.zeros(800)
    upstream[300:310] = 1.0
    results = []
    for backend in ("cpu", "tiled"):
        losses = circle_loss(embeddings, labels, reduction="none", backend=backend)
        results += torch.autograd.grad(losses, embeddings, upstream)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["embeddings", "upstream"])
def test_nan_is_never_skipped(where: str) -> None:
    embeddings, labels = confusable(400, 32)
    upstream = torch.ones(400)
    (embeddings[7] if where == "embeddings" else upstream[7:8]).fill_(float("nan"))
    embeddings.requires_grad_()
    losses = circle_loss(embeddings, labels, reduction="none", skip_below=0.9, backend="cpu")
    (gradient,) = torch.autograd.grad(losses, embeddings, upstream)
    assert bool(gradient.isnan().all())
