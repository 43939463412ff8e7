"""What is left to the library, or refused, and what is said then."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import distances, losses
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

from circle_kernels.integrations.pytorch_metric_learning import CircleLoss
from tests.integrations.pytorch_metric_learning.comparison import batch


def test_wrong_arguments_are_errors_as_in_the_library() -> None:
    embeddings, labels = batch("random", 8)
    for arguments in (
        (embeddings,),
        (embeddings, None, None, embeddings),
        (embeddings, labels[:, None]),
        (embeddings, labels[:5]),
        (embeddings[0], labels),
    ):
        for loss in (losses.CircleLoss(), CircleLoss()):
            with pytest.raises(ValueError, match=r"labels|embeddings"):
                loss(*arguments)
    with pytest.raises(AssertionError, match="CosineSimilarity"):
        CircleLoss(distance=distances.LpDistance())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"distance": lambda: distances.CosineSimilarity(p=1)}, "p=1"),
        ({"distance": lambda: distances.CosineSimilarity(power=2)}, "power=2"),
        ({"gamma": lambda: torch.tensor(80.0)}, "gamma"),
    ],
)
def test_what_cannot_be_fused_is_the_librarys_with_one_warning(settings, reason: str) -> None:
    embeddings, labels = batch("random", 40)
    ours = CircleLoss(**{name: make() for name, make in settings.items()})
    theirs = losses.CircleLoss(**{name: make() for name, make in settings.items()})
    with pytest.warns(UserWarning, match=reason) as caught:
        first, second = ours(embeddings, labels), ours(embeddings, labels)
    assert len(caught) == 1
    assert first == second == theirs(embeddings, labels)


def test_reason_that_holds_a_value_is_told_once() -> None:
    embeddings, labels = batch("random", 40)
    gamma = torch.nn.Parameter(torch.tensor(80.0))
    loss = CircleLoss(gamma=gamma)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            loss(embeddings, labels).backward()
            with torch.no_grad():
                gamma -= 0.1
        for power in (2, 3):  # of another kind, and so told
            loss.distance.power = power
            loss(embeddings, labels)
    words = [str(each.message) for each in caught]
    assert len(words) == 2
    assert "gamma must be a real number, got Parameter" in words[0]
    assert "power=2" in words[1]
    assert len(loss._warned) == 2
    assert gamma.grad != 0


def test_another_class_of_distance_is_the_librarys() -> None:
    class Doubled(distances.CosineSimilarity):
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return 2 * super().compute_mat(query_emb, ref_emb)

    embeddings, labels = batch("random", 40)
    with pytest.warns(UserWarning, match="Doubled"):
        loss = CircleLoss(distance=Doubled())(embeddings, labels)
    assert loss == losses.CircleLoss(distance=Doubled())(embeddings, labels)


def test_second_derivative_is_refused_with_what_has_one() -> None:
    embeddings, labels = batch("random", 24)
    few = lmu.get_all_pairs_indices(labels)
    for indices in (None, few, tuple(each[:4] for each in few)):
        leaf = embeddings.clone().requires_grad_()
        loss = CircleLoss()(leaf, labels, indices)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="pytorch-metric-learning's own CircleLoss"):
            gradient.square().sum().backward()
