"""The pair formulas: formula.py in Triton, in other units.

Pairs are seen through their *coordinate* u, the similarity times a constant of the formula, and
their *distance* t from the vertex of their logit's parabola, in units that make the base-2 logit
t^2 less a constant of its kind (t itself for formulas without a parabola). The constants join the
log-sum-exps at the end. Where positives have a scale of their own, their coordinate is a multiple
of that of negatives. Derivation: docs/derivation.md.

Of formulas of functions the coordinate is the similarity and the distance the base-2 logit itself.
Which formula it is, kernels are told as a constant FORMULA: a name, or the generated function that
computes both kinds' values and slopes (source.py).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from circle_kernels.backends.triton.primitives import LN_2

# The circle formula's exponents t^2 are at least 0. Relative to a shift of at most this none
# underflows, and up to this far above the shift a float32 holds them.
REACH = tl.constexpr(100.0)


class Kind(NamedTuple):
    """What the formula is for one kind of pair, in coordinates."""

    vertex: tl.tensor
    floor: tl.tensor  # of distances
    factor: tl.tensor  # of the coordinates of positives; of functions, from values to exponents


class Formula(NamedTuple):
    """The formula's numbers in a kernel; which formula it is, is a constant beside them."""

    positive: Kind
    negative: Kind
    fixed_shift: tl.tensor


@triton.jit
def exactly(
    values,  # (R, C)
    factors,  # (R, C), or one for all
):
    """Multiply so that no compiler makes one operation of the product and what follows."""
    factors = tl.zeros(values.shape, tl.float32) + factors
    return tl.fma(values, factors, tl.zeros(values.shape, tl.float32))


@triton.jit
def pair_distances(
    products,  # (R, C)
    scales,  # (R, C)
    kind,  # Kind
    POSITIVE: tl.constexpr,
    FORMULA: tl.constexpr,
):
    """Compute t of one kind of pair: from the vertex toward larger loss, at least the floor.

    An explicit fused multiply-add, as in :func:`shifted_exponents`: the passes have to round alike,
    whatever else a compiler finds to fuse in one of them.
    """
    if FORMULA == "circle" or FORMULA == "circle with one floor":
        distances = vertex_distances(products, scales, kind, POSITIVE, FORMULA)
        # The clamp must let NaN through, or a NaN embedding would end in a finite loss.
        distances = tl.maximum(distances, kind.floor, propagate_nan=tl.PropagateNan.ALL)
    elif FORMULA == "unified" or FORMULA == "unified with two scales":
        distances = vertex_distances(products, scales, kind, POSITIVE, FORMULA)
    elif POSITIVE:
        distances = exactly(FORMULA(exactly(products, scales), "positive"), kind.factor)
    else:
        distances = exactly(FORMULA(exactly(products, scales), "negative"), kind.factor)
    return distances


@triton.jit
def vertex_distances(
    products,  # (R, C)
    scales,  # (R, C)
    kind,  # Kind
    POSITIVE: tl.constexpr,
    FORMULA: tl.constexpr,
):
    """Compute how far coordinates are from the vertex, toward larger loss."""
    vertices = tl.zeros(products.shape, tl.float32) + kind.vertex
    if POSITIVE:
        if FORMULA == "circle" or FORMULA == "unified with two scales":
            scales = scales * kind.factor
        distances = tl.fma(-products, scales, vertices)
    else:
        distances = tl.fma(products, scales, -vertices)
    return distances


@triton.jit
def pair_floors(
    positive,  # (R, C)
    formula,  # Formula
    FORMULA: tl.constexpr,
):
    """Each pair's lower bound of its distance; one number where both kinds have the same."""
    floors = formula.negative.floor
    if FORMULA == "circle":
        floors = tl.where(positive, formula.positive.floor, floors)
    return floors


