"""The recipes of docs/recipes.md, as they stand there, against the formulas they stand for."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from circle_kernels import ClassUnifiedLoss, SparseSGD
from tests.distributed.processes import run_processes
from tests.losses.single_file_form import expected_loss, similarities
from tests.support.places import ROOT

PAGE = ROOT / "docs" / "recipes.md"
RECIPES = dict(
    re.findall(r"^## ([^\n]+)\n.*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.M | re.S)
)


def run(title: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(RECIPES[title], namespace)
    return namespace


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Two of the rows have no positive."""
    torch.manual_seed(0)
    labels = torch.cat([torch.arange(20) % 5, torch.tensor([5, 6])])
    return torch.randn(22, 8, dtype=torch.float64, requires_grad=True), labels


def assert_same(ours: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    gradients = (torch.autograd.grad(loss, leaves) for loss in (ours, expected))
    for our_gradient, gradient in zip(*gradients, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(our_gradient, gradient, rtol=1e-8, atol=1e-8)


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    return F.normalize(rows) @ F.normalize(columns).T


def row_exponents(
    similarity: Tensor, same: Tensor, other: Tensor, m: float, gamma: float, *, detach: bool
) -> Tensor:
    """Both log-sum-exps of each row, added; what is not in a set is pushed out of it by 1e8."""
    weighted = similarity.detach() if detach else similarity
    logits_p = -gamma * (1 + m - weighted).clamp_min(0) * (similarity - (1 - m))
    logits_n = gamma * (weighted + m).clamp_min(0) * (similarity - m)
    far = 99_999_999.0
    return torch.logsumexp(logits_p - far * ~same, 1) + torch.logsumexp(logits_n - far * ~other, 1)


def pair_losses(batch: tuple[Tensor, Tensor], m: float, gamma: float, *, detach: bool) -> Tensor:
    embeddings, labels = batch
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool)
    similarity = cosines(embeddings, embeddings)
    return F.softplus(row_exponents(similarity, same & ~itself, ~same, m, gamma, detach=detach))


def test_single_file_implementation(batch: tuple[Tensor, Tensor]) -> None:
    ours = run("The single-file implementation")["loss_of_batch"](*batch)
    assert_same(ours, expected_loss(*similarities(*batch), 0.25, 32), batch[0])


def test_pair_loss_of_fast_reid(batch: tuple[Tensor, Tensor]) -> None:
    function = run("fast-reid: the pair loss")["pairwise_circleloss"]
    expected = pair_losses(batch, 0.25, 128, detach=True).mean()
    assert_same(function(*batch, margin=0.25, gamma=128), expected, batch[0])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_class_head_of_fast_reid(batch: tuple[Tensor, Tensor], label_smoothing: float) -> None:
    head_type = run("fast-reid: the class head")["CircleSoftmaxHead"]
    head = head_type(9, 8, scale=64, margin=0.35, label_smoothing=label_smoothing).double()
    embeddings, labels = batch
    similarity = cosines(embeddings, head.circle.weight)
    held = similarity.detach()
    target = F.one_hot(labels, 9)
    logits_p = (1.35 - held).clamp_min(0) * (similarity - 0.65)
    logits_n = (held + 0.35).clamp_min(0) * (similarity - 0.35)
    logits = 64 * (target * logits_p + (1 - target) * logits_n)
    expected = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    assert_same(head(*batch), expected, embeddings, head.circle.weight)


def test_margin_for_each_class(batch: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = batch
    weight = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    margins = torch.linspace(0.1, 0.5, 9, dtype=torch.float64).requires_grad_()
    ours = run("A margin for each class")["loss_with_margins"](embeddings, labels, weight, margins)
    target = F.one_hot(labels, 9)
    logits = 64 * (cosines(embeddings, weight) - target * margins)
    assert_same(ours, F.cross_entropy(logits, labels), embeddings, weight, margins)


def test_several_centers_for_each_class(batch: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = batch
    m, gamma = 0.35, 16.0
    weight = torch.randn(9, 3, 8, dtype=torch.float64, requires_grad=True)
    function = run("Several centres for each class")["loss_of_centers"]
    ours = function(embeddings, labels, weight, m=m, gamma=gamma)
    similarity = cosines(embeddings, weight.flatten(0, 1)).view(22, 9, 3)
    nearest = similarity.max(2).values
    own = F.one_hot(labels, 9).bool()
    # The target's nearest centre beside every centre of the other classes.
    others = similarity[~own].view(22, 8 * 3)
    logits = gamma * torch.cat([nearest[own][:, None] - m, others], dim=1)
    first = torch.zeros(22, dtype=torch.int64)
    assert_same(ours, F.cross_entropy(logits, first), embeddings, weight)
    # The paper's: each of the other classes by its nearest centre, log 3 below at most.
    paper = F.cross_entropy(gamma * (nearest - m * own), labels)
    assert paper < ours < paper + math.log(3)


@pytest.mark.parametrize(("m", "gamma"), [(0.4, 80.0), (0.25, 256.0), (-0.2, 32.0)])
def test_keras_differentiates_the_weights(
    batch: tuple[Tensor, Tensor], m: float, gamma: float
) -> None:
    losses = pair_losses(batch, m, gamma, detach=False)
    ours = run("Keras: circle loss")["keras_circle"](batch[1], batch[0], gamma, m)
    expected = losses.sum() / (losses > 0).sum()
    assert_same(ours, expected, batch[0])
    full, detached = (
        torch.autograd.grad(pair_losses(batch, m, gamma, detach=flag).sum(), batch[0])[0]
        for flag in (False, True)
    )
    assert not torch.allclose(full, detached, rtol=0.1)


def test_classes_and_pairs_together(batch: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = batch
    loss = run("Re-ID: classes and pairs together")["ReidLoss"](7, 8).double()
    pairs = expected_loss(*similarities(*batch), 0.25, 32) / 22
    classes = F.cross_entropy(loss.classifier(embeddings), labels)
    assert_same(loss(*batch), classes + pairs, embeddings, loss.classifier.weight)


def test_memory_of_earlier_batches(batch: tuple[Tensor, Tensor]) -> None:
    recipe = run("A memory of earlier batches")
    embeddings, labels = batch
    earlier, earlier_labels = torch.randn(13, 8, dtype=torch.float64), torch.arange(13) % 7
    with torch.no_grad():
        recipe["loss_with_memory"](earlier, earlier_labels)
    own = pair_losses(batch, 0.4, 80, detach=True)
    same = labels[:, None] == earlier_labels
    exponents = row_exponents(cosines(embeddings, earlier), same, ~same, 0.4, 80, detach=True)
    with_memory = F.softplus(exponents)
    expected = own.sum() / (own > 0).sum() + with_memory.sum() / same.any(1).sum()
    assert_same(recipe["loss_with_memory"](*batch), expected, embeddings)
    assert len(recipe["memory"].labels) == 13 + 22
    assert not recipe["memory"].embeddings.requires_grad


def _compare_with_wrapper(rank: int) -> None:
    from pytorch_metric_learning.losses import CircleLoss as TheirLoss
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    from circle_kernels.integrations.pytorch_metric_learning import CircleLoss as DropIn

    torch.manual_seed(0)
    rows, labels = torch.randn(14, 8, dtype=torch.float64), torch.arange(14) % 3
    own = slice(0, 7) if rank == 0 else slice(7, None)  # the wrapper takes even parts only
    weight = torch.eye(8, dtype=torch.float64, requires_grad=True)
    embeddings, labels = rows[own] @ weight, labels[own]
    ours = run("pytorch-metric-learning: DistributedLossWrapper")["loss_of_all_processes"]
    loss = ours(embeddings, labels)
    for each in (TheirLoss, DropIn):
        wrapped = DistributedLossWrapper(each(m=0.4, gamma=80))(embeddings, labels)
        torch.testing.assert_close(wrapped, 2 * loss, rtol=1e-9, atol=1e-9)
        theirs, expected = (
            torch.autograd.grad(each, weight, retain_graph=True)[0] for each in (wrapped, loss)
        )
        assert expected.abs().max() > 0
        torch.testing.assert_close(theirs, expected, rtol=1e-8, atol=1e-8)


def test_wrapper_for_distributed_losses_has_the_same_gradient_and_twice_the_value() -> None:
    pytest.importorskip("pytorch_metric_learning")
    run_processes(2, _compare_with_wrapper)


def _train_head_beside_ddp(rank: int) -> None:
    recipe = run("A class head beside DDP")
    torch.manual_seed(rank)  # the processes begin with other weights
    network = nn.Linear(8, 6)
    head = ClassUnifiedLoss(50, 6, gamma=16, sample_rate=0.2, sparse_grad=True)
    wrapped = recipe["wrap"](network, head)
    before = [parameter.detach().clone() for parameter in (network.weight, head.weight)]
    optimizers = [
        torch.optim.SGD(network.parameters(), lr=0.1),
        SparseSGD(head.parameters(), lr=0.1, momentum=0.9),
    ]
    for _ in range(4):
        labels = torch.randint(50, (7 + rank,))
        loss = recipe["train"](wrapped, head, optimizers, torch.randn(7 + rank, 8), labels)
        assert torch.isfinite(loss)
    for parameter, start in zip((network.weight, head.weight), before, strict=True):
        parts = [torch.empty_like(start) for _ in range(2)]
        dist.all_gather(parts, parameter.detach())
        assert torch.equal(*parts)
        assert not torch.equal(parts[0], start)


def test_class_head_beside_ddp_stays_in_step() -> None:
    run_processes(2, _train_head_beside_ddp)


def test_every_block_of_the_page_is_run_here() -> None:
    text = PAGE.read_text("utf-8")
    assert len(RECIPES) == text.count("```python") == text.count("\n## ")
    here = Path(__file__).read_text("utf-8")
    assert [title for title in RECIPES if f'run("{title}")' not in here] == []
