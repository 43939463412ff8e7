"""What the check finds, and what becomes of a call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", minversion="3.3")

from circle_kernels import circle_loss
from circle_kernels.backends import choice, tiled
from circle_kernels.backends import triton as kernels
from circle_kernels.backends.triton import self_check
from circle_kernels.formula import CircleFormula
from tests.backends.triton.self_check.stand_in import (
    CHECKED,
    CPU,
    WRONG,
    for_every_dtype,
    in_a_new_process,
    of_sums,
    reason,
)
from tests.support.batches import batch_with_references, value_and_gradients
from tests.support.public_losses import LOSSES, assert_close, truth


@for_every_dtype
def test_right_kernels_pass_and_are_not_checked_again(
    dtype: torch.dtype, device: SimpleNamespace
) -> None:
    assert reason(dtype) is None
    assert device.forwards == CHECKED
    assert reason(dtype) is None
    in_a_new_process()
    assert reason(dtype) is None
    assert device.forwards == CHECKED


@for_every_dtype
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_kernels_fail_with_the_problem_the_dtype_and_the_error(
    wrong: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    monkeypatch.setattr(kernels, *WRONG[wrong])
    failure = str(reason(dtype))
    what = "lse_neg" if WRONG[wrong][0] == "forward" else "the embeddings' gradient"
    assert f"self-check in {dtype}, with rows in any order, failed: {what} of a batch" in failure
    assert "is wrong by " in failure
    assert "is allowed" in failure
    assert self_check.VARIABLE in failure
    assert str(device.cache) in failure
    in_a_new_process()
    monkeypatch.setattr(kernels, "backward", tiled.backward)
    monkeypatch.setattr(kernels, "forward", tiled.forward)
    assert reason(dtype) == failure  # remembered


def test_kernels_that_are_wrong_in_label_order_alone_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(problem: Any) -> Any:
        sorts = self_check.conditions_on(CPU).limits.sorted_tiles == 0
        return of_sums(lambda value: value + sorts)(problem)

    monkeypatch.setattr(kernels, "forward", forward)
    assert "with rows in label order" in str(reason())
    assert self_check.conditions_on(CPU).limits.sorted_tiles > 0


def test_backend_asked_for_by_name_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, *WRONG["a sign"])
    with pytest.raises(RuntimeError, match=r"cannot serve torch.float32 .* self-check"):
        circle_loss(*batch_with_references(), backend="triton")


def test_auto_takes_tiled_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    monkeypatch.setattr(kernels, *WRONG["slightly"])
    tensors = batch_with_references()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            results = value_and_gradients(circle_loss(*tensors, gamma=16), tensors[::2])
    assert_close(results, truth("circle", tensors))
    assert len(caught) == 1
    assert "the tiled backend" in str(caught[0].message)
    assert "self-check" in str(caught[0].message)
    assert device.forwards == 1


def test_right_kernels_serve_without_a_word(device: SimpleNamespace) -> None:
    tensors = batch_with_references()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = value_and_gradients(circle_loss(*tensors, gamma=16), tensors[::2])
    assert_close(results, truth("circle", tensors))
    assert device.forwards == CHECKED + 1


def test_compiler_that_asks_first_finds_what_holds_when_the_graph_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under fake tensors, and for good: a graph has the sizes of what its backend saves."""
    monkeypatch.setattr(kernels, *WRONG["a sign"])
    with FakeTensorMode(), pytest.warns(UserWarning, match="self-check"):
        assert choice.resolve_backend("auto", CPU, torch.float32, CircleFormula()) == "tiled"


@pytest.mark.parametrize("wrong", [True, False])
def test_compiled_step_is_right(
    wrong: bool, monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    if wrong:
        monkeypatch.setattr(kernels, *WRONG["a sign"])
    torch._dynamo.reset()
    tensors = batch_with_references()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = torch.compile(LOSSES["logsumexp"], fullgraph=True)(*tensors)
        results = value_and_gradients(output, tensors[::2])
    assert_close(results, truth("logsumexp", tensors))
    assert device.forwards == (1 if wrong else CHECKED + 1)


@pytest.mark.parametrize(
    "mode",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ],
    ids=["inference", "no_grad", "autocast", "device"],
)
def test_modes_of_the_caller_change_nothing(mode: Callable[[], Any]) -> None:
    with mode():
        assert reason() is None


def test_who_looks_for_waits_is_not_told_of_these(device: SimpleNamespace) -> None:
    assert reason() is None
    assert (device.waited, device.waits) == ("default", "error")


def test_random_numbers_of_the_caller_stay_as_they_are() -> None:
    before = torch.get_rng_state()
    assert reason() is None
    assert torch.equal(torch.get_rng_state(), before)
