"""Sizes on both sides of what a device's kernels choose by, and steps over them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from circle_kernels import circle_loss

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
for_every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _rows_in_label_order() -> int:
    """Just enough rows for the kernels in label order, and no multiple of a tile."""
    if not torch.cuda.is_available():
        return 8_001
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    return 128 * math.ceil(math.sqrt(24 * multiprocessors)) + 1


# Rows, references and depth. The large ones take the kernels in label order, in self mode over the
# triangle; depths are a multiple of a tile's and not.
MANY = _rows_in_label_order()
SMALL = [(300, None, 64), (300, 200, 64), (300, None, 600), (300, 200, 600)]
LARGE = [(MANY, None, 64), (MANY - 500, MANY + 1_000, 64), (MANY, None, 600)]
for_every_size = pytest.mark.parametrize(("n", "m", "d"), [*SMALL, *LARGE])


def batch(
    n: int, m: int | None, d: int, dtype: torch.dtype, *, device: str = "cuda", seed: int = 0
) -> list[Tensor]:
    """Embeddings and labels, and those of references where there are some; four to a class."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for size in (n,) if m is None else (n, m):
        embeddings = torch.randn(size, d, generator=generator).to(device, dtype)
        labels = torch.randint(0, n // 4, (size,), generator=generator)
        result += [embeddings.requires_grad_(), labels.to(device)]
    return result


def loss_and_gradients(inputs: list[Tensor], **options) -> list[Tensor]:
    loss = circle_loss(*inputs, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), inputs[::2])]


def assert_bitwise_equal(results: list[Tensor], expected: list[Tensor]) -> None:
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert wanted.isfinite().all()
        assert torch.equal(result, wanted)
