"""Gradients are computed where they are asked for, and are the same in every run."""

from __future__ import annotations

import pytest
import torch

from circle_kernels import CircleFormula, circle_loss, pair_logsumexp
from tests.support.batches import batch
from tests.support.cases import Case
from tests.support.targets import INTERPRETED, Target, for_every_backend
from tests.support.yardstick import gradients

pytestmark = pytest.mark.backends


@for_every_backend
@pytest.mark.parametrize("side", ["embeddings", "ref_emb"])
def test_gradient_to_one_side_only(target: Target, side: str) -> None:
    inputs = Case("random", n=20, m=14, d=6).tensors(torch.float32, target.device)
    both = gradients(
        *pair_logsumexp(*inputs, formula=CircleFormula(), backend=target.backend), inputs
    )
    frozen = 2 if side == "embeddings" else 0
    inputs[frozen] = inputs[frozen].detach()
    one = gradients(
        *pair_logsumexp(*inputs, formula=CircleFormula(), backend=target.backend), inputs
    )
    assert len(one) == 1
    assert torch.equal(one[0], both[0 if side == "embeddings" else 1])


@for_every_backend
def test_without_gradients_nothing_is_kept(target: Target) -> None:
    embeddings, labels = batch(device=target.device)
    with torch.no_grad():
        loss = circle_loss(embeddings, labels, backend=target.backend)
    assert not loss.requires_grad
    torch.testing.assert_close(
        loss, circle_loss(embeddings, labels, backend=target.backend).detach(), rtol=0, atol=0
    )


@pytest.mark.skipif(INTERPRETED, reason="one program after the other always adds up alike")
@for_every_backend
@pytest.mark.parametrize("d", [8, 300])
def test_results_are_bitwise_the_same_from_run_to_run(target: Target, d: int) -> None:
    for dtype in target.dtypes:
        embeddings, labels = batch(150, depth=d, dtype=dtype, device=target.device)
        runs = []
        for _ in range(3):
            loss = circle_loss(embeddings, labels, backend=target.backend)
            runs.append((loss, *torch.autograd.grad(loss, embeddings)))
        for loss, grad in runs[1:]:
            assert torch.equal(loss, runs[0][0])
            assert torch.equal(grad, runs[0][1])
