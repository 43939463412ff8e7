"""A kernel that does nothing but evaluate the Triton formula, for comparison with the torch one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.triton.formula.arguments import (
    coordinate_scale,
    formula_arguments,
    formula_constant,
    slope_scales,
)
from circle_kernels.backends.triton.formula.pairs import (
    Formula,
    Kind,
    logit_constant,
    mixed_slopes,
    pair_distances,
    shifted_exponents,
)
from circle_kernels.backends.triton.primitives import LN_2
from circle_kernels.formula import PairFormula


@triton.jit
def formula_kernel(
    similarity_ptr,
    logits_ptr,
    slopes_ptr,
    count,
    coordinate,  # of a similarity of 1
    vertex,
    floor,
    factor,
    slope_scale,
    POSITIVE: tl.constexpr,
    FORMULA: tl.constexpr,
    DETACH_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    indices = tl.arange(0, BLOCK)
    inside = indices < count
    similarity = tl.load(similarity_ptr + indices, mask=inside, other=0.0)
    scales = tl.zeros(similarity.shape, tl.float32) + coordinate
    distances = pair_distances(similarity, scales, Kind(vertex, floor, factor), POSITIVE, FORMULA)
    logits = shifted_exponents(distances, tl.zeros(similarity.shape, tl.float32), FORMULA)
    logits -= logit_constant(floor, FORMULA)
    kind = Kind(vertex, floor, factor)
    positive = tl.full(similarity.shape, POSITIVE, tl.int1)
    slopes = mixed_slopes(
        similarity, scales, positive, distances, Formula(kind, kind, 0.0), FORMULA, DETACH_WEIGHTS
    )
    slopes *= slope_scale
    tl.store(logits_ptr + indices, logits * LN_2, mask=inside)
    tl.store(slopes_ptr + indices, slopes, mask=inside)


def evaluate(formula: PairFormula, similarity: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
    """Natural-unit logits and slopes as the kernels compute them."""
    arguments = formula_arguments(formula)
    kind = "pos" if positive else "neg"
    logits, slopes = torch.empty_like(similarity), torch.empty_like(similarity)
    formula_kernel[(1,)](
        similarity,
        logits,
        slopes,
        len(similarity),
        coordinate_scale(formula),
        arguments[f"vertex_{kind}"],
        arguments[f"floor_{kind}"],
        arguments["factor"],
        slope_scales(formula)[f"slope_{kind}"] * coordinate_scale(formula),
        POSITIVE=positive,
        FORMULA=formula_constant(formula),
        DETACH_WEIGHTS=formula.detach_weights,
        BLOCK=triton.next_power_of_2(len(similarity)),
    )
    return logits, slopes