@triton.jit
def mixed_distances(
    products,  # (R, C)
    scales,  # (R, C)
    positive,  # (R, C)
    formula,  # Formula
    FORMULA: tl.constexpr,
):
    """Compute each pair's t: that of a positive where ``positive`` is true, else of a negative.

    As :func:`pair_distances` rounds it; selecting its operands takes fewer instructions than
    selecting between its results.
    """
    if FORMULA == "circle" or FORMULA == "circle with one floor":
        distances = mixed_vertex_distances(products, scales, positive, formula, FORMULA)
        floors = pair_floors(positive, formula, FORMULA)
        distances = tl.maximum(distances, floors, propagate_nan=tl.PropagateNan.ALL)
    elif FORMULA == "unified" or FORMULA == "unified with two scales":
        distances = mixed_vertex_distances(products, scales, positive, formula, FORMULA)
    else:
        similarity = exactly(products, scales)
        values = tl.where(
            positive, FORMULA(similarity, "positive"), FORMULA(similarity, "negative")
        )
        distances = exactly(values, formula.positive.factor)
    return distances


@triton.jit
def mixed_vertex_distances(
    products,  # (R, C)
    scales,  # (R, C)
    positive,  # (R, C)
    formula,  # Formula
    FORMULA: tl.constexpr,
):
    """Compute each pair's :func:`vertex_distances`."""
    vertices = tl.where(positive, formula.positive.vertex, -formula.negative.vertex)
    signed = tl.where(positive, -scales, scales)
    if FORMULA == "circle" or FORMULA == "unified with two scales":
        signed = scales * tl.where(positive, -formula.positive.factor, 1.0)
    return tl.fma(products, signed, vertices)


@triton.jit
def shifted_exponents(
    distances,  # (R, C)
    shifts,  # (R, C)
    FORMULA: tl.constexpr,
):
    """Compute base-2 logits, but for :func:`logit_constant`, less ``shifts``."""
    exponents = distances - shifts
    if FORMULA == "circle" or FORMULA == "circle with one floor":
        exponents = tl.fma(distances, distances, -shifts)
    return exponents


@triton.jit
def shifted_exponentials(
    distances,  # (R, C)
    shift,
    FORMULA: tl.constexpr,
):
    """Compute 2^(exponent - shift), the same shift for all."""
    shifts = tl.zeros(distances.shape, tl.float32) + shift
    return tl.exp2(shifted_exponents(distances, shifts, FORMULA))


@triton.jit
def logit_constant(floor, FORMULA: tl.constexpr):
    """What exponents have more than logits: a clamped pair's logit is 0."""
    constant = 0.0
    if FORMULA == "circle" or FORMULA == "circle with one floor":
        constant = floor * floor
    return constant


@triton.jit
def exponents_of(
    lse,  # (R,): natural, of logits
    floor,
    FORMULA: tl.constexpr,
):
    """Turn log-sum-exps that came from elsewhere into those of exponents, base 2.

    Rounded once, beside the rounding that they came with.
    """
    constants = tl.zeros_like(lse) + logit_constant(floor, FORMULA)
    return tl.fma(lse, tl.full(lse.shape, 1.0 / LN_2, tl.float32), constants)


@triton.jit
def pair_slopes(
    distances,  # (R, C)
    floors,  # of each pair's kind
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
):
    """Compute how fast logits rise with the distance: the paper's Eq. 9 and 10 if detached.

    Times :func:`slope_scales` it is how fast natural logits rise with the coordinate of negatives.
    """
    slopes = tl.full(distances.shape, 1.0, tl.float32)
    if FORMULA == "circle" or FORMULA == "circle with one floor":
        if DETACH_WEIGHTS:
            slopes = distances - floors
        else:
            # Below 0 only where the clamp is below the vertex, as it is for the usual margins.
            slopes = tl.where(distances <= floors, 0.0, 2.0 * distances)
    return slopes


@triton.jit
def mixed_slopes(
    products,  # (R, C)
    scales,  # (R, C)
    positive,  # (R, C)
    distances,  # (R, C): mixed_distances
    formula,  # Formula
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
):
    """Compute each pair's :func:`pair_slopes`; of functions, that by the similarity."""
    if FORMULA == "circle" or FORMULA == "circle with one floor":
        floors = pair_floors(positive, formula, FORMULA)
        slopes = pair_slopes(distances, floors, FORMULA, DETACH_WEIGHTS)
    elif FORMULA == "unified" or FORMULA == "unified with two scales":
        slopes = pair_slopes(distances, 0.0, FORMULA, DETACH_WEIGHTS)
    else:
        similarity = exactly(products, scales)
        slopes = tl.where(
            positive, FORMULA(similarity, "positive slope"), FORMULA(similarity, "negative slope")
        )
    return slopes
