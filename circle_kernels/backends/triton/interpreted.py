"""What Triton's interpreter can be trusted with."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl

_SIZE = 16


@triton.jit
def multiply_and_round_kernel(
    left_ptr,  # (SIZE, SIZE) bfloat16
    right_ptr,  # (SIZE, SIZE) bfloat16
    products_ptr,  # (SIZE, SIZE) float32
    rounded_ptr,  # (SIZE, SIZE) bfloat16
    SIZE: tl.constexpr,
):
    """Multiply two matrices, and round the product to their dtype."""
    offsets = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    products = tl.dot(tl.load(left_ptr + offsets), tl.load(right_ptr + offsets))
    tl.store(products_ptr + offsets, products)
    tl.store(rounded_ptr + offsets, products.to(tl.bfloat16))


@functools.cache
def takes_bfloat16() -> bool:
    """Whether this process' interpreter multiplies bfloat16 and rounds to it as devices do.

    Some versions, 3.6 and 3.9 among them, multiply the 16 bits of each number as an integer, and
    leave out bits where they should round to nearest.
    """
    # Fake tensors, tracers and default devices are of the thread that asks.
    with ThreadPoolExecutor(max_workers=1) as another_thread:
        return another_thread.submit(_multiplies_and_rounds).result()


def _multiplies_and_rounds() -> bool:
    # Integers, so that sums are exact; of many it takes more bits than bfloat16 has.
    left = torch.arange(_SIZE**2, device="cpu").remainder(29).sub(11).bfloat16().view(_SIZE, _SIZE)
    right = torch.arange(_SIZE**2, device="cpu").remainder(23).sub(7).bfloat16().view(_SIZE, _SIZE)
    expected = left.float() @ right.float()
    products, rounded = torch.zeros_like(expected), torch.zeros_like(left)
    try:
        multiply_and_round_kernel[(1,)](left, right, products, rounded, SIZE=_SIZE)
    except Exception:  # whatever it is, the interpreter does not take bfloat16
        return False
    return torch.equal(products, expected) and torch.equal(rounded, expected.bfloat16())
