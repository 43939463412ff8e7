"""Tiles of a small batch, from embeddings as they were given."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from circle_kernels.backends.triton.operands import load_given
from circle_kernels.backends.triton.primitives import multiply_add


class Block(NamedTuple):
    """Rows of the batch, and what is known of each."""

    indices: tl.tensor  # (R,); beyond the last row it stands again
    labels: tl.tensor  # (R,)
    factors: tl.tensor  # (R,): of Measures
    scales: tl.tensor  # (R,): of Measures


@triton.jit
def saved_labels(saved_ptr, length):
    """Point to the labels behind six vectors that the forward pass has saved."""
    return (saved_ptr + 6 * length).to(tl.pointer_type(tl.int64))


@triton.jit
def load_operand(
    given,  # Given
    block,  # Block
    depths,  # (K,)
    OPERAND: tl.constexpr,  # dtype
):
    """Load rows (R, K) as they are multiplied."""
    return (load_given(given, block.indices, depths) * block.factors[:, None]).to(OPERAND)


@triton.jit
def block_products(
    given,  # Given
    rows,  # Block
    columns,  # Block
    INPUT_PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
    NORMALIZED: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Compute inner products (R, C), in float32, as primitives.tile_products does."""
    products = tl.zeros((rows.scales.shape[0], columns.scales.shape[0]), tl.float32)
    for start in range(0, given.depth, BLOCK_DEPTH):
        depths = start + tl.arange(0, BLOCK_DEPTH)
        left = load_operand(given, rows, depths, OPERAND)
        right = load_operand(given, columns, depths, OPERAND)
        products = multiply_add(left, tl.trans(right), products, INPUT_PRECISION)
    if not NORMALIZED:
        products = tl.fma(products, tl.zeros_like(products), products)
    return products


@triton.jit
def block_kinds(
    given,  # Given
    rows,  # (R,), also beyond the last row
    columns,  # (C,)
    row_labels,  # (R,)
    column_labels,  # (C,)
):
    """Say of each pair whether it is positive, and counts for row and column."""
    counts = (rows < given.length)[:, None] & (columns < given.length)[None, :]
    counts = counts & (rows[:, None] != columns[None, :])
    return row_labels[:, None] == column_labels[None, :], counts, counts
