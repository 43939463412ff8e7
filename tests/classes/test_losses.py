"""Class losses: the identities that define them, and ignored rows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels import ClassCircleLoss, class_circle_loss, class_unified_loss
from tests.classes.problems import (
    LOSSES,
    assert_same,
    for_every_head,
    for_every_loss,
    head_like,
    problem,
)
from tests.support.batches import value_and_gradients


def cross_entropy_by_hand(
    embeddings: Tensor, labels: Tensor, weight: Tensor, m: float, gamma: float, name: str
) -> Tensor:
    """Each row's loss as heads in use write it: margins at the target, then cross-entropy."""
    cosine = F.normalize(embeddings) @ F.normalize(weight).T
    target = F.one_hot(labels, len(weight)).bool()
    if name == "unified":  # CosFace
        logits = gamma * torch.where(target, cosine - m, cosine)
    else:
        weight_p = torch.relu(1 + m - cosine.detach())
        weight_n = torch.relu(cosine.detach() + m)
        logits = gamma * torch.where(target, weight_p * (cosine - (1 - m)), weight_n * (cosine - m))
    return F.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize(
    ("name", "m", "gamma"),
    [
        ("circle", 0.25, 256.0),
        ("circle", -0.1, 32.0),
        ("unified", 0.0, 64.0),  # NormFace
        ("unified", 0.35, 64.0),  # AM-Softmax
        ("unified", -0.2, 16.0),
    ],
)
def test_loss_is_the_cross_entropy_of_its_logits(name: str, m: float, gamma: float) -> None:
    embeddings, labels, weight = problem()
    ours = LOSSES[name](embeddings, labels, weight, m=m, gamma=gamma, reduction="none")
    expected = cross_entropy_by_hand(embeddings, labels, weight, m, gamma, name)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.linspace(0.5, 2, len(labels), dtype=torch.float64)
    gradients = [
        torch.autograd.grad(loss, (embeddings, weight), upstream) for loss in (ours, expected)
    ]
    assert_same(*gradients)


@for_every_head
@pytest.mark.parametrize("normalize", [True, False])
def test_logits_of_a_head_give_its_loss_and_gradient(head_type: type, normalize: bool) -> None:
    embeddings, labels, weight = problem()
    labels[::7] = -100
    head = head_like(head_type, weight, m=0.2, gamma=24.0, normalize=normalize)
    leaves = (embeddings, head.weight)
    logits = head.get_logits(embeddings, labels)
    assert logits.shape == (40, 21)
    assert_same(
        value_and_gradients(head(embeddings, labels), leaves),
        value_and_gradients(F.cross_entropy(logits, labels), leaves),
    )


def test_undetached_logits_give_the_full_derivative() -> None:
    embeddings, labels, weight = problem()
    head = head_like(ClassCircleLoss, weight, gamma=24.0, detach_weights=False)
    logits = head.get_logits(embeddings, labels)
    leaves = (embeddings, head.weight)
    ours = value_and_gradients(head(embeddings, labels), leaves)
    assert_same(ours, value_and_gradients(F.cross_entropy(logits, labels), leaves))
    detached = class_circle_loss(embeddings, labels, head.weight, gamma=24.0)
    assert not torch.allclose(ours[1], torch.autograd.grad(detached, embeddings)[0])


@for_every_head
def test_logits_without_labels_are_scaled_cosines(head_type: type) -> None:
    embeddings, _, weight = problem()
    head = head_like(head_type, weight)
    cosine = F.normalize(embeddings) @ F.normalize(weight).T
    torch.testing.assert_close(head.get_logits(embeddings), head.gamma * cosine)
    half = head.half().get_logits(embeddings.half())
    assert half.dtype == torch.float32  # at gamma 256 half precision has no digits left


@pytest.mark.parametrize("gamma", [1e3, 1e5])
def test_large_gamma_approaches_the_hard_triplet_loss(gamma: float) -> None:
    """Eq. 3 of the paper: loss / gamma tends to [max s_n - min s_p + m]_+."""
    embeddings, labels, weight = (value.detach() for value in problem())
    embeddings[::2] = weight[labels[::2]]  # half of the rows are where they belong
    m = 0.1
    losses = class_unified_loss(embeddings, labels, weight, m=m, gamma=gamma, reduction="none")
    cosine = F.normalize(embeddings) @ F.normalize(weight).T
    target = F.one_hot(labels, 21).bool()
    hardest = cosine.masked_fill(target, -math.inf).max(1).values
    triplet = torch.relu(hardest - cosine[target] + m)
    assert (triplet == 0).any()
    assert (triplet > 0).any()
    # A log-sum-exp of 20 exponents exceeds its largest by no more than log 20.
    bound = math.log(21) / gamma
    assert ((losses / gamma - triplet).abs() <= bound).all()


@for_every_loss
def test_ignored_rows_have_no_loss_and_no_gradient(name: str) -> None:
    embeddings, labels, weight = problem()
    for ignore_index in (-100, 3):
        changed = labels.clone()
        changed[5:15] = ignore_index
        kept = changed != ignore_index
        for reduction in ("none", "mean", "sum", "mean_all"):
            loss = LOSSES[name](
                embeddings, changed, weight, reduction=reduction, ignore_index=ignore_index
            )
            ours = value_and_gradients(loss, (embeddings, weight))
            alone = LOSSES[name](embeddings[kept], changed[kept], weight, reduction="none")
            if reduction == "none":
                assert (ours[0][~kept] == 0).all()
                ours[0] = ours[0][kept]
            elif reduction == "mean_all":
                alone = alone.sum() / len(labels)
            else:
                alone = getattr(alone, reduction)()
            assert (ours[1][~kept] == 0).all()
            assert_same(ours, value_and_gradients(alone, (embeddings, weight)))


@for_every_loss
@pytest.mark.parametrize("num_classes", [1, 5])
@pytest.mark.parametrize("n", [0, 3])
def test_nothing_to_compare_is_zero_attached_to_the_graph(
    name: str, num_classes: int, n: int
) -> None:
    """No rows; all rows ignored; one class and so no negatives."""
    embeddings, labels, weight = problem(n, num_classes)
    labels = torch.full_like(labels, 0 if num_classes == 1 else -100)
    loss, *gradients = value_and_gradients(
        LOSSES[name](embeddings, labels, weight), (embeddings, weight)
    )
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_narrower_embeddings_are_widened_to_the_weight() -> None:
    """As under autocast: the network's output is half, the parameter is not."""
    embeddings, labels, weight = (value.detach() for value in problem())
    half, weight = embeddings.bfloat16().requires_grad_(), weight.float()
    loss = class_circle_loss(half, labels, weight)
    assert torch.equal(loss, class_circle_loss(half.float(), labels, weight))
    loss.backward()
    assert half.grad.dtype == torch.bfloat16
