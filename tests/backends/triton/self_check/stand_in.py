"""A stand-in for a device and for its kernels, right or wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends import choice, tiled
from circle_kernels.backends import triton as kernels
from circle_kernels.backends.triton import launch, self_check
from circle_kernels.backends.triton.conditions import Hardware
from circle_kernels.formula import CircleFormula

CPU = torch.device("cpu")
for_every_dtype = pytest.mark.parametrize("dtype", launch.DTYPES, ids=str)


def stand_in(monkeypatch: pytest.MonkeyPatch, cache: Path) -> SimpleNamespace:
    """CPU tensors stand for a device's, and the tiled backend for its kernels."""
    here = SimpleNamespace(capturing=False, waits="error", forwards=0, name="A device", cache=cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(here.cache))
    monkeypatch.delenv(self_check.VARIABLE, raising=False)
    monkeypatch.setattr(self_check, "_found", {})
    monkeypatch.setattr(self_check, "hardware_of", lambda device: Hardware("sm_100", 148))
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "unusable_reason", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: here.name)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: here.capturing)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: here.waits)
    monkeypatch.setattr(
        torch.cuda, "set_sync_debug_mode", lambda mode: setattr(here, "waits", mode)
    )
    monkeypatch.setitem(choice._BEST_BACKEND, "cpu", "triton")
    monkeypatch.delattr(kernels, "row_losses")
    for name in ("backward", "saved_shape", "saves_labels"):
        monkeypatch.setattr(kernels, name, getattr(tiled, name))

    def forward(problem: Any) -> Any:
        here.forwards += 1
        here.waited = here.waits
        return tiled.forward(problem)

    monkeypatch.setattr(kernels, "forward", forward)
    choice._warn_once.cache_clear()
    return here


def reason(dtype: torch.dtype = torch.float32) -> str | None:
    return self_check.unusable_reason(CPU, dtype, CircleFormula())


def in_a_new_process() -> None:
    self_check._found.clear()


CHECKED = 6  # problems: two, in any order as small batches and not, and in label order


def of_gradients(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def backward(*given: Any) -> Any:
        return tuple(x if x is None else change(x.clone()) for x in tiled.backward(*given))

    return backward


def of_sums(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def forward(problem: Any) -> Any:
        lse_pos, lse_neg, saved = tiled.forward(problem)
        return lse_pos, change(lse_neg.clone()), saved

    return forward


def first_rows(value: Tensor) -> Tensor:
    value[:2] = value[:2].flip(0)
    return value


def of_the_last(number: float) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        value.view(-1)[-1] = number
        return value

    return change


def swapped_upstream(problem: Any, passed: Any, needs: Any) -> Any:
    swapped = passed._replace(grad_lse_pos=passed.grad_lse_neg, grad_lse_neg=passed.grad_lse_pos)
    return tiled.backward(problem, swapped, needs)


WRONG = {
    "a sign": ("backward", of_gradients(torch.neg)),
    "zeros": ("backward", of_gradients(torch.zeros_like)),
    "slightly": ("backward", of_gradients(lambda value: 1.04 * value)),
    "two rows": ("backward", of_gradients(first_rows)),
    "one NaN": ("backward", of_gradients(of_the_last(torch.nan))),
    "one infinity": ("backward", of_gradients(of_the_last(torch.inf))),
    "sides' roles": ("backward", swapped_upstream),
    "sums slightly": ("forward", of_sums(lambda value: value + 0.01)),
    "one sum": ("forward", of_sums(of_the_last(0.0))),
    "one empty sum": ("forward", of_sums(of_the_last(-torch.inf))),
    "one sum is NaN": ("forward", of_sums(of_the_last(torch.nan))),
}


def fails_with(error: Exception) -> Callable[..., Any]:
    def forward(problem: Any) -> Any:
        raise error

    return forward
