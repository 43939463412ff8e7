"""Most similar classes and accuracy in chunks, against the whole matrix of similarities."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from circle_kernels import ClassCircleLoss, ClassUnifiedLoss
from circle_kernels.classes import prediction
from tests.classes.problems import for_every_head, head_like, problem


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of rows and chunks of classes, the last of them shorter."""
    monkeypatch.setattr(prediction, "_ENTRIES_AT_ONCE", 100)
    monkeypatch.setattr(prediction, "_ROWS_AT_ONCE", 15)


def ordered(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The definition: all classes in order, of equal ones the lower number first."""
    values, classes = similarities.sort(dim=1, descending=True, stable=True)
    return values[:, :k], classes[:, :k]


@for_every_head
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [1, 2, 5, 21])
def test_prediction_is_the_beginning_of_the_order(head_type: type, normalize: bool, k: int) -> None:
    embeddings, _, weight = problem()
    head = head_like(head_type, weight, normalize=normalize)
    similarities, classes = ordered(head.get_logits(embeddings) / head.gamma, k)
    top = head.predict(embeddings, k)
    assert torch.equal(top.classes, classes)
    torch.testing.assert_close(top.similarities, similarities, rtol=1e-12, atol=1e-12)
    assert not top.similarities.requires_grad


@pytest.mark.parametrize("k", range(1, 25))
def test_of_equally_similar_classes_the_lower_number_comes_first(k: int) -> None:
    """Products of small integers are exact, and many of them are equal, across chunks, too."""
    generator = torch.Generator().manual_seed(k)
    embeddings = torch.randint(-1, 2, (40, 3), generator=generator).float()
    weight = torch.randint(-1, 2, (24, 3), generator=generator).float()
    head = head_like(ClassCircleLoss, weight, normalize=False)
    similarities, classes = ordered(embeddings @ weight.T, k)
    top = head.predict(embeddings, k)
    assert torch.equal(top.similarities, similarities)
    assert torch.equal(top.classes, classes)


def test_one_class_is_predicted_by_default() -> None:
    embeddings, _, weight = problem()
    similarities, classes = head_like(ClassUnifiedLoss, weight).predict(embeddings)
    assert similarities.shape == classes.shape == (40, 1)
    assert classes.dtype == torch.int64


def test_no_rows() -> None:
    embeddings, labels, weight = problem(0)
    head = head_like(ClassCircleLoss, weight)
    assert [each.shape for each in head.predict(embeddings, 3)] == [(0, 3), (0, 3)]
    assert head.accuracy(embeddings, labels).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_compared_in_float32(dtype: torch.dtype) -> None:
    embeddings, labels, weight = (each.detach() for each in problem(d=64))
    half = embeddings.to(dtype)
    head = head_like(ClassCircleLoss, weight.to(dtype))
    wide = F.normalize(half.double()) @ F.normalize(head.weight.detach().double()).T
    with torch.autocast("cpu", torch.bfloat16):
        top = head.predict(half, 3)
        accuracy = head.accuracy(half, labels)
    assert top.similarities.dtype == torch.float32
    torch.testing.assert_close(top.similarities.double(), ordered(wide, 3)[0], rtol=0, atol=1e-6)
    assert torch.equal(top.classes, ordered(wide, 3)[1])
    assert accuracy == (wide.argmax(1) == labels).float().mean()


def test_similarities_are_never_all_in_memory() -> None:
    embeddings, labels, weight = problem(200, 300)
    head = head_like(ClassCircleLoss, weight)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and not result._is_view():
                largest = max(largest, result.numel())
            return result

    with Watch():
        head.predict(embeddings, 2)
        head.accuracy(embeddings, labels)
    assert 0 < largest <= 400  # (N, k), and far from 200 * 12 and 300 * 12


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_row_that_is_not_finite_has_similarities_nan_and_is_a_miss(value: float) -> None:
    embeddings, labels, weight = (each.detach() for each in problem())
    head = head_like(ClassCircleLoss, weight)
    labels = head.predict(embeddings).classes[:, 0]
    embeddings[3, 2] = value
    top = head.predict(embeddings, 3)
    assert torch.equal(top.similarities.isnan().all(1), torch.arange(40) == 3)
    assert top.classes[3].tolist() == [0, 1, 2]
    assert head.accuracy(embeddings, labels) == torch.tensor(39 / 40)
    head.weight.data[5, 1] = value
    top = head.predict(embeddings, 2)
    assert top.similarities[:, 0].isnan().all()
    assert (top.classes[torch.arange(40) != 3, 0] == 5).all()
    assert head.accuracy(embeddings, labels) == 0


@for_every_head
def test_accuracy_is_the_share_of_rows_nearest_to_their_class(head_type: type) -> None:
    embeddings, labels, weight = problem()
    head = head_like(head_type, weight)
    nearest = head.get_logits(embeddings).argmax(1)
    labels[::2] = nearest[::2]
    labels[::5] = -100
    kept = labels >= 0
    accuracy = head.accuracy(embeddings, labels)
    assert accuracy.dtype == torch.float32
    assert not accuracy.requires_grad
    assert accuracy == (nearest == labels)[kept].float().mean()
    assert 0.3 < accuracy < 0.9
    assert head.accuracy(embeddings, torch.full_like(labels, -100)).isnan()


def test_another_class_as_similar_makes_a_miss() -> None:
    embeddings = torch.eye(4)
    head = head_like(ClassCircleLoss, torch.eye(4)[[0, 1, 2, 2, 0]])
    assert head.accuracy(embeddings[1:2], torch.tensor([1])) == 1
    assert head.accuracy(embeddings[:3], torch.tensor([0, 1, 2])) == torch.tensor(1 / 3)
    assert head.accuracy(embeddings[:3], torch.tensor([4, 1, 3])) == torch.tensor(1 / 3)
    alone = head_like(ClassCircleLoss, torch.eye(4)[:1])
    assert alone.accuracy(-embeddings[:1], torch.tensor([0])) == 1


def test_label_out_of_range_that_nobody_saw_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels, weight = problem()
    head = head_like(ClassCircleLoss, weight)
    labels[4] = 21
    with pytest.raises(ValueError, match=r"labels must be in \[0, 21\)"):
        head.accuracy(embeddings, labels)
    monkeypatch.setattr("circle_kernels.classes.arguments.host_may_look", lambda tensor: False)
    assert head.accuracy(embeddings, labels).isnan()


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "k must be at least 1, got 0"),
        (22, ValueError, "k must be at most the 21 classes, got 22"),
        (1.0, TypeError, "k must be an integer, got float 1.0"),
    ],
)
def test_bad_number_of_classes_is_named(k: int, error: type[Exception], message: str) -> None:
    embeddings, _, weight = problem()
    with pytest.raises(error, match=re.escape(message)):
        head_like(ClassCircleLoss, weight).predict(embeddings, k)


def test_bad_tensors_are_named() -> None:
    embeddings, labels, weight = problem()
    head = head_like(ClassCircleLoss, weight)
    with pytest.raises(ValueError, match="weight must have as many columns as embeddings"):
        head.predict(embeddings[:, :3])
    with pytest.raises(TypeError, match="embeddings must be float16"):
        head.predict(labels[:, None])
    with pytest.raises(ValueError, match="labels must have one entry per row"):
        head.accuracy(embeddings, labels[1:])
    with pytest.raises(TypeError, match="embeddings and labels are swapped"):
        head.accuracy(labels, embeddings)
