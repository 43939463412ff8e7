"""Label smoothing without logits, against the cross-entropy of the logits."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels import (
    ClassCircleLoss,
    ClassUnifiedLoss,
    UnifiedFormula,
    circle_loss,
    class_circle_loss,
    class_unified_loss,
)
from circle_kernels.classes import smoothing
from circle_kernels.classes.losses import class_logits
from tests.classes.problems import assert_same, head_like, problem
from tests.support.batches import value_and_gradients

REDUCTIONS = ("mean", "mean_all", "sum", "none")
SETTINGS = {"m": 0.35, "gamma": 24.0}


def by_cross_entropy(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    m: float,
    gamma: float,
    label_smoothing: float,
    reduction: str = "mean",
    normalize: bool = True,
) -> Tensor:
    formula = UnifiedFormula(m=m, gamma=gamma)
    logits = class_logits(embeddings, labels, weight, formula=formula, normalize=normalize)
    over_all = reduction == "mean_all"
    loss = F.cross_entropy(
        logits,
        labels,
        reduction="sum" if over_all else reduction,
        label_smoothing=label_smoothing,
    )
    return loss / len(labels) if over_all else loss


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts of a small weight, the last of them shorter."""
    monkeypatch.setattr(smoothing, "_ENTRIES_AT_ONCE", 100)


@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.1, 1.0])
def test_smoothed_loss_is_the_cross_entropy_of_its_logits(
    label_smoothing: float, reduction: str, normalize: bool, backend: str
) -> None:
    embeddings, labels, weight = problem()
    labels[::7] = -100
    options = {
        **SETTINGS,
        "reduction": reduction,
        "normalize": normalize,
        "label_smoothing": label_smoothing,
    }
    ours = class_unified_loss(embeddings, labels, weight, backend=backend, **options)
    leaves = (embeddings, weight)
    expected = value_and_gradients(by_cross_entropy(embeddings, labels, weight, **options), leaves)
    assert_same(value_and_gradients(ours, leaves), expected)


@pytest.mark.parametrize("m", [0.0, -0.2, 9.0])
def test_margin_counts_for_all_classes_but_the_own_one(m: float) -> None:
    embeddings, labels, weight = problem(9, 3)
    options = {"m": m, "gamma": 8.0, "label_smoothing": 0.3}
    leaves = (embeddings, weight)
    ours = value_and_gradients(class_unified_loss(embeddings, labels, weight, **options), leaves)
    expected = value_and_gradients(by_cross_entropy(embeddings, labels, weight, **options), leaves)
    assert_same(ours, expected)


def test_without_smoothing_nothing_changes() -> None:
    tensors = problem()
    plain = class_unified_loss(*tensors, **SETTINGS)
    assert torch.equal(class_unified_loss(*tensors, **SETTINGS, label_smoothing=0.0), plain)
    assert class_unified_loss(*tensors, **SETTINGS, label_smoothing=0.1) != plain


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("num_classes", [1, 5])
def test_nothing_to_compare_stays_zero(n: int, num_classes: int) -> None:
    """No rows; all rows ignored; one class, which is all of the smoothed labels, too."""
    embeddings, labels, weight = problem(n, num_classes)
    labels = torch.full_like(labels, 0 if num_classes == 1 else -100)
    loss = class_unified_loss(embeddings, labels, weight, **SETTINGS, label_smoothing=0.2)
    loss, *gradients = value_and_gradients(loss, (embeddings, weight))
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_zero_and_huge_rows_are_those_of_the_loss() -> None:
    """A row of zeros has similarities 0; the squares of others would overflow."""
    embeddings, labels, weight = (value.detach().float() for value in problem())
    labels = labels.long()
    for side in (embeddings, weight):
        side[1] = 0
        side[2] *= 2.0**100
    inputs = [embeddings.requires_grad_(), labels, weight.requires_grad_()]
    loss = class_unified_loss(*inputs, **SETTINGS, label_smoothing=0.2)
    ours = value_and_gradients(loss, inputs[::2])
    wide = [inputs[0].detach().double(), labels, inputs[2].detach().double()]
    leaves = [value.requires_grad_() for value in wide[::2]]
    truth = by_cross_entropy(*wide, **SETTINGS, label_smoothing=0.2)
    expected = value_and_gradients(truth, leaves)
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=1e-6, atol=0)
    for ours_rows, rows in zip(ours[1:], expected[1:], strict=True):
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-38)  # rows differ by 2^100
        torch.testing.assert_close(ours_rows / scale, rows / scale, rtol=0, atol=2e-5,
                                   check_dtype=False)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_types_are_computed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    embeddings, labels, weight = (value.detach() for value in problem(d=64))
    half = [embeddings.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
    wide = [value.detach().double().requires_grad_() for value in half]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = class_unified_loss(half[0], labels, half[1], **SETTINGS, label_smoothing=0.2)
    assert loss.dtype == torch.float32
    expected = by_cross_entropy(wide[0], labels, wide[1], **SETTINGS, label_smoothing=0.2)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    loss.backward()
    for ours, truth in zip(half, torch.autograd.grad(expected, wide), strict=True):
        assert ours.grad.dtype == dtype
        scale = truth.abs().max().item()
        digits = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours.grad.double(), truth, rtol=0, atol=digits * scale)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 2])
def test_row_that_is_not_finite_makes_what_saw_it_nan(value: float, side: int) -> None:
    tensors = [each.detach() for each in problem()]
    tensors[side][3, 2] = value
    losses = class_unified_loss(*tensors, **SETTINGS, reduction="none", label_smoothing=0.2)
    seen = torch.arange(40) == 3 if side == 0 else torch.ones(40, dtype=torch.bool)
    assert torch.equal(losses.isnan(), seen)


