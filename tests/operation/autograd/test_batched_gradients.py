"""Gradients of many outputs at once, and of many problems at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from circle_kernels import CircleFormula, circle_loss, pair_logsumexp
from tests.support.batches import DEPTH, ROWS, batch_with_references, class_batch, leaves_of, randn
from tests.support.public_losses import (
    SAMPLED,
    assert_close,
    drop_in,
    for_every_list,
    head_rows,
    miners_tuple,
)
from tests.support.targets import Target, for_every_backend


@pytest.mark.backends
@for_every_backend
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients_are_those_taken_one_by_one(target: Target) -> None:
    if torch.float32 not in target.dtypes:
        pytest.skip("this level adds bfloat16 products only")
    tensors = batch_with_references(6, references=5, device=target.device)
    leaves = leaves_of(tensors)
    eye = torch.eye(6, device=target.device)
    for inputs in (tensors, tensors[:2]):
        wanted = leaves if len(inputs) == 4 else leaves[:1]
        rows = circle_loss(*inputs, gamma=16, reduction="none", backend=target.backend)
        batched = torch.autograd.grad(rows, wanted, eye, is_grads_batched=True, retain_graph=True)
        single = [torch.autograd.grad(row, wanted, retain_graph=True) for row in rows]
        assert_close(batched, [torch.stack(each) for each in zip(*single, strict=True)])
        statistics = pair_logsumexp(*inputs, formula=CircleFormula(), backend=target.backend)
        batched = torch.autograd.grad(
            statistics, wanted, (eye, 2 * eye), is_grads_batched=True, retain_graph=True
        )
        single = [
            torch.autograd.grad(statistics, wanted, (row, 2 * row), retain_graph=True)
            for row in eye
        ]
        assert_close(batched, [torch.stack(each) for each in zip(*single, strict=True)])


@pytest.mark.parametrize("backend", ["auto", "tiled"])
@pytest.mark.parametrize("options", SAMPLED, ids=str)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients_of_a_head_are_those_taken_one_by_one(
    options: dict, backend: str
) -> None:
    x, labels, weight = class_batch(classes=40)
    rows = head_rows(x, weight, labels, backend, **options)
    # A batch of sparse gradients is nothing that torch has.
    leaves = [x] if "sparse_grad" in options else [x, weight]
    eye = torch.eye(ROWS)
    batched = torch.autograd.grad(rows, leaves, eye, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(row, leaves, retain_graph=True) for row in rows]
    assert_close(batched, [torch.stack(each) for each in zip(*single, strict=True)])


@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_functional_gradient_of_a_head_is_the_gradient(options: dict) -> None:
    x, labels, weight = class_batch(classes=40)
    expected = torch.autograd.grad(head_rows(x, weight, labels, **options).mean(), (x, weight))
    transformed = grad(
        lambda *leaves: head_rows(*leaves, labels, **options).mean(), argnums=(0, 1)
    )(x.detach(), weight.detach())
    assert_close([each.to_dense() for each in transformed], [each.to_dense() for each in expected])


@pytest.mark.parametrize("options", SAMPLED, ids=str)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batch_of_problems_of_a_head_gives_each_its_gradient(options: dict) -> None:
    _, labels, weight = class_batch(classes=40)
    problems = torch.stack([randn(ROWS, DEPTH, seed=seed) for seed in range(3)])

    def gradient(x: Tensor) -> Tensor:
        return grad(lambda x: head_rows(x, weight.detach(), labels, **options).mean())(x)

    batched = vmap(gradient, randomness="same")(problems)
    assert_close([batched], [torch.stack([gradient(each) for each in problems])])


@for_every_list
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients_of_listed_pairs_are_those_taken_one_by_one(short: bool) -> None:
    x, labels, *_ = batch_with_references()
    rows = drop_in(rows=True)(x, labels, miners_tuple(short))
    batched = torch.autograd.grad(
        rows, x, torch.eye(ROWS), is_grads_batched=True, retain_graph=True
    )
    single = [torch.autograd.grad(row, x, retain_graph=True)[0] for row in rows]
    assert_close(batched, [torch.stack(single)])


@for_every_list
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_transforms_go_through_the_drop_in_with_a_tuple(short: bool) -> None:
    """But for the library's reducer, whose boolean mask vmap does not support."""
    _, labels, *_ = batch_with_references()
    rows, indices = drop_in(rows=True), miners_tuple(short)

    def loss(*tensors: Tensor | tuple[Tensor, ...]) -> Tensor:
        return rows(*tensors).sum()

    problems = torch.stack([randn(ROWS, DEPTH, seed=seed) for seed in range(3)])
    expected = []
    for each in problems:
        leaf = each.clone().requires_grad_()
        expected += torch.autograd.grad(loss(leaf, labels, indices), leaf)
    transformed = grad(lambda values: loss(values, labels, indices))
    assert_close([transformed(problems[0])], expected[:1])
    assert_close([vmap(transformed)(problems)], [torch.stack(expected)])
