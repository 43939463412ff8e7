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
from tests.support.batches import (
    batch_with_references,
    value_and_gradients,
)
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
@for_every_loss
@apart
def test_backward_takes_the_backend_that_the_forward_chose(
    loss: str, order: tuple[str, str]
) -> None:
    tensors = list(batch_with_references())
    choice._BEST_BACKEND["cpu"] = order[0]
    output = LOSSES[loss](*tensors)
    choice._BEST_BACKEND["cpu"] = order[1]
    assert_close(value_and_gradients(output, tensors[::2]), truth(loss, tensors))


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("order", [("cpu", "tiled"), ("tiled", "cpu")], ids=str)
@apart
def test_backward_over_listed_pairs_takes_the_backend_that_the_forward_chose(
    order: tuple[str, str], short: bool
) -> None:
    x, _, references, _ = batch_with_references()
    wide = [each.detach().double().requires_grad_() for each in (x, references)]
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


@pytest.mark.parametrize("order", [("", "none such"), ("none such", "")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@apart
def test_level_that_changes_between_the_passes_is_right_or_named(
    dtype: torch.dtype, order: tuple[str, str]
) -> None:
    """Also from each level that the machine has to each other one."""
    levels = cpu.supported_levels()
    for first, second in [order, *((a, b) for a in levels for b in levels if a != b)]:
        tensors = batch_with_references(dtype=dtype)
        results, refusal = result_or_refusal(partial(in_two_levels, tensors, first, second))
        if refusal is not None:
            assert "none such" in (first, second)
            assert cpu.LEVEL_VARIABLE in refusal
        else:
            digits = 8 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-4
            assert_close(results, truth("circle", tensors), digits)


@pytest.mark.parametrize("order", [("cpu", "tiled"), ("tiled", "cpu")], ids=str)
@apart
def test_compiled_step_is_right_where_auto_resolves_differently_later(
    order: tuple[str, str],
) -> None:
    compiled = torch.compile(LOSSES["circle"], fullgraph=True, backend="aot_eager")
    expected = truth("circle", batch_with_references())
    choice._BEST_BACKEND["cpu"] = order[0]
    tensors = list(batch_with_references())
    output = compiled(*tensors)
    assert_close(value_and_gradients(output, tensors[::2]), expected)
    output = compiled(*tensors)
    choice._BEST_BACKEND["cpu"] = order[1]
    assert_close(value_and_gradients(output, tensors[::2]), expected)
    output = compiled(*tensors)
    assert_close(value_and_gradients(output, tensors[::2]), expected)


def in_inference_mode(values: list[Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return [value.clone() for value in values]


@pytest.mark.parametrize("backend", ["auto", "tiled"])
@for_every_loss
def test_references_and_labels_made_in_inference_mode_serve(loss: str, backend: str) -> None:
    tensors = list(batch_with_references())
    expected = truth(loss, tensors)[:2]
    x, others = tensors[0], in_inference_mode([each.detach() for each in tensors[1:]])
    for chosen in ([True] * 3, [True, False, False], [False, True, True]):
        mixed = [
            made if use else plain.detach()
            for use, made, plain in zip(chosen, others, tensors[1:], strict=True)
        ]
        output = LOSSES[loss](x, *mixed, backend=backend)
        assert_close(value_and_gradients(output, x), expected)


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
