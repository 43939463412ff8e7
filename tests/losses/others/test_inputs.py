"""Dtypes, layouts, labels and traces of the other losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circle_kernels import losses
from tests.losses.others.naive import (
    OTHER_PAIR_LOSSES,
    PAIR_LOSSES,
    SIDE_LOSSES,
    assert_near,
    side_batch,
)
from tests.support.batches import batch_with_references, leaves_of, value_and_gradients

NAMES = [*OTHER_PAIR_LOSSES, *SIDE_LOSSES, "n-pairs"]
for_every_loss = pytest.mark.parametrize("name", NAMES)
HALF = [torch.float16, torch.bfloat16]


def n_pairs_loss(x: Tensor, labels: Tensor, **options) -> Tensor:
    return losses.n_pairs_loss(x, labels, **options)


def function_of(name: str) -> Callable[..., Tensor]:
    if name == "n-pairs":
        return n_pairs_loss
    return PAIR_LOSSES[name].function if name in PAIR_LOSSES else SIDE_LOSSES[name].function


def tensors_of(name: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    if name in SIDE_LOSSES:
        return side_batch(name, dtype=dtype)
    x, y, refs, ref_labels = batch_with_references(dtype=dtype)
    return [x, y] if name == "n-pairs" else [x, y, refs, ref_labels]


def results_of(name: str, tensors: list[Tensor], **options) -> list[Tensor]:
    return value_and_gradients(function_of(name)(*tensors, **options), leaves_of(tensors))


def _like(tensors: list[Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The matrices changed, as leaves."""
    return [
        change(each.detach()).requires_grad_() if each.is_floating_point() else each
        for each in tensors
    ]


@for_every_loss
@pytest.mark.parametrize("dtype", HALF)
def test_half_types_give_a_float32_loss_and_their_own_gradients(
    name: str, dtype: torch.dtype
) -> None:
    tensors = tensors_of(name, dtype)
    loss, *gradients = results_of(name, tensors)
    assert loss.dtype == torch.float32
    assert [each.dtype for each in gradients] == [dtype] * len(gradients)
    truth, *expected = results_of(name, _like(tensors, Tensor.double))
    assert_near(loss.double(), truth, 1e-5)
    for gradient, wanted in zip(gradients, expected, strict=True):
        largest = wanted.abs().max().item()
        assert_near(gradient.double() / largest, wanted / largest, torch.finfo(dtype).eps * 4)


@for_every_loss
@pytest.mark.parametrize("dtype", HALF)
def test_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    for given in (torch.float32, dtype):
        tensors = tensors_of(name, given)
        expected = results_of(name, tensors)
        with torch.autocast("cpu", dtype=dtype):
            loss = function_of(name)(*tensors)
        assert loss.dtype == torch.float32
        ours = value_and_gradients(loss, leaves_of(tensors))
        assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize("name", [each for each in NAMES if each != "n-pairs"])
def test_of_two_dtypes_the_wider_one_counts(name: str) -> None:
    tensors = tensors_of(name)
    tensors[2] = tensors[2].detach().float().requires_grad_()
    loss, *gradients = results_of(name, tensors)
    assert loss.dtype == torch.float64
    assert [each.dtype for each in gradients] == [torch.float64, torch.float32]
    expected = results_of(name, _like(tensors, Tensor.double))
    assert_near(loss, expected[0])


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.T.contiguous().T,
    "every second column": lambda x: torch.stack([x, -x], 2).flatten(1)[:, ::2],
    "backwards": lambda x: x.flip(0).as_strided(x.shape, x.stride()).flip(0),
    "every second row": lambda x: torch.stack([x, -x], 1).flatten(0, 1)[::2],
}


@for_every_loss
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_a_matrix_changes_nothing(name: str, layout: str) -> None:
    tensors = tensors_of(name)
    expected = results_of(name, tensors)
    changed = _like(tensors, LAYOUTS[layout])
    assert all(map(torch.equal, changed, tensors))
    for ours, truth in zip(results_of(name, changed), expected, strict=True):
        assert_near(ours, truth)


@pytest.mark.parametrize("name", [each for each in NAMES if each != "clip"])
@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64],
    ids=str,
)
def test_labels_of_any_integers_are_the_same_labels(name: str, dtype: torch.dtype) -> None:
    tensors = tensors_of(name)
    expected = results_of(name, tensors)
    changed = [each if each.is_floating_point() else each.to(dtype) for each in tensors]
    assert all(map(torch.equal, results_of(name, changed), expected))


@pytest.mark.parametrize("name", [*OTHER_PAIR_LOSSES, "n-pairs"])
def test_labels_of_any_value_name_classes(name: str) -> None:
    x, y, *_ = batch_with_references(dtype=torch.float64)
    ends = torch.iinfo(torch.int64)
    names = torch.tensor([ends.min, -3, ends.max])[y]
    first, second = (results_of(name, [x, labels]) for labels in (y, names))
    for ours, truth in zip(second, first, strict=True):
        assert_near(ours, truth)


@for_every_loss
@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_second_derivative_raises(name: str, backend: str) -> None:
    tensors = tensors_of(name)
    leaves = leaves_of(tensors)
    loss = function_of(name)(*tensors, backend=backend)
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    penalty = sum(each.square().sum() for each in gradients)
    with pytest.raises(RuntimeError, match="twice"):
        (loss + penalty).backward()


@for_every_loss
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradient_is_that_of_finite_differences(name: str, reduction: str) -> None:
    tensors = [
        each[:8].detach() if each.is_floating_point() else each[:8] for each in tensors_of(name)
    ]
    places = [place for place, each in enumerate(tensors) if each.is_floating_point()]
    if name != "clip":
        tensors[1] = tensors[1] % 3

    def function(*leaves: Tensor) -> Tensor:
        given = list(tensors)
        for place, leaf in zip(places, leaves, strict=True):
            given[place] = leaf
        return function_of(name)(*given, reduction=reduction)

    leaves = [tensors[place].requires_grad_() for place in places]
    assert torch.autograd.gradcheck(function, leaves, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [each for each in NAMES if each != "n-pairs"])
def test_compiled_as_one_graph_is_the_same(name: str) -> None:
    torch._dynamo.reset()
    step = torch.compile(function_of(name), fullgraph=True, backend="aot_eager")
    tensors = tensors_of(name)
    ours = value_and_gradients(step(*tensors), leaves_of(tensors))
    for value, truth in zip(ours, results_of(name, tensors), strict=True):
        assert_near(value, truth)


@pytest.mark.parametrize("name", OTHER_PAIR_LOSSES)
def test_compiled_without_references_is_the_same(name: str) -> None:
    torch._dynamo.reset()
    step = torch.compile(function_of(name), fullgraph=True, backend="aot_eager")
    tensors = tensors_of(name)[:2]
    ours = value_and_gradients(step(*tensors), leaves_of(tensors))
    for value, truth in zip(ours, results_of(name, tensors), strict=True):
        assert_near(value, truth)


def test_compiled_clip_loss_learns_its_scale() -> None:
    torch._dynamo.reset()
    step = torch.compile(losses.clip_loss, fullgraph=True, backend="aot_eager")
    images, _, texts = side_batch("clip")
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    leaves = [images, texts, scale]
    expected = value_and_gradients(losses.clip_loss(*leaves), leaves)
    for value, truth in zip(value_and_gradients(step(*leaves), leaves), expected, strict=True):
        assert_near(value, truth)
