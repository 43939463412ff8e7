"""The pair formulas: formula.py in Triton, in other units.

Pairs are seen through their *coordinate* u, the similarity times a constant of the formula, and
their *distance* t from the vertex of their logit's parabola, in units that make the base-2 logit
t^2 less a constant of its kind (t itself for formulas without a parabola). The constants join the
log-sum-exps at the end. Where positives have a scale of their own, their coordinate is a multiple
of that of negatives. Derivation: docs/derivation.md.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import triton
import triton.language as tl

from circle_kernels.backends.triton.primitives import LN_2
from circle_kernels.formula import CircleFormula, PairFormula, UnifiedFormula

FORMULAS = (CircleFormula, UnifiedFormula)  # that there is code for

# The circle formula's exponents t^2 are at least 0. Relative to a shift of at most this none
# underflows, and up to this far above the shift a float32 holds them.
REACH = tl.constexpr(100.0)


class Kind(NamedTuple):
    """What the formula is for one kind of pair, in coordinates."""

    vertex: tl.tensor
    floor: tl.tensor  # of distances
    factor: tl.tensor  # of the coordinates of positives


class Formula(NamedTuple):
    """The formula's numbers in a kernel; which formula it is, is a constant beside them."""

    positive: Kind
    negative: Kind
    fixed_shift: tl.tensor


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
    vertices = tl.zeros(products.shape, tl.float32) + kind.vertex
    if POSITIVE:
        if FORMULA == "circle" or FORMULA == "unified with two scales":
            scales = scales * kind.factor
        distances = tl.fma(-products, scales, vertices)
    else:
        distances = tl.fma(products, scales, -vertices)
    if FORMULA == "circle" or FORMULA == "circle with one floor":
        # The clamp must let NaN through, or a NaN embedding would end in a finite loss.
        distances = tl.maximum(distances, kind.floor, propagate_nan=tl.PropagateNan.ALL)
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
    vertices = tl.where(positive, formula.positive.vertex, -formula.negative.vertex)
    of_positives = scales
    if FORMULA == "circle" or FORMULA == "unified with two scales":
        of_positives = scales * formula.positive.factor
    distances = tl.fma(products, tl.where(positive, -of_positives, scales), vertices)
    if FORMULA == "circle" or FORMULA == "circle with one floor":
        floors = pair_floors(positive, formula, FORMULA)
        distances = tl.maximum(distances, floors, propagate_nan=tl.PropagateNan.ALL)
    return distances


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


def has_fixed_shift(formula: PairFormula) -> bool:
    """Whether exponents have a lower bound, so that one shift serves nearly all pairs."""
    return formula.name == "circle"


def coordinate_scale(formula: PairFormula) -> float:
    """Coordinate of a similarity of 1: what makes a squared distance a negative's base-2 logit."""
    return _coordinate_scales(formula)[1]


def _coordinate_scales(formula: PairFormula) -> tuple[float, float]:
    """That of positives and that of negatives."""
    scale_pos, scale_neg = (float(gamma) / math.log(2) for gamma in formula.gammas)
    if formula.name == "circle":
        return math.sqrt(scale_pos), math.sqrt(scale_neg)
    return scale_pos, scale_neg


def slope_scales(formula: PairFormula) -> dict[str, float]:
    """What natural logits rise by with the coordinate where :func:`pair_slopes` is 1."""
    scale_pos, scale_neg = _coordinate_scales(formula)
    # The distance of positives falls as the similarity rises.
    return {"slope_pos": -math.log(2) * scale_pos / scale_neg, "slope_neg": math.log(2)}


@functools.lru_cache(maxsize=16)
def formula_constant(formula: PairFormula) -> str:
    """Which formula it is, as kernels are told: with one scale and the paper's margins both kinds of
    pairs have one coordinate and one floor, and need not choose."""
    arguments = formula_arguments(formula)
    one_scale = arguments["factor"] == 1.0
    if formula.name == "unified":
        return "unified" if one_scale else "unified with two scales"
    one_floor = math.isclose(arguments["floor_pos"], arguments["floor_neg"], rel_tol=1e-12)
    return "circle with one floor" if one_scale and one_floor else "circle"


@functools.lru_cache(maxsize=16)
def formula_arguments(formula: PairFormula) -> dict[str, float]:
    """The formula's numbers, in coordinates, under the names that every kernel gives them.

    ``fixed_shift`` is what exponents are taken relative to where that needs no running maximum: no
    more than normalised pairs call for, since exponent and shift are rounded at their size.
    """
    optimum_pos, optimum_neg, margin_pos, margin_neg = formula.constants
    scale_pos, scale_neg = _coordinate_scales(formula)
    if formula.name == "circle":
        vertex_pos = scale_pos * (optimum_pos + margin_pos) / 2
        floor_pos = scale_pos * (margin_pos - optimum_pos) / 2
        vertex_neg = scale_neg * (optimum_neg + margin_neg) / 2
        floor_neg = scale_neg * (optimum_neg - margin_neg) / 2
        farthest = max(vertex_pos + scale_pos, scale_neg - vertex_neg, floor_pos, floor_neg)
        return {
            "vertex_pos": vertex_pos,
            "floor_pos": floor_pos,
            "vertex_neg": vertex_neg,
            "floor_neg": floor_neg,
            "factor": scale_pos / scale_neg,
            "fixed_shift": min(max(farthest**2 - REACH.value, 0.0), REACH.value),
        }
    assert formula.name == "unified", formula
    return {
        "vertex_pos": scale_pos * margin_pos,
        "floor_pos": 0.0,
        "vertex_neg": scale_neg * margin_neg,
        "floor_neg": 0.0,
        "factor": scale_pos / scale_neg,
        "fixed_shift": 0.0,
    }
