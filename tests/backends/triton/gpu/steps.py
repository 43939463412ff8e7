"""Sizes on both sides of what a device's kernels choose by, and steps over them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circle_kernels import circle_loss
from tests.support import batches

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
for_every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# An H100's where there is no device.
MULTIPROCESSORS = 132
if torch.cuda.is_available():
    MULTIPROCESSORS = torch.cuda.get_device_properties(0).multi_processor_count


def _rows_of_tiles(each: int) -> int:
    """Rows of so many tiles for each multiprocessor, and one more: no multiple of a tile."""
    return 128 * math.ceil(math.sqrt(each * MULTIPROCESSORS)) + 1


# Too many for a launch a pass, too few to be put in label order.
SOME = max(1_025, _rows_of_tiles(1))
# Rows, references and depth. The large ones take the kernels in label order, in self mode over the
# triangle; depths are a multiple of a tile's and not.
MANY = _rows_of_tiles(24)
SMALL = [(300, None, 64), (300, 200, 64), (300, None, 600), (300, 200, 600)]
LARGE = [(MANY, None, 64), (MANY - 500, MANY + 1_000, 64), (MANY, None, 600)]
for_every_size = pytest.mark.parametrize(("n", "m", "d"), [*SMALL, *LARGE])


def batch(
    n: int, m: int | None, d: int, dtype: torch.dtype, *, device: str = "cuda", seed: int = 0
) -> list[Tensor]:
    """Embeddings and labels, and those of references where there are some; four to a class."""
    options = {"classes": n // 4, "random_labels": True, "dtype": dtype, "device": device}
    rows = batches.batch(n, d, seed=seed, **options)
    return [*rows, *(() if m is None else batches.batch(m, d, seed=seed + 100, **options))]


def loss_and_gradients(inputs: list[Tensor], **options) -> list[Tensor]:
    return batches.value_and_gradients(circle_loss(*inputs, **options), inputs[::2])


def captured(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A CUDA graph of a step, and what it writes to when it is replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # where kernels compile, which a capture does not allow
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def refill(static: list[Tensor], new: list[Tensor]) -> None:
    """Put other numbers where a graph reads."""
    with torch.no_grad():
        for into, value in zip(static, new, strict=True):
            into.copy_(value)


def assert_bitwise_equal(results: list[Tensor], expected: list[Tensor]) -> None:
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert wanted.isfinite().all()
        assert torch.equal(result, wanted)
