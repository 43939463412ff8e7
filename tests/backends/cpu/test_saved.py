"""What the forward pass saves, where somebody changes, moves or compresses it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circle_kernels import circle_loss
from circle_kernels.backends import cpu
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from tests.backends.cpu.steps import (
    FORMULA,
    NEEDS_KERNEL,
    assert_equal,
    batch,
    results,
    two_passes,
)

pytestmark = NEEDS_KERNEL


@pytest.mark.parametrize(
    "change",
    [
        torch.zeros_like,
        lambda saved: saved[:-1],
        lambda saved: saved[:0],
        lambda saved: torch.cat([saved, saved]),
        lambda saved: saved.half().float(),
        lambda saved: saved.bfloat16().float(),
        lambda saved: saved.roll(16),
    ],
    ids=["zeros", "short", "empty", "long", "half", "bfloat16", "rolled"],
)
def test_saved_memory_that_was_changed_is_refused(change) -> None:
    for inputs in (batch(300, 8), batch(300, 8) + batch(99, 8, seed=1)):
        with pytest.raises(RuntimeError, match="what the forward pass saved was changed"):
            two_passes(inputs, change)


@pytest.mark.parametrize(
    "changes",
    [{"skip_below": 0.5}, {"embeddings": torch.ones(300, 7)}, {"embeddings": torch.ones(299, 8)}],
    ids=["skip_below", "dim", "rows"],
)
def test_saved_memory_of_another_problem_is_refused(changes) -> None:
    with pytest.raises(RuntimeError, match=r"does not belong to this problem: .* 300 rows"):
        two_passes(batch(300, 8), **changes)


@pytest.mark.parametrize("rows", [slice(299), slice(None)], ids=["rows", "references"])
def test_saved_sums_of_another_problem_are_refused(rows: slice) -> None:
    embeddings, labels, ref_emb, ref_labels = batch(300, 8) + batch(99, 8, seed=1)
    problem = PairProblem(embeddings.detach(), labels, None, None, FORMULA, True)
    other = problem._replace(embeddings=problem.embeddings[rows], labels=labels[rows])
    if rows == slice(None):
        other = other._replace(ref_emb=ref_emb.detach(), ref_labels=ref_labels)
    lse = torch.zeros(2, len(other.labels))
    saved = cpu.save(problem, *torch.zeros(2, 300))
    with pytest.raises(RuntimeError, match=r"does not belong to this problem: .* 300 rows"):
        cpu.backward(other, Passed(saved, *lse), Needs(embeddings=True, references=False))


def test_saved_memory_may_be_moved() -> None:
    """As hooks on saved tensors do, to where it is aligned to nothing."""

    def moved(saved: Tensor) -> Tensor:
        memory = torch.empty(saved.numel() + 1, dtype=saved.dtype)
        return memory[1:].view(saved.shape).copy_(saved)

    inputs = batch(300, 8)
    assert torch.equal(two_passes(inputs, moved), two_passes(inputs))
    expected = results(inputs)
    with torch.autograd.graph.saved_tensors_hooks(moved, lambda saved: saved):
        assert_equal(results(inputs), expected)


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize(
    ("name", "rows", "change"),
    [
        ("labels", 300, lambda saved: saved[:1]),
        ("labels", 300, Tensor.int),
        ("ref_labels", 99, lambda saved: saved[:1]),
        ("ref_labels", 99, Tensor.int),
    ],
)
def test_hooks_that_change_labels_are_refused(name: str, rows: int, change, backend: str) -> None:
    """The kernel would read behind their end."""

    def changed(saved: Tensor) -> Tensor:
        return change(saved) if saved.dtype == torch.int64 and len(saved) == rows else saved

    inputs = batch(300, 64) + batch(99, 64, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(changed, lambda saved: saved):
        loss = circle_loss(*inputs, backend=backend)
    with pytest.raises(RuntimeError, match=f"wants {name} to be int64"):
        loss.backward()


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
def test_hooks_that_narrow_one_side_are_refused(backend: str) -> None:
    """The kernel reads both as numbers of one size."""

    def narrowed(saved: Tensor) -> Tensor:
        return saved.half() if saved.shape == (99, 64) else saved

    inputs = batch(300, 64) + batch(99, 64, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(narrowed, lambda saved: saved):
        loss = circle_loss(*inputs, backend=backend)
    with pytest.raises(RuntimeError, match=r"wants ref_emb to be torch\.float32 of 64 columns"):
        loss.backward()


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize("gamma", [80.0, 1024.0])
def test_hooks_that_compress_what_is_saved_leave_gradients_finite(
    gamma: float, backend: str
) -> None:
    """Kept weights use the whole of float32's exponents, of which half precision has few; and what
    rounds a log-sum-exp scales its row's gradient by an exponential."""

    def halved(saved: Tensor) -> Tensor:
        return saved.half() if saved.is_floating_point() else saved

    def widened(saved: Tensor) -> Tensor:
        return saved.float() if saved.is_floating_point() else saved

    for references in ([], batch(99, 8, seed=1)):
        embeddings, *rest = batch(300, 8) + references
        with torch.autograd.graph.saved_tensors_hooks(halved, widened):
            loss = circle_loss(embeddings, *rest, gamma=gamma, backend=backend)
        (compressed,) = torch.autograd.grad(loss, embeddings)
        loss = circle_loss(embeddings.half().float(), *rest, gamma=gamma, backend=backend)
        (whole,) = torch.autograd.grad(loss, embeddings)
        # Rows are rounded to half precision in both, but log-sum-exps in neither.
        assert (compressed - whole).norm() < 0.5 * whole.norm()
