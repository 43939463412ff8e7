"""The public losses: scopes, reductions, identities, and the library that they replace."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import circle_kernels
from circle_kernels import (
    CircleFormula,
    CircleLoss,
    circle_loss,
    circle_loss_from_similarity,
    pair_logsumexp,
    unified_loss,
)
from tests.support import batches


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return batches.batch(
        40, 12, classes=12, random_labels=True, dtype=torch.float64, requires_grad=False
    )


def test_batch_scope_with_references_counts_every_pair(batch: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = batch
    rows, references = embeddings[:15], embeddings[15:]
    ours = circle_loss(rows, labels[:15], references, labels[15:], m=0.25, gamma=80, scope="batch")
    similarity = F.normalize(rows) @ F.normalize(references).T
    same = labels[:15, None] == labels[None, 15:]
    expected = circle_loss_from_similarity(similarity[same], similarity[~same], m=0.25, gamma=80)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_reductions_follow_from_the_losses_of_the_rows(batch: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = batch
    labels = labels.clone()
    labels[:4] = torch.arange(100, 104)  # rows without positives
    losses = circle_loss(embeddings, labels, reduction="none")
    counts = (labels[:, None] == labels[None, :]).sum(1)
    assert losses.shape == (40,)
    for reduction, expected in (
        ("sum", losses.sum()),
        ("mean_all", losses.mean()),
        ("mean", losses[counts > 1].mean()),
    ):
        torch.testing.assert_close(circle_loss(embeddings, labels, reduction=reduction), expected)


def test_from_similarity_is_equation_6() -> None:
    sp = torch.tensor([0.9, 0.2], dtype=torch.float64)
    sn = torch.tensor([0.5, -0.6, 0.1], dtype=torch.float64)
    m, gamma = 0.25, 16.0
    total = sum(
        math.exp(gamma * max(n + m, 0) * (n - m))
        * math.exp(-gamma * max(1 + m - p, 0) * (p - 1 + m))
        for p in sp.tolist()
        for n in sn.tolist()
    )
    loss = circle_loss_from_similarity(sp, sn, m=m, gamma=gamma)
    assert loss.item() == pytest.approx(math.log1p(total), rel=1e-12)


@pytest.mark.parametrize(("positives", "negatives"), [(0, 3), (3, 0), (0, 0)])
def test_from_similarity_without_pairs_is_zero(positives: int, negatives: int) -> None:
    sp = torch.rand(positives, requires_grad=True)
    sn = torch.rand(negatives, requires_grad=True)
    loss = circle_loss_from_similarity(sp, sn, m=0.25, gamma=80)
    loss.backward()
    assert loss == 0
    assert (sp.grad == 0).all()
    assert (sn.grad == 0).all()


def test_from_similarity_computes_half_types_in_float32() -> None:
    sp, sn = torch.rand(5).half(), torch.rand(7).half()
    loss = circle_loss_from_similarity(sp, sn, m=0.25, gamma=256)
    assert loss.dtype == torch.float32
    expected = circle_loss_from_similarity(sp.double(), sn.double(), m=0.25, gamma=256)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("m", [0.0, 0.35])
def test_unified_loss_with_one_positive_is_am_softmax(m: float) -> None:
    """AM-Softmax, and NormFace at m = 0: cross-entropy of scaled cosines."""
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(16, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(10, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (16,), generator=generator)
    logits = 64 * (F.normalize(embeddings) @ F.normalize(weight).T)
    logits[torch.arange(16), labels] -= 64 * m
    ours = unified_loss(
        embeddings, labels, weight, torch.arange(10), m=m, gamma=64, reduction="none"
    )
    expected = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_unified_loss_is_equation_1(batch: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = batch
    similarity = F.normalize(embeddings) @ F.normalize(embeddings).T
    ours = unified_loss(embeddings, labels, m=0.2, gamma=8, reduction="none")
    same = labels[:, None] == labels[None, :]
    for row in range(len(labels)):
        sp = similarity[row][same[row] & (torch.arange(len(labels)) != row)]
        sn = similarity[row][~same[row]]
        total = torch.exp(8 * (sn[:, None] - sp[None, :] + 0.2)).sum()
        torch.testing.assert_close(ours[row], torch.log1p(total), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("m", "gamma"), [(0.4, 80), (0.25, 256)])
def test_values_and_gradients_are_those_of_pytorch_metric_learning(m: float, gamma: float) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    generator = torch.Generator().manual_seed(4)
    embeddings = torch.randn(64, 16, generator=generator)
    labels = torch.arange(64) // 4
    results = []
    for loss in (losses.CircleLoss(m=m, gamma=gamma), CircleLoss(m=m, gamma=gamma)):
        leaf = embeddings.clone().requires_grad_()
        value = loss(leaf, labels)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    (theirs, their_grad), (ours, our_grad) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    scale = their_grad.abs().max().item()
    torch.testing.assert_close(our_grad, their_grad, rtol=0, atol=1e-4 * scale)


def test_module_passes_every_option_on(batch: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = batch
    for options in (
        {},
        {"m": 0.25, "gamma": 256},
        {"scope": "batch"},
        {"reduction": "none"},
        {"detach_weights": False},
        {"normalize": False},
        {"skip_below": 0.1},
        {"backend": "reference"},
    ):
        leaves = [embeddings.clone().requires_grad_() for _ in range(2)]
        values = [
            CircleLoss(**options)(leaves[0], labels),
            circle_loss(leaves[1], labels, **options),
        ]
        assert torch.equal(*values)
        grads = [
            torch.autograd.grad(value.sum(), leaf)[0]
            for value, leaf in zip(values, leaves, strict=True)
        ]
        assert torch.equal(*grads)


def test_module_takes_references(batch: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = batch
    loss = CircleLoss()
    assert torch.equal(
        loss(embeddings[:9], labels[:9], embeddings, labels),
        circle_loss(embeddings[:9], labels[:9], embeddings, labels),
    )


def test_module_can_be_copied_pickled_and_printed() -> None:
    loss = CircleLoss(0.25, 128, scope="batch", backend="tiled")
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(other) == repr(loss)
    assert "m=0.25, gamma=128, scope='batch'" in repr(loss)
    assert loss.state_dict() == {}


def test_hyper_parameters_can_be_changed_between_steps(batch: tuple[Tensor, Tensor]) -> None:
    loss = CircleLoss()
    loss.gamma = 32
    assert torch.equal(loss(*batch), circle_loss(*batch, gamma=32))


def test_large_gamma_does_not_overflow(batch: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = batch
    loss = circle_loss(embeddings.float(), labels, gamma=1e5)
    assert loss.isfinite()
    assert loss > 1e4


def test_available_backends_says_what_can_be_used_and_why_not() -> None:
    status = circle_kernels.available_backends()
    assert list(status) == ["triton", "cpu", "tiled", "reference"]
    for reason in status.values():
        assert reason.startswith(("usable: ", "not usable: "))
    assert status["tiled"].startswith("usable")
    assert status["cpu"].startswith("usable: C++ kernel for CPU tensors, instruction set ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="triton serves this machine")
def test_backend_that_cannot_serve_raises_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot serve .* on cpu: "):
        circle_loss(torch.randn(4, 2), torch.arange(4), backend="triton")


def test_pair_logsumexp_over_hand_counted_pairs() -> None:
    """Three unit vectors, two classes: every sum has one or two terms, written out."""
    embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([5, 5, -3])
    formula = CircleFormula(m=0.25, gamma=10.0)

    def z_p(s: float) -> float:
        return -10 * (1.25 - s) * (s - 0.75)

    def z_n(s: float) -> float:
        return 10 * (s + 0.25) * (s - 0.25)

    lse_pos, lse_neg = pair_logsumexp(embeddings, labels, formula=formula)
    assert lse_pos.tolist() == pytest.approx([z_p(0.6), z_p(0.6), -math.inf])
    assert lse_neg.tolist() == pytest.approx(
        [z_n(0.0), z_n(0.8), math.log(math.exp(z_n(0.0)) + math.exp(z_n(0.8)))]
    )


@pytest.mark.parametrize("reduction", ["mean", "mean_all", "sum", "none"])
@pytest.mark.parametrize("with_references", [False, True])
def test_fused_losses_are_what_log_sum_exps_give(reduction: str, with_references: bool) -> None:
    """row_losses.py and functional.py say the same; here also of rows without a positive."""
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    labels = torch.cat([torch.arange(30) // 3, torch.arange(100, 110)])
    arguments = [embeddings.requires_grad_(), labels]
    if with_references:
        references = torch.randn(25, 6, generator=generator, dtype=torch.float64)
        arguments += [references.requires_grad_(), torch.arange(25) // 5]
    formula = CircleFormula(m=0.25, gamma=64)
    lse_pos, lse_neg = pair_logsumexp(*arguments, formula=formula)
    losses = F.softplus(lse_pos + lse_neg, threshold=50.0)
    valid = ((lse_pos != -math.inf) & (lse_neg != -math.inf)).sum()
    expected = {
        "mean": losses.sum() / valid,
        "mean_all": losses.mean(),
        "sum": losses.sum(),
        "none": losses,
    }[reduction]
    loss = circle_loss(*arguments, m=0.25, gamma=64, reduction=reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)

    upstream = torch.rand(loss.shape, generator=generator, dtype=torch.float64)
    wanted = arguments[::2]
    ours, theirs = (torch.autograd.grad(value, wanted, upstream) for value in (loss, expected))
    for value, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-13)


def test_changing_embeddings_in_place_before_backward_is_an_error() -> None:
    embeddings, labels = torch.randn(8, 4), torch.arange(8) // 2
    inputs = embeddings.requires_grad_() * 1
    loss = circle_loss(inputs, labels)
    inputs += 1
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
