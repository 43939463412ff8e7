"""Training in mixed precision: autocast, and gradients scaled up so that float16 can hold them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from circle_kernels import CircleFormula, CircleLoss, circle_loss
from circle_kernels.reference import pair_logsumexp_reference
from tests.support.batches import batch
from tests.support.regimes import REGIMES
from tests.support.targets import Target, for_every_backend

pytestmark = pytest.mark.backends

LOSS_SCALE = 65536.0  # what torch.amp.GradScaler begins with


def naive_gradients(embeddings: Tensor, labels: Tensor, formula: CircleFormula) -> Tensor:
    """Of the scaled sum over rows: float32 throughout, and float16 only at the very end."""
    leaf = embeddings.detach().float().requires_grad_()
    lse_pos, lse_neg = pair_logsumexp_reference(leaf, labels, None, None, formula=formula)
    loss = nn.functional.softplus(lse_pos + lse_neg).sum()
    return torch.autograd.grad(loss * LOSS_SCALE, leaf)[0]


@for_every_backend
@pytest.mark.parametrize("regime", ["random", "collapsed", "duplicates_and_antipodes"])
def test_scaled_loss_overflows_only_where_naive_float32_does(target: Target, regime: str) -> None:
    if torch.float16 not in target.dtypes:
        pytest.skip("this level adds bfloat16 products only")
    formula = CircleFormula(m=0.25, gamma=256)
    values, labels = REGIMES[regime](67, 24, torch.Generator().manual_seed(1))
    # Short embeddings have gradients that float16 cannot hold, of long ones it holds all.
    for length in (0.1, 1e3):
        embeddings = (length * nn.functional.normalize(values)).half().to(target.device)
        embeddings, labels = embeddings.requires_grad_(), labels.to(target.device)
        expected = naive_gradients(embeddings, labels, formula)
        options = {"m": formula.m, "gamma": formula.gamma, "backend": target.backend}
        loss = circle_loss(embeddings, labels, reduction="sum", **options)
        (ours,) = torch.autograd.grad(loss * LOSS_SCALE, embeddings)
        assert not ours.isnan().any()
        # Within rounding of the largest number either may be on the other side of it.
        fits = expected.abs() < 0.99 * torch.finfo(torch.float16).max
        assert ours[fits].isfinite().all()


@for_every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_under_autocast_with_a_grad_scaler(target: Target, dtype: torch.dtype) -> None:
    """The loss takes embeddings as the network gives them; the scaler finds a scale; it falls."""
    if dtype not in target.dtypes:
        pytest.skip(f"{target} does not take {dtype}")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16)).to(target.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(target.device, init_scale=LOSS_SCALE)
    loss_function = CircleLoss(m=0.25, gamma=64, backend=target.backend)
    labels = (torch.arange(16) // 4).to(target.device)
    inputs = torch.randn(4, 12)[labels.cpu()] + 0.3 * torch.randn(16, 12)
    inputs, losses, steps = inputs.to(target.device), [], 0
    for _ in range(20):
        with torch.autocast(target.device, dtype=dtype):
            embeddings = network(inputs)
            loss = loss_function(embeddings, labels)
        assert embeddings.dtype == dtype
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        steps += scaler.get_scale() >= scale
    assert steps >= 5  # the others were skipped while the scale was still too high
    assert losses[-1] < losses[0] / 2


@for_every_backend
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_nothing_down(target: Target, autocast_dtype: torch.dtype) -> None:
    embeddings, labels = batch(40, depth=16, device=target.device)
    expected = circle_loss(embeddings, labels, backend=target.backend)
    (expected_grad,) = torch.autograd.grad(expected, embeddings)
    with torch.autocast(target.device, dtype=autocast_dtype):
        loss = circle_loss(embeddings, labels, backend=target.backend)
        assert loss.dtype == torch.float32
        (grad,) = torch.autograd.grad(loss, embeddings)
    assert torch.equal(loss, expected)
    assert torch.equal(grad, expected_grad)
