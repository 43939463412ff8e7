"""Memory of the C++ kernel: how much, whose, and shapes that none holds."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from bench.classes.heads import HeadCase
from bench.measuring.memory import peak_of_child
from circle_kernels import circle_loss, pair_logsumexp
from circle_kernels.backends import cpu
from tests.backends.cpu.steps import FORMULA, NEEDS_KERNEL, batch, results

pytestmark = NEEDS_KERNEL


def test_many_classes_take_little_memory() -> None:
    """Less than a third of the weight, of which a copy would be all; in a fresh process."""
    case = HeadCase(rows=900, classes=200_000, dim=128)
    peak = peak_of_child("bench.classes.command", "cpu", json.dumps(case.as_dict()))
    assert peak.bytes < 200_000 * 128 * 4 / 3


def test_memory_for_the_backward_pass_serves_the_next_step_too() -> None:
    """Clearing new pages at every step took a fifth of the forward pass."""
    inputs = batch(700, 8)
    addresses = set()
    for _ in range(5):
        statistics = pair_logsumexp(*inputs, formula=FORMULA, backend="cpu")
        node = statistics[0].grad_fn
        saved = max((t for t in node.saved_tensors if t is not None), key=Tensor.numel)
        addresses.add(saved.data_ptr())
        del statistics, node, saved
    assert len(addresses) == 1


def test_steps_in_flight_do_not_share_memory() -> None:
    """Several losses before their backward passes, as with gradient accumulation."""
    batches = [batch(n, 16, seed=n) for n in (300, 700, 300)]
    expected = [results(inputs) for inputs in batches]
    losses = [pair_logsumexp(*inputs, formula=FORMULA, backend="cpu") for inputs in batches]
    for inputs, statistics, (_, _, gradient) in zip(batches, losses, expected, strict=True):
        weights = torch.linspace(0.5, 2, 2 * len(inputs[0])).view(2, -1)
        total = (
            weights * torch.stack(statistics).masked_fill(torch.stack(statistics).isinf(), 0)
        ).sum()
        torch.testing.assert_close(torch.autograd.grad(total, inputs[0])[0], gradient)


def test_nothing_is_kept_where_no_backward_pass_can_follow(monkeypatch) -> None:
    """For a leaf that requires a gradient, too; a batch with a backward pass of its own."""
    sizes = []
    new_saved = cpu._new_saved
    monkeypatch.setattr(
        cpu, "_new_saved", lambda extension, size: sizes.append(size) or new_saved(extension, size)
    )
    embeddings, labels = batch(300, 16)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            circle_loss(embeddings, labels)
            circle_loss(embeddings, labels, scope="batch")
            circle_loss(embeddings, labels, embeddings, labels)
    circle_loss(embeddings.detach(), labels)
    assert sizes == [0] * 7
    circle_loss(embeddings, labels)
    assert sizes[-1] > 300 * 300 * 4 / 2


@pytest.mark.parametrize("shape", [(2, 2**58), (2, 2**60), (3, 2**54), (2, 2**40)])
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_shapes_that_no_memory_holds_raise(shape, references: bool, gradient: bool) -> None:
    """A view of one number, whose size in bytes overflows or nearly does."""
    rows = torch.zeros(1, requires_grad=gradient).expand(shape)
    inputs = [rows, torch.zeros(shape[0], dtype=torch.int64)]
    with pytest.raises((MemoryError, ValueError), match="memory"):
        circle_loss(*inputs, *(inputs if references else ()), backend="cpu")
