"""What in_chunks says to arguments that make no sense."""

from __future__ import annotations

import functools
from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circle_kernels import in_chunks
from circle_kernels.training.chunks import run_in_chunks


class Returns(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(*inputs, **named)


@dataclass
class Tokens:
    ids: Tensor


NETWORK = Returns(lambda rows, *_, **__: rows)
ROWS = torch.ones(6, 2)


@pytest.mark.parametrize(
    ("inputs", "named", "error", "message"),
    [
        ((ROWS, ROWS[:3]), {}, ValueError, r"inputs\[0\] of shape \(6, 2\), inputs\[1\] of shape "),
        ((ROWS,), {"bias": ROWS[0]}, ValueError, r"bias of shape \(2,\).*partial\(network, name="),
        (({"a": [ROWS, ROWS[:1]]},), {}, ValueError, r"inputs\[0\]\['a'\]\[1\] of shape \(1, 2\)"),
        ((ROWS,), {"x": {"y": ROWS[:1]}}, ValueError, r"x\['y'\] of shape \(1, 2\)"),
        ((), {}, ValueError, "a tensor with rows to be cut, .* got nothing"),
        ((torch.tensor(1.0), "text"), {}, ValueError, r"of shape \(\) on cpu, str 'text'"),
        ((UserDict(rows=ROWS),), {}, TypeError, "got a UserDict, whose tensors no chunk would"),
        ((Tokens(ROWS),), {}, TypeError, "got a Tokens, whose tensors no chunk would get"),
    ],
)
def test_inputs_that_cannot_be_cut_are_named(
    inputs: tuple, named: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        in_chunks(NETWORK, *inputs, **named, chunk_size=2)


@pytest.mark.parametrize(
    ("chunk_size", "error", "message"),
    [
        (0, ValueError, "chunk_size must be at least 1, got 0"),
        (-3, ValueError, "chunk_size must be at least 1, got -3"),
        (2.0, TypeError, "chunk_size must be an integer, got float 2.0"),
        (True, TypeError, "chunk_size must be an integer, got bool True"),
        (None, TypeError, "chunk_size must be an integer, got NoneType None"),
    ],
)
def test_chunk_size_is_checked(chunk_size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        in_chunks(NETWORK, ROWS, chunk_size=chunk_size)


@pytest.mark.parametrize(
    "network", [lambda rows: rows, functools.partial(torch.relu), "network", torch.relu]
)
def test_network_whose_buffers_cannot_be_found_is_refused(network: Any) -> None:
    with pytest.raises(TypeError, match=r"network must be a torch.nn.Module, a method of one or"):
        in_chunks(network, ROWS, chunk_size=2)


def _same_but_for_the_second_call(first: Any, second: Any) -> Any:
    values = iter([first, second, second])
    return lambda rows: (rows, next(values))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (torch.sum, ValueError, r"for a chunk of 2 rows its output is a .* of shape \(\) on cpu"),
        (torch.t, ValueError, r"one entry for each row first: .* its output is"),
        (lambda rows: {"e": rows, "l": rows[:1]}, ValueError, r"its output\['l'\] is"),
        (lambda rows: (rows, object()), TypeError, r"its output\[1\] is object <object"),
        (lambda rows: Tokens(rows), TypeError, "containers of tensors that torch's pytrees know"),
        (_same_but_for_the_second_call(1, 2), ValueError, r"output\[1\] is 1 and 2"),
        (_same_but_for_the_second_call(1, [1]), ValueError, "the same structure for all chunks"),
        (_same_but_for_the_second_call(ROWS[:2], None), TypeError, r"its output\[1\] is a torch"),
    ],
)
def test_output_that_cannot_be_joined_is_named(
    function: Any, error: type[Exception], message: str
) -> None:
    rows = torch.ones(6, 3)
    with pytest.raises(error, match=message):
        in_chunks(Returns(function), rows, chunk_size=2)


def test_inputs_may_be_called_as_our_own_are() -> None:
    named = {"inputs": ROWS, "keyword_inputs": 2 * ROWS}
    network = Returns(lambda inputs, keyword_inputs: inputs + keyword_inputs)
    assert torch.equal(in_chunks(network, **named, chunk_size=4), 3 * ROWS)
    assert run_in_chunks(network, (), named, 4).shape == ROWS.shape
