"""Before the fused kernels: norms, and operands that every kernel can load in wide pieces."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.rows import NORM_EPS
from circle_kernels.backends.triton.formula.arguments import coordinate_scale
from circle_kernels.backends.triton.launch import launch_kernel
from circle_kernels.backends.triton.sides import Side, new_sides

# Rows and depths of the O(N·D) kernels' tiles.
ROW_BLOCK = {"BLOCK_ROWS": 16, "BLOCK_DEPTH": 128}
# Norms are kept in units of this: those of rows of float32's largest entries are beyond float32.
NORM_UNIT = tl.constexpr(2.0**16)
# Rows whose squares may overflow float32 are multiplied by this, exactly; norms stay above eps.
_SMALLER = tl.constexpr(2.0**-80)
# Beside a side that is used as it is, the other one is divided by this much more than its norms:
# products with the largest rows stay in range, and weights, which hold both sides' scales, too.
_BALANCE = 2.0**16


class Given(NamedTuple):
    """Embeddings as they were given."""

    entries: tl.tensor  # pointer to (length, depth), any strides
    length: tl.tensor
    depth: tl.tensor
    row_stride: tl.tensor
    depth_stride: tl.tensor


class Measures(NamedTuple):
    """What becomes of each row."""

    norms: tl.tensor  # of the input, in NORM_UNIT: max(|x|, eps), or 1; NaN for a non-finite row
    factors: tl.tensor  # powers of two, that make an operand of it
    operand_norms: tl.tensor  # the norms times the factors, in NORM_UNIT
    scales: tl.tensor  # root_scale over the operand's norms


@triton.jit
def load_given(given, rows, depths):
    """Load (R, K) entries as float32, zero outside the matrix."""
    offsets = (
        rows.to(tl.int64)[:, None] * given.row_stride
        + depths.to(tl.int64)[None, :] * given.depth_stride
    )
    inside = (rows < given.length)[:, None] & (depths < given.depth)[None, :]
    return tl.load(given.entries + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def reciprocal_power(
    values,  # (R,) from 2^-100 to 2^100, or NaN
):
    """One over the power of two at or below each value; NaN for NaN.

    From the exponents' bits: quotients of Triton's are approximate, even these.
    """
    exponents = values.to(tl.int32, bitcast=True) & 0x7F800000
    powers = ((254 << 23) - exponents).to(tl.float32, bitcast=True)
    return tl.where(values < float("inf"), powers, float("nan"))


@triton.jit
def measure_rows(
    given,  # Given
    rows,  # (R,)
    norm_eps,
    root_scale,
    lowest_norm,  # a power of two, or None: rows are used as they are
    NORMALIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Compute norms and scales of rows.

    To be normalised, rows are brought to norms from ``lowest_norm`` to twice that. Multiplying by a
    power of two is exact (down to subnormals beside such a norm) and puts the scales of all rows
    within a factor of 2, so that neither products nor weights, which hold the scales of both sides,
    overflow or vanish.
    """
    squares = tl.zeros((BLOCK_ROWS, BLOCK_DEPTH), tl.float32)
    small_squares = tl.zeros((BLOCK_ROWS, BLOCK_DEPTH), tl.float32)
    for start in range(0, given.depth, BLOCK_DEPTH):
        chunk = load_given(given, rows, start + tl.arange(0, BLOCK_DEPTH))
        squares += chunk * chunk
        small = chunk * _SMALLER
        small_squares += small * small
    norms = tl.sqrt_rn(tl.sum(squares, axis=1))
    small_norms = tl.sqrt_rn(tl.sum(small_squares, axis=1))
    # Their reciprocals, too, are normal numbers.
    fits = norms < 2.0**100
    # False for NaN and for infinity, which make every similarity of the row NaN.
    finite = small_norms < float("inf")
    divisors = tl.full((BLOCK_ROWS,), 1.0, tl.float32)
    factors = divisors
    if NORMALIZE:
        # Of rows times the factors.
        divisors = tl.where(fits, tl.maximum(norms, norm_eps), small_norms)
        factors = tl.where(fits, 1.0, _SMALLER)
    divisors = tl.where(finite, divisors, float("nan"))
    units = tl.where(factors < 1.0, 1.0 / (NORM_UNIT * _SMALLER), 1.0 / NORM_UNIT)
    norms = divisors * units
    operand_norms = norms
    if NORMALIZE and lowest_norm is not None:
        to_lowest = reciprocal_power(divisors) * lowest_norm
        divisors = divisors * to_lowest
        operand_norms = divisors * (1.0 / NORM_UNIT)
        scales = tl.div_rn(tl.full((BLOCK_ROWS,), 1.0, tl.float32) * root_scale, divisors)
        factors = factors * to_lowest
    else:
        scales = tl.div_rn(factors * root_scale, divisors)
    return Measures(norms, factors, operand_norms, scales)


