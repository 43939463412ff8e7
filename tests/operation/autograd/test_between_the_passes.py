"""What changes between the forward and the backward pass changes no gradient."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from circle_kernels.backends import choice, cpu
from tests.support.apart import apart
from tests.support.batches import batch_with_references, value_and_gradients
from tests.support.public_losses import (
    LOSSES,
    REFUSALS,
    assert_close,
    for_every_loss,
    listed_logsumexps,
    truth,
)


def result_or_refusal(compute: Callable[[], list[Tensor]]) -> tuple[list[Tensor], str | None]:
    try:
        return compute(), None
    except REFUSALS as error:
        return [], str(error)


@pytest.mark.parametrize("order", [("cpu", "tiled"), ("tiled", "cpu")], ids=str)
@apart
def test_backward_takes_the_backend_that_the_forward_chose(order: tuple[str, str]) -> None:
    tensors = batch_with_references()
    for name, loss in LOSSES.items():
        choice._BEST_BACKEND["cpu"] = order[0]
        output = loss(*tensors)
        choice._BEST_BACKEND["cpu"] = order[1]
        assert_close(value_and_gradients(output, tensors[::2]), truth(name, tensors))


@pytest.mark.parametrize("order", [("cpu", "tiled"), ("tiled", "cpu")], ids=str)
@apart
def test_backward_over_listed_pairs_takes_the_backend_that_the_forward_chose(
    order: tuple[str, str],
) -> None:
    x, _, references, _ = batch_with_references()
    wide = [each.detach().double().requires_grad_() for each in (x, references)]
    for short in (True, False):
        expected = value_and_gradients(torch.stack(listed_logsumexps(*wide, short)), wide)
        choice._BEST_BACKEND["cpu"] = order[0]
        output = torch.stack(listed_logsumexps(x, references, short))
        choice._BEST_BACKEND["cpu"] = order[1]
        assert_close(value_and_gradients(output, (x, references)), expected)


def in_two_levels(tensors: list[Tensor], first: str, second: str) -> list[Tensor]:
    """Loss and gradients, the forward pass with one instruction set and the backward with one."""
    os.environ[cpu.LEVEL_VARIABLE] = first
    output = LOSSES["circle"](*tensors)
    os.environ[cpu.LEVEL_VARIABLE] = second
    return value_and_gradients(output, tensors[::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@apart
def test_level_that_changes_between_the_passes_is_right_or_named(dtype: torch.dtype) -> None:
    """From each level that the machine has to each other one, and to and from one that it lacks."""
    levels = cpu.supported_levels()
    unknown = [("", "none such"), ("none such", "")]
    for first, second in [*unknown, *((a, b) for a in levels for b in levels if a != b)]:
        tensors = batch_with_references(dtype=dtype)
        results, refusal = result_or_refusal(partial(in_two_levels, tensors, first, second))
        if refusal is not None:
            assert "none such" in (first, second)
            assert cpu.LEVEL_VARIABLE in refusal
        else:
            digits = 8 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-4
            assert_close(results, truth("circle", tensors), digits)


@apart
def test_compiled_step_is_right_where_auto_resolves_differently_later() -> None:
    expected = truth("circle", batch_with_references())
    for first, second in (("cpu", "tiled"), ("tiled", "cpu")):
        torch._dynamo.reset()
        compiled = torch.compile(LOSSES["circle"], fullgraph=True, backend="aot_eager")
        choice._BEST_BACKEND["cpu"] = first
        tensors = batch_with_references()
        output = compiled(*tensors)
        assert_close(value_and_gradients(output, tensors[::2]), expected)
        output = compiled(*tensors)
        choice._BEST_BACKEND["cpu"] = second
        assert_close(value_and_gradients(output, tensors[::2]), expected)
        output = compiled(*tensors)
        assert_close(value_and_gradients(output, tensors[::2]), expected)


@pytest.mark.parametrize("backend", ["auto", "tiled"])
@for_every_loss
def test_labels_may_change_between_the_passes(loss: str, backend: str) -> None:
    tensors = list(batch_with_references())
    expected = truth(loss, tensors)
    labels = [tensors[1].clone(), tensors[3].clone()]
    output = LOSSES[loss](tensors[0], labels[0], tensors[2], labels[1], backend=backend)
    labels[0][:4] = 77
    labels[1][:4] = labels[0][:4]
    assert_close(value_and_gradients(output, tensors[::2]), expected)


@pytest.mark.parametrize("backend", ["auto", "tiled"])
@for_every_loss
def test_queue_may_change_between_the_passes(loss: str, backend: str) -> None:
    tensors = list(batch_with_references())
    expected = truth(loss, tensors)[:2]
    queue = tensors[2].detach().clone()
    output = LOSSES[loss](tensors[0], tensors[1], queue, tensors[3], backend=backend)
    queue[:4] = tensors[0].detach()[:4]
    assert_close(value_and_gradients(output, tensors[0]), expected)