@pytest.mark.parametrize("frozen", [0, 2])
def test_side_without_gradient_is_left_alone(frozen: int) -> None:
    tensors = problem()
    leaf = tensors[2 - frozen]
    tensors[frozen].requires_grad_(False)
    options = {**SETTINGS, "label_smoothing": 0.2}
    ours = value_and_gradients(class_unified_loss(*tensors, **options), leaf)
    assert_same(ours, value_and_gradients(by_cross_entropy(*tensors, **options), leaf))


def test_weight_is_not_normalised_as_a_whole() -> None:
    """Beside the gradients nothing of the weight's size is made."""
    embeddings, _, weight = problem(3, 500)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and not result._is_view():
                sizes.append(result.numel())
            return result

    with Watch():
        sums = smoothing._SimilaritySums.apply(embeddings, weight, True)
    assert max(sizes) <= 100
    sizes.clear()
    with Watch():
        torch.autograd.grad(sums.sum(), (embeddings, weight))
    assert sum(size >= weight.numel() for size in sizes) == 1


def test_sparse_gradient_has_the_smoothing_in_it() -> None:
    embeddings, labels, weight = problem()
    options = {**SETTINGS, "label_smoothing": 0.2}
    class_unified_loss(embeddings, labels, weight, sparse_grad=True, **options).backward()
    assert weight.grad.is_sparse
    expected = torch.autograd.grad(by_cross_entropy(embeddings, labels, weight, **options), weight)
    assert_same([weight.grad.to_dense()], list(expected))


def test_label_out_of_range_is_nan_where_the_host_does_not_look() -> None:
    embeddings, labels, weight = (each.detach() for each in problem())
    labels[4] = 21
    loss = torch.compile(class_unified_loss, backend="eager", fullgraph=True)
    losses = loss(embeddings, labels, weight, **SETTINGS, reduction="none", label_smoothing=0.2)
    assert torch.equal(losses.isnan(), torch.arange(40) == 4)
    labels[4] = 20
    expected = by_cross_entropy(
        embeddings, labels, weight, **SETTINGS, reduction="none", label_smoothing=0.2
    )
    losses = loss(embeddings, labels, weight, **SETTINGS, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)


def test_second_derivative_is_refused_and_had_from_the_reference() -> None:
    embeddings, labels, weight = problem()
    options = {**SETTINGS, "label_smoothing": 0.2}
    loss = smoothing._SimilaritySums.apply(embeddings, weight, True).sum()
    (gradient,) = torch.autograd.grad(loss, embeddings, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.sum().backward()
    second = []
    for loss in (
        class_unified_loss(embeddings, labels, weight, backend="reference", **options),
        by_cross_entropy(embeddings, labels, weight, **options),
    ):
        (gradient,) = torch.autograd.grad(loss, embeddings, create_graph=True)
        second += [list(torch.autograd.grad(gradient.square().sum(), (embeddings, weight)))]
    assert_same(*second)


def test_batches_of_gradients_and_transforms_have_the_rows_gradients() -> None:
    embeddings, labels, weight = problem(6, 21)
    options = {**SETTINGS, "label_smoothing": 0.2, "reduction": "none"}
    losses = class_unified_loss(embeddings, labels, weight, **options)
    rows = torch.eye(6, dtype=torch.float64)
    leaves = (embeddings, weight)
    ours = torch.autograd.grad(losses, leaves, rows, is_grads_batched=True)
    expected = by_cross_entropy(embeddings, labels, weight, **options)
    expected = torch.autograd.grad(expected, leaves, rows, is_grads_batched=True)
    assert_same(list(ours), list(expected))
    transformed = torch.func.jacrev(
        lambda x, w: class_unified_loss(x, labels, w, **options), argnums=(0, 1)
    )(embeddings, weight)
    assert_same(list(transformed), list(expected))


def test_head_keeps_and_shows_the_smoothing() -> None:
    embeddings, labels, weight = problem()
    head = head_like(ClassUnifiedLoss, weight, **SETTINGS, label_smoothing=0.1)
    assert "label_smoothing=0.1" in repr(head)
    leaves = (embeddings, head.weight)
    expected = F.cross_entropy(head.get_logits(embeddings, labels), labels, label_smoothing=0.1)
    ours = value_and_gradients(head(embeddings, labels), leaves)
    assert_same(ours, value_and_gradients(expected, leaves))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be in [0, 1], got 1.5"),
        ({"label_smoothing": math.nan}, ValueError, "label_smoothing must be in [0, 1], got nan"),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing must be a real number, got str"),
        ({"label_smoothing": True}, TypeError, "label_smoothing must be a real number, got bool"),
        (
            {"label_smoothing": 0.1, "sample_rate": 0.5},
            ValueError,
            "got label_smoothing=0.1 with sample_rate=0.5",
        ),
    ],
)
def test_bad_smoothing_is_named(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        ClassUnifiedLoss(7, 5, **options)
    with pytest.raises(error, match=re.escape(message)):
        class_unified_loss(*problem(), **SETTINGS, **options)


def test_circle_loss_says_what_to_do_instead() -> None:
    embeddings, labels, weight = problem()
    for name, call in {
        "class_circle_loss": lambda **options: class_circle_loss(
            embeddings, labels, weight, **options
        ),
        "ClassCircleLoss": lambda **options: ClassCircleLoss(7, 5, **options),
        "circle_loss": lambda **options: circle_loss(embeddings, labels, **options),
    }.items():
        with pytest.raises(TypeError, match=rf"^{name}\(\) takes no label_smoothing: .*get_logits"):
            call(label_smoothing=0.1)