@triton.jit(do_not_specialize=["num_rows"])
def prepare_operand_kernel(
    rows_ptr,  # (N, D), any strides
    labels_ptr,  # (N,) int64, or None: a row's label is its place
    order_ptr,  # (N,) int64: which of the rows comes where; None: as they are
    norms_ptr,  # (N,) float32, in NORM_UNIT: max(|x|, eps), or 1; NaN for a non-finite row
    operand_norms_ptr,  # (N,) float32: the same for the rows of the copy, or None
    scales_ptr,  # (padded N,) float32: root_scale over the norms of the operand
    padded_labels_ptr,  # (padded N,) int64
    copy_ptr,  # (N, padded depth) contiguous, or None
    num_rows,
    depth,
    padded_depth,
    row_stride,
    depth_stride,
    norm_eps,
    root_scale,
    lowest_norm,  # of the copy, a power of two, or None
    NORMALIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Compute norms and scales; where needed write an aligned copy, padded with zeros.

    Scales and labels go on beyond the last row with its own, so that tiles load them unmasked.
    """
    embeddings = Given(rows_ptr, num_rows, depth, row_stride, depth_stride)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    given = tl.minimum(rows, num_rows - 1).to(tl.int64)
    if order_ptr is not None:
        given = tl.load(order_ptr + given)
    labels = given
    if labels_ptr is not None:
        labels = tl.load(labels_ptr + given)
    tl.store(padded_labels_ptr + rows, labels)
    measures = measure_rows(
        embeddings, given, norm_eps, root_scale, lowest_norm, NORMALIZE, BLOCK_ROWS, BLOCK_DEPTH
    )
    tl.store(norms_ptr + rows, measures.norms, mask=inside)
    tl.store(scales_ptr + rows, measures.scales)
    if operand_norms_ptr is not None:
        tl.store(operand_norms_ptr + rows, measures.operand_norms, mask=inside)
    if copy_ptr is not None:
        for start in range(0, padded_depth, BLOCK_DEPTH):
            depths = start + tl.arange(0, BLOCK_DEPTH)
            chunk = load_given(embeddings, given, depths) * measures.factors[:, None]
            offsets = rows.to(tl.int64)[:, None] * padded_depth + depths[None, :]
            tl.store(
                copy_ptr + offsets,
                chunk.to(copy_ptr.dtype.element_ty),
                mask=inside[:, None] & (depths < padded_depth)[None, :],
            )


def sort_by_label(
    problem: PairProblem, row_order: Tensor | None, column_order: Tensor | None
) -> None:
    """Fill the orders of both sides, where they have one."""
    for labels, order in (
        (problem.labels, row_order),
        (problem.column_labels, None if problem.self_mode else column_order),
    ):
        if order is not None:
            torch.sort(labels, stable=True, out=(torch.empty_like(labels), order))


def prepare_sides(
    problem: PairProblem, row_order: Tensor | None, column_order: Tensor | None
) -> tuple[Side, Side]:
    """Both sides of a problem in their orders, in memory of their own."""

    def allocate(*shape: int, dtype: torch.dtype) -> Tensor:
        return problem.embeddings.new_empty(shape, dtype=dtype)

    rows, columns = new_sides(problem, row_order, column_order, allocate)
    fill_sides(problem, rows, columns)
    return rows, columns


def own_copies(problem: PairProblem, rows: Side, columns: Side) -> Tensor | None:
    """Which of the columns is each row's own copy, (padded N,) int64 and -1 for none, in the orders
    of both sides; None where there are no copies."""
    copies = problem.own_columns
    if copies is None:
        return None
    if rows.order is not None:
        copies = copies.index_select(0, rows.order)
    if columns.order is not None:
        places = torch.arange(len(columns), device=copies.device)
        places = torch.empty_like(places).scatter_(0, columns.order, places)
        copies = torch.where(copies < 0, copies, places.gather(0, copies.clamp(min=0)))
    return torch.cat((copies, copies.new_full((len(rows.labels) - len(rows),), -1)))


def fill_sides(problem: PairProblem, rows: Side, columns: Side) -> None:
    """Norms, scales, labels and copies of both sides."""
    copies = (rows.operand is not problem.embeddings, columns.operand is not problem.columns)
    balance = 1.0 if all(copies) or not problem.normalize else _BALANCE
    _fill_side(problem, problem.embeddings, problem.labels, rows, copies[0], balance)
    if not problem.self_mode:
        labels = None if problem.classes else problem.column_labels
        _fill_side(problem, problem.columns, labels, columns, copies[1], balance)


def _fill_side(
    problem: PairProblem,
    embeddings: Tensor,
    labels: Tensor | None,
    side: Side,
    copy: bool,
    balance: float,
) -> None:
    root_scale = math.sqrt(coordinate_scale(problem.formula))
    launch_kernel(
        prepare_operand_kernel,
        len(side.scales) // ROW_BLOCK["BLOCK_ROWS"],
        {
            "rows_ptr": embeddings,
            "labels_ptr": None if labels is None else labels.contiguous(),
            "order_ptr": side.order,
            "norms_ptr": side.norms,
            "operand_norms_ptr": side.operand_norms if copy else None,
            "scales_ptr": side.scales,
            "padded_labels_ptr": side.labels,
            "copy_ptr": side.operand if copy else None,
            "num_rows": len(embeddings),
            "depth": side.depth,
            "padded_depth": side.operand.shape[1],
            "row_stride": embeddings.stride(0),
            "depth_stride": embeddings.stride(1),
            "norm_eps": NORM_EPS,
            # Scales of both sides are of the size of the root, however small the copy is made.
            "root_scale": root_scale / balance if copy else root_scale * balance,
            "lowest_norm": 1 / balance if copy else None,
        },
        {"NORMALIZE": problem.normalize, **ROW_BLOCK},
        num_stages=2,
    )
