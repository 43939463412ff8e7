"""What kernels are told of a formula: which one it is, and its numbers."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, TypeGuard

from circle_kernels.backends.triton.formula.pairs import REACH
from circle_kernels.backends.triton.formula.source import num_operations, pair_functions
from circle_kernels.formula import CircleFormula, PairFormula, UnifiedFormula

if TYPE_CHECKING:  # it imports what traces functions
    from circle_kernels.pointwise.formula import FunctionFormula

FORMULAS = (CircleFormula, UnifiedFormula)  # that there is code for, beside those of functions

_MANY_OPERATIONS = 64  # of all four programs


def is_of_functions(formula: PairFormula) -> TypeGuard[FunctionFormula]:
    """Whether the formula is one of functions."""
    return getattr(formula, "is_of_functions", False)


def has_code(formula: PairFormula) -> bool:
    """Whether there is code for a formula."""
    return type(formula) in FORMULAS or is_of_functions(formula)


def has_fixed_shift(formula: PairFormula) -> bool:
    """Whether exponents have a lower bound, so that one shift serves nearly all pairs."""
    return formula.name == "circle"


def is_long(formula: PairFormula) -> bool:
    """Whether a pair takes so many operations that tiles have to leave registers for them."""
    return is_of_functions(formula) and num_operations(formula.programs) > _MANY_OPERATIONS


def coordinate_scale(formula: PairFormula) -> float:
    """Coordinate of a similarity of 1: what makes a squared distance a negative's base-2 logit."""
    return _coordinate_scales(formula)[1]


def _coordinate_scales(formula: PairFormula) -> tuple[float, float]:
    """That of positives and that of negatives."""
    if is_of_functions(formula):
        return 1.0, 1.0
    scale_pos, scale_neg = (float(gamma) / math.log(2) for gamma in formula.gammas)
    if formula.name == "circle":
        return math.sqrt(scale_pos), math.sqrt(scale_neg)
    return scale_pos, scale_neg


def slope_scales(formula: PairFormula) -> dict[str, float]:
    """What natural logits rise by with the coordinate where :func:`pair_slopes` is 1."""
    if is_of_functions(formula):
        return {"slope_pos": float(formula.gamma), "slope_neg": float(formula.gamma)}
    scale_pos, scale_neg = _coordinate_scales(formula)
    # The distance of positives falls as the similarity rises.
    return {"slope_pos": -math.log(2) * scale_pos / scale_neg, "slope_neg": math.log(2)}


@functools.lru_cache(maxsize=16)
def formula_constant(formula: PairFormula) -> Any:
    """Which formula it is, as kernels are told: with one scale and the paper's margins both kinds
    of pairs have one coordinate and one floor, and need not choose."""
    if is_of_functions(formula):
        return pair_functions(formula.programs)
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
    factor = scale_pos / scale_neg
    if is_of_functions(formula):
        factor = float(formula.gamma) / math.log(2)
    return {
        "vertex_pos": scale_pos * margin_pos,
        "floor_pos": 0.0,
        "vertex_neg": scale_neg * margin_neg,
        "floor_neg": 0.0,
        "factor": factor,
        "fixed_shift": 0.0,
    }
