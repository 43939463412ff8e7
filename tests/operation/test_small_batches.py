"""A small batch, whose gradient is computed with its loss: the numbers are those of two passes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from circle_kernels import circle_loss, class_circle_loss
from circle_kernels.backends import cpu
from circle_kernels.operation import row_losses
from tests.support.batches import batch, batch_with_references, class_batch
from tests.support.targets import INTERPRETED

pytestmark = [
    pytest.mark.sanitized,
    pytest.mark.skipif(INTERPRETED, reason="the interpreter lane is for Triton"),
    pytest.mark.skipif(not cpu.supported_levels(), reason="no C++ kernel"),
]
PROBLEMS = {
    "self": lambda dtype: (circle_loss, batch(40, 12, dtype=dtype)),
    "references": lambda dtype: (
        circle_loss,
        batch_with_references(40, 12, references=99, dtype=dtype),
    ),
    "classes": lambda dtype: (class_circle_loss, class_batch(40, 12, classes=21, dtype=dtype)),
}
for_every_problem = pytest.mark.parametrize("problem", PROBLEMS)


def step(loss, tensors, upstream: float = 1.0, **options) -> list[Tensor]:
    """The loss and its gradients for the matrices."""
    value = loss(*tensors, **options)
    wanted = [each for each in tensors if each.requires_grad]
    scale = torch.tensor(upstream, dtype=value.dtype)
    return [value.detach(), *torch.autograd.grad(value, wanted, scale)]


def in_two_passes(monkeypatch: pytest.MonkeyPatch, *arguments, **options) -> list[Tensor]:
    with monkeypatch.context() as patched:
        patched.setattr(row_losses, "_SMALL", 0)
        return step(*arguments, **options)


@for_every_problem
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "mean_all", "sum"])
def test_numbers_are_those_of_two_passes(
    problem: str, dtype: torch.dtype, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, tensors = PROBLEMS[problem](dtype)
    for upstream in (1.0, -0.3, 1e20, 1e-20, 0.0):
        options = {"upstream": upstream, "reduction": reduction}
        ours, expected = (
            run(loss, tensors, **options)
            for run in (step, lambda *a, **o: in_two_passes(monkeypatch, *a, **o))
        )
        for value, other in zip(ours, expected, strict=True):
            rtol = 1e-5 if dtype == torch.float32 else 1e-12
            scale = other.abs().max().item()
            torch.testing.assert_close(value, other, rtol=0, atol=rtol * scale)


@for_every_problem
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_compiled_steps_scale_their_gradients_by_what_arrives(problem: str, reduction: str) -> None:
    """They compute them with the loss, whatever the size."""
    loss, tensors = PROBLEMS[problem](torch.float64)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for upstream in (1.0, -0.3):
        options = {"upstream": upstream, "reduction": reduction}
        for value, other in zip(
            step(compiled, tensors, **options), step(loss, tensors, **options), strict=True
        ):
            torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-13)


@for_every_problem
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_as_in_two_passes(
    problem: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, (first, *rest) = PROBLEMS[problem](torch.float32)
    with torch.no_grad():
        first[3, 0] = bad
    ours, expected = step(loss, (first, *rest)), in_two_passes(monkeypatch, loss, (first, *rest))
    for value, other in zip(ours, expected, strict=True):
        assert torch.equal(value.isnan(), other.isnan())


def test_half_types_and_losses_of_rows_take_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient in a half type, before it is scaled up, would be 0."""
    monkeypatch.setattr(cpu, "loss_and_gradients", None)  # not to be called
    for dtype in (torch.float16, torch.bfloat16):
        step(*PROBLEMS["self"](dtype))
    embeddings, labels = batch()
    circle_loss(embeddings, labels, reduction="none").sum().backward()
    with torch.no_grad():
        circle_loss(embeddings, labels)
    with pytest.raises(TypeError):
        circle_loss(embeddings, labels)


def test_only_the_gradients_that_are_needed_are_there() -> None:
    embeddings, labels, ref_emb, ref_labels = batch_with_references()
    for rows, references in ((embeddings, ref_emb.detach()), (embeddings.detach(), ref_emb)):
        for side in (embeddings, ref_emb):
            side.grad = None
        circle_loss(rows, labels, references, ref_labels).backward()
        assert (embeddings.grad is None) == (not rows.requires_grad)
        assert (ref_emb.grad is None) == (not references.requires_grad)


def test_a_graph_that_is_retained_gives_the_gradient_again() -> None:
    embeddings, labels = batch()
    loss = circle_loss(embeddings, labels)
    first, second = (torch.autograd.grad(loss, embeddings, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("changed", [Tensor.flatten, Tensor.double, lambda kept: kept[:1]])
def test_gradient_that_hooks_have_changed_is_refused(changed) -> None:
    embeddings, labels = batch()
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda kept: changed(kept) if kept.dtype == torch.uint8 else kept, lambda kept: kept
    )
    with hooks:
        loss = circle_loss(embeddings, labels)
    with pytest.raises(RuntimeError, match="hooks on saved tensors have to give back"):
        loss.backward()
