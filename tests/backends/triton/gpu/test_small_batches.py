"""Batches of which a pass is a launch or two: in CUDA graphs, and in every form of the loss."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from circle_kernels import circle_loss, unified_loss
from tests.backends.triton.gpu.lanes import IN_INTERPRETER
from tests.backends.triton.gpu.steps import (
    assert_bitwise_equal,
    batch,
    captured,
    for_every_dtype,
    refill,
)
from tests.support.batches import value_and_gradients
from tests.support.targets import ON_GPU

FORMS = {
    "circle": circle_loss,
    "undetached": functools.partial(circle_loss, detach_weights=False),
    "unnormalised": functools.partial(circle_loss, normalize=False),
    "unified": functools.partial(unified_loss, m=0.2, gamma=64.0),
    "batch": functools.partial(circle_loss, scope="batch"),
}
for_every_form = pytest.mark.parametrize("form", FORMS)
# A program's rows and fewer, several programs', and the largest; a depth that is no multiple.
SIZES = [(16, 64), (130, 100), (256, 128), (1_000, 512)]
on_device = [pytest.param(n, d, "cuda", marks=ON_GPU) for n, d in SIZES]
interpreted = [pytest.param(n, d, "cpu", marks=IN_INTERPRETER) for n, d in SIZES[:2]]
for_small_sizes = pytest.mark.parametrize(("n", "d", "device"), [*on_device, *interpreted])


def step(form: str, inputs: list[Tensor]) -> list[Tensor]:
    return value_and_gradients(FORMS[form](*inputs, backend="triton"), inputs[0])


def small_batch(n: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """With norms around 1, or what is not normalised would overflow."""
    embeddings, labels = batch(n, None, d, dtype, device=device, seed=seed)
    return [(embeddings.detach() / d**0.5).requires_grad_(), labels]


@for_every_dtype
@for_every_form
@pytest.mark.parametrize(("n", "d", "device"), on_device)
def test_graph_gives_the_same_for_new_data(
    n: int, d: int, device: str, form: str, dtype: torch.dtype
) -> None:
    static = small_batch(n, d, dtype, device)
    graph, results = captured(lambda: step(form, static))
    for seed in (1, 2, 3):
        new = small_batch(n, d, dtype, device, seed)
        expected = step(form, new)
        refill(static, new)
        graph.replay()
        assert_bitwise_equal(results, expected)


@for_every_dtype
@for_every_form
@pytest.mark.parametrize(("n", "d", "device"), on_device)
def test_graph_and_steps_on_another_stream_do_not_mix(
    n: int, d: int, device: str, form: str, dtype: torch.dtype
) -> None:
    inputs = small_batch(n, d, dtype, device)
    graph, results = captured(lambda: step(form, inputs))
    other = small_batch(n, d, dtype, device, seed=1)
    expected, of_other = step(form, inputs), step(form, other)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(20):
        graph.replay()
        with torch.cuda.stream(stream):
            found = step(form, other)
        torch.cuda.synchronize()
        assert_bitwise_equal(results, expected)
        assert_bitwise_equal(found, of_other)


@for_every_dtype
@for_every_form
@for_small_sizes
def test_twice_the_same_bits(n: int, d: int, device: str, form: str, dtype: torch.dtype) -> None:
    inputs = small_batch(n, d, dtype, device)
    assert_bitwise_equal(step(form, inputs), step(form, inputs))


@for_every_dtype
@for_every_form
@for_small_sizes
def test_as_in_float64(n: int, d: int, device: str, form: str, dtype: torch.dtype) -> None:
    inputs = small_batch(n, d, dtype, device)
    exact = [inputs[0].detach().double().requires_grad_(), inputs[1]]
    truth = value_and_gradients(FORMS[form](*exact, backend="reference"), exact[0])
    # Of a loss of size gamma, in float32; of gradients, in their dtype.
    allowed = (2**-23, torch.finfo(dtype).eps)
    for value, true, eps in zip(step(form, inputs), truth, allowed, strict=True):
        error = (value.double() - true).abs().max() / true.abs().max()
        assert error <= eps * (16 + 2 * 80)
