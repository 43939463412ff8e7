"""What the forward pass would have left, of log-sum-exps that are known already."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton.conditions import conditions_on
from circle_kernels.backends.triton.formula.arguments import formula_arguments, formula_constant
from circle_kernels.backends.triton.formula.pairs import exponents_of
from circle_kernels.backends.triton.launch import launch_kernel, on_device
from circle_kernels.backends.triton.plan import plan_layout, shape_of
from circle_kernels.backends.triton.saved import begin_saved, new_saved
from circle_kernels.backends.triton.sides import ceil_div
from circle_kernels.backends.triton.small_batch.forward import small_save
from circle_kernels.formula import PairFormula

_BLOCK = {"BLOCK_ANCHORS": 256}


@triton.jit(do_not_specialize=["num_anchors"])
def write_exponents_kernel(
    lse_pos_ptr,  # (N,) float32
    lse_neg_ptr,  # (N,) float32
    exponents_ptr,  # (2, N) float32: log-sum-exps of exponents
    num_anchors,
    floor_pos,
    floor_neg,
    FORMULA: tl.constexpr,
    BLOCK_ANCHORS: tl.constexpr,
):
    """Write log-sum-exps as :func:`merge.merge_sums_kernel` keeps them."""
    anchors = tl.program_id(0) * BLOCK_ANCHORS + tl.arange(0, BLOCK_ANCHORS)
    inside = anchors < num_anchors
    for kind in tl.static_range(2):
        lse_ptr = lse_neg_ptr if kind else lse_pos_ptr
        lse = tl.load(lse_ptr + anchors, mask=inside, other=0.0)
        exponents = exponents_of(lse, floor_neg if kind else floor_pos, FORMULA)
        place = exponents_ptr + kind * num_anchors.to(tl.int64) + anchors
        tl.store(place, exponents, mask=inside)


def write_exponents(
    lse_pos: Tensor,  # (N,)
    lse_neg: Tensor,  # (N,)
    formula: PairFormula,
    exponents: Tensor,  # (2, N); filled
) -> None:
    """Log-sum-exps of logits, natural, as those of exponents."""
    arguments = formula_arguments(formula)
    launch_kernel(
        write_exponents_kernel,
        ceil_div(len(lse_pos), _BLOCK["BLOCK_ANCHORS"]),
        {
            "lse_pos_ptr": lse_pos.contiguous(),
            "lse_neg_ptr": lse_neg.contiguous(),
            "exponents_ptr": exponents,
            "num_anchors": len(lse_pos),
            "floor_pos": arguments["floor_pos"],
            "floor_neg": arguments["floor_neg"],
        },
        {"FORMULA": formula_constant(formula), **_BLOCK},
    )


def save(
    problem: PairProblem,
    lse_pos: Tensor,  # (N,) float32, or (N + M,)
    lse_neg: Tensor,  # (N,) float32, or (N + M,)
) -> Tensor:
    """What the backward pass needs of log-sum-exps, which may be over more than these columns."""
    device = problem.embeddings.device
    with on_device(device):
        layout = plan_layout(shape_of(problem), conditions_on(device))
        if layout.small:
            saved = new_saved(problem, layout)
            small_save(problem, lse_pos, lse_neg, saved)
            return saved
        _, saved, pieces = begin_saved(problem, layout)
        first = 0
        for exponents in (pieces.logsumexps, pieces.column_logsumexps):
            if exponents is not None:
                anchors = exponents.shape[1]
                sums = [each.narrow(0, first, anchors) for each in (lse_pos, lse_neg)]
                write_exponents(sums[0], sums[1], problem.formula, exponents)
                first += anchors
        return saved
