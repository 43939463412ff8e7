"""What is left to the library, or refused, and what is said then."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

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
        ({"m": lambda: torch.tensor(0.4)}, "m must be"),
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
    loss = CircleLoss()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(5):
            loss.m = torch.tensor(0.4 - 0.1 * step)
            loss(embeddings, labels)
        for power in (2, 3):  # of another kind, and so told
            loss.distance.power = power
            loss(embeddings, labels)
    words = [str(each.message) for each in caught]
    assert len(words) == 2
    assert "m must be a real number, got Tensor" in words[0]
    assert "power=2" in words[1]
    assert len(loss._warned) == 2


@pytest.mark.parametrize("miner", [None, "short", "long"])
def test_learned_gamma_is_fused_and_learned(miner: str | None) -> None:
    embeddings, labels = batch("random", 40)
    embeddings = embeddings.detach().double()
    pairs = None
    if miner is not None:
        kept = 5 if miner == "short" else None
        pairs = tuple(each[:kept] for each in lmu.get_all_pairs_indices(labels))
    gradients = []
    for kind in (losses.CircleLoss, CircleLoss):
        gamma = torch.nn.Parameter(torch.tensor(32.0, dtype=torch.float64))
        rows = embeddings.clone().requires_grad_()
        loss = kind(gamma=gamma)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = loss(rows, labels, pairs)
        gradients.append([value, *torch.autograd.grad(value, (gamma, rows))])
    for ours, theirs in zip(*gradients[::-1], strict=True):
        # The library's softplus is linear from 20 on.
        torch.testing.assert_close(ours, theirs, rtol=2e-9, atol=1e-10)


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


def _doubled(rows: dict) -> dict:
    return {"loss": {**rows["loss"], "losses": 2 * rows["loss"]["losses"]}}


def _with_hook(loss):
    loss.reducer.register_forward_hook(lambda _, given, value: 2 * value)
    return loss


def _with_method(loss):
    compute = loss.compute_loss
    loss.compute_loss = lambda *arguments: _doubled(compute(*arguments))
    return loss


def _with_another_regularization(loss):
    class Shifted(type(loss)):
        def add_embedding_regularization_to_loss_dict(self, rows: dict, _: Tensor) -> None:
            rows["loss"]["losses"] = rows["loss"]["losses"] + 1

    return Shifted()


@pytest.mark.parametrize("change", [_with_hook, _with_method, _with_another_regularization])
def test_who_changes_what_the_library_calls_on_the_way_is_heard(change) -> None:
    embeddings, labels = batch("random", 40)
    ours, theirs = (change(kind())(embeddings, labels) for kind in (CircleLoss, losses.CircleLoss))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wrong", [lambda labels: labels.numpy(), lambda labels: labels.tolist()])
def test_labels_that_are_no_tensor_are_the_librarys_error(wrong) -> None:
    embeddings, labels = batch("random", 40)
    messages = []
    for kind in (CircleLoss, losses.CircleLoss):
        with pytest.raises(AttributeError) as raised:
            kind()(embeddings, wrong(labels))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_m_that_is_true_is_not_what_1_has_left() -> None:
    embeddings, labels = batch("random", 40)
    CircleLoss(m=1)(embeddings, labels)
    with pytest.warns(UserWarning, match="bool"), pytest.raises(RuntimeError):
        CircleLoss(m=True)(embeddings, labels)


@pytest.mark.filterwarnings("ignore")
def test_tracers_see_the_step() -> None:
    embeddings, labels = batch("random", 40)
    other = embeddings.flip(1) + 0.1
    expected = losses.CircleLoss()(other, labels)
    for trace in (make_fx, lambda f: lambda x: torch.jit.trace(f, (x,), check_trace=False)):
        traced = trace(lambda x: CircleLoss()(x, labels))(embeddings)
        torch.testing.assert_close(traced(other), expected)
