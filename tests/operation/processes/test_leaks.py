"""Too little memory, and what many steps leave behind."""

from __future__ import annotations

import gc
import re
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, circle_loss, class_circle_loss
from circle_kernels.operation.listed_pairs import PairIndices, matrix_logsumexp, pair_matrix
from tests.support.apart import apart
from tests.support.random_problems import draw_problem, in_its_layout, logsumexps
from tests.support.yardstick import gradients


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("backend", ["auto", "tiled"])
@apart
def test_step_without_memory_raises_and_the_next_one_works(backend: str) -> None:
    small = draw_problem(7_000, (torch.float32,), ["references"])
    inputs = in_its_layout(small, "cpu")
    expected = logsumexps(small, inputs, backend)
    expected_slopes = gradients(*expected, inputs)
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(3000, 256, generator=generator).requires_grad_()
    labels = torch.arange(3000) % 700
    raised = 0
    for spare in (0, 1, 2, 4, 8, 16, 24, 32, 48):
        used = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare * 2**20, resource.RLIM_INFINITY))
        try:
            circle_loss(large, labels, backend=backend).backward()
        except (MemoryError, RuntimeError) as error:
            raised += bool(re.search("alloc|memory", repr(error), re.IGNORECASE))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        large.grad = None
        ours = logsumexps(small, inputs, backend)
        assert all(map(torch.equal, ours, expected))
        assert all(map(torch.equal, gradients(*ours, inputs), expected_slopes))
    assert raised > 3


def _tensors_alive() -> int:
    gc.collect()
    return sum(isinstance(each, Tensor) for each in gc.get_objects())


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _kinds_of_steps() -> Iterator[tuple[str, Callable[[], Any]]]:
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(300) % 40
    weight = x.detach().clone().requires_grad_()
    same = y[:, None] == y
    indices = PairIndices(*same.nonzero().T, *(~same).nonzero().T)
    matrix, formula = pair_matrix(indices, 300, 300), CircleFormula()

    def backward(loss: Tensor) -> None:
        torch.autograd.grad(loss, x)

    def abandoned() -> None:
        circle_loss(x, y)  # no backward pass follows

    def failed() -> None:
        with pytest.raises(TypeError):
            circle_loss(x, y.float())
        with pytest.raises(ValueError, match="labels must be in"):
            class_circle_loss(x, y + 1000, weight)

    yield "self", lambda: backward(circle_loss(x, y))
    yield "references", lambda: backward(circle_loss(x, y, weight, y))
    yield "classes", lambda: backward(class_circle_loss(x, y, weight))
    yield "sampled", lambda: backward(class_circle_loss(x, y, weight, sample_rate=0.5))
    yield "listed", lambda: backward(sum(matrix_logsumexp(x, x, matrix, formula=formula)).sum())
    yield "without gradient", lambda: circle_loss(x.detach(), y)
    yield "abandoned", abandoned
    yield "failed", failed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@apart
def test_many_steps_leave_nothing_behind() -> None:
    """Of a step's 500 KB none stays: no tensor that Python sees, no memory that C++ holds."""
    for name, step in _kinds_of_steps():
        for _ in range(20):  # memory that is held on to, once
            step()
        tensors, resident = _tensors_alive(), _resident_bytes()
        for _ in range(100):
            step()
        assert _tensors_alive() <= tensors, name
        grown = _resident_bytes() - resident
        assert grown < 4 * 2**20, f"{name}: 100 steps left {grown} bytes"
