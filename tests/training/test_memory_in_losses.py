"""Losses with an EmbeddingMemory are those of pytorch-metric-learning's CrossBatchMemory."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from circle_kernels import CircleLoss, EmbeddingMemory, circle_loss
from tests.distributed.processes import run_processes

DIM, SIZE = 6, 20
M, GAMMA = 0.4, 16.0
# Losses get the keyword in the same release.
losses_take_self_index = pytest.mark.skipif(
    "self_index" not in inspect.signature(circle_loss).parameters,
    reason="the losses do not take self_index yet",
)
STEPS = (7, 7, 7, 20, 3, 1, 13)  # of rows; the memory is full in the third


def batch(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    return embeddings.requires_grad_(), torch.randint(3, (rows,), generator=generator)


def masked_losses(
    embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, self_index: Tensor
) -> Tensor:
    """Circle losses of rows (Eq. 6) with the whole matrix, own copies left out."""
    similarity = F.normalize(embeddings) @ F.normalize(ref_emb).T
    weighted = similarity.detach()
    is_own = torch.arange(len(ref_emb)) == self_index[:, None]
    same = labels[:, None] == ref_labels
    logits_p = -GAMMA * (1 + M - weighted).clamp_min(0) * (similarity - (1 - M))
    logits_n = GAMMA * (weighted + M).clamp_min(0) * (similarity - M)
    lse_pos = logits_p.masked_fill(~same | is_own, -torch.inf).logsumexp(1)
    lse_neg = logits_n.masked_fill(same | is_own, -torch.inf).logsumexp(1)
    missing = lse_pos.isinf() | lse_neg.isinf()
    return F.softplus(lse_pos + lse_neg).masked_fill(missing, 0.0)


def gradient(loss: Tensor, embeddings: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, embeddings)
    assert found.abs().max() > 0
    return found


def test_masked_losses_are_those_of_the_library() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    reducers = pytest.importorskip("pytorch_metric_learning.reducers")
    loss = losses.CircleLoss(m=M, gamma=GAMMA, reducer=reducers.SumReducer())
    theirs = losses.CrossBatchMemory(loss, DIM, SIZE)
    memory = EmbeddingMemory(SIZE, DIM, dtype=torch.float64)
    for seed, rows in enumerate(STEPS):
        embeddings, labels = batch(rows, seed)
        expected = theirs(embeddings, labels)
        named = memory(embeddings, labels)
        ours = masked_losses(embeddings, labels, **named).sum()
        filled = memory.filled
        assert torch.equal(named["ref_emb"], theirs.embedding_memory[:filled])
        assert torch.equal(named["ref_labels"], theirs.label_memory[:filled])
        assert torch.equal(named["self_index"], theirs.curr_batch_idx)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
        for found, wanted in ((gradient(ours, embeddings), gradient(expected, embeddings)),):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@losses_take_self_index
@pytest.mark.parametrize("backend", ["cpu", "tiled", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_losses_take_what_the_memory_returns(backend: str, dtype: torch.dtype) -> None:
    criterion = CircleLoss(m=M, gamma=GAMMA, reduction="none", backend=backend)
    memory = EmbeddingMemory(SIZE, DIM, dtype=dtype)
    for seed, rows in enumerate((*STEPS, 31)):  # the last one is larger than the memory
        embeddings, labels = batch(rows, seed)
        named = memory(embeddings, labels)
        expected = masked_losses(
            embeddings, labels, **{**named, "ref_emb": named["ref_emb"].double()}
        )
        ours = criterion(embeddings, labels, **named)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            gradient(ours.sum(), embeddings),
            gradient(expected.sum(), embeddings),
            rtol=1e-8,
            atol=1e-8,
        )


@losses_take_self_index
def test_first_batch_is_compared_with_itself() -> None:
    embeddings, labels = batch(9, 0)
    named = EmbeddingMemory(SIZE, DIM, dtype=torch.float64)(embeddings, labels)
    ours = circle_loss(embeddings, labels, **named, m=M, gamma=GAMMA)
    expected = circle_loss(embeddings, labels, m=M, gamma=GAMMA)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])  # the first computes gradients at once
@pytest.mark.parametrize("backend", ["cpu", "tiled"])
def test_rows_enqueued_before_the_backward_pass_change_no_gradient(
    reduction: str, backend: str
) -> None:
    """As MoCo does, after the loss."""
    criterion = CircleLoss(m=M, gamma=GAMMA, reduction=reduction, backend=backend)
    found = []
    for enqueues in (False, True):
        memory = EmbeddingMemory(SIZE, DIM, dtype=torch.float64)
        memory.enqueue(*batch(SIZE, 1))
        embeddings, labels = batch(9, 2)
        loss = criterion(embeddings, labels, *memory.references()).sum()
        if enqueues:
            memory.enqueue(*batch(SIZE, 3))
        found.append(gradient(loss, embeddings))
    assert torch.equal(*found)


def _train_over_processes(rank: int) -> None:
    sizes = (5, 9)
    memory = EmbeddingMemory(SIZE, DIM, dtype=torch.float64, group="world")
    alone = EmbeddingMemory(SIZE, DIM, dtype=torch.float64)
    for seed in range(4):
        embeddings, labels = batch(sum(sizes), seed)
        own = slice(0, 5) if rank == 0 else slice(5, None)
        part = embeddings.detach()[own].requires_grad_()
        loss = masked_losses(part, labels[own], **memory(part, labels[own])).sum()
        expected = masked_losses(embeddings, labels, **alone(embeddings, labels)).sum()
        torch.testing.assert_close(
            gradient(loss, part), gradient(expected, embeddings)[own], rtol=1e-9, atol=1e-9
        )
        total = loss.detach().clone()
        dist.all_reduce(total)
        torch.testing.assert_close(total, expected.detach(), rtol=1e-9, atol=0)


def test_losses_of_all_processes_add_up_to_that_of_one() -> None:
    run_processes(2, _train_over_processes)
