"""Which sides of a problem count pairs, and what the backward pass is given of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from circle_kernels.backends.problem import PairProblem, Passed
from circle_kernels.backends.triton.forward_pass.known import write_exponents
from circle_kernels.backends.triton.saved import Saved
from circle_kernels.backends.triton.sides import Side


class AnchorSide(NamedTuple):
    """A side whose rows count pairs."""

    side: Side
    logsumexps: Tensor  # (2, N), of exponents
    grad_lse_pos: Tensor  # (N,)
    grad_lse_neg: Tensor  # (N,)


def all_anchors(
    problem: PairProblem, passed: Passed, pieces: Saved, sides: tuple[Side, Side]
) -> list[AnchorSide]:
    """Rows, which in self mode are columns, too; then columns that count pairs beside them."""
    rows, columns = sides
    upstream = passed.grad_lse_pos, passed.grad_lse_neg
    if pieces.column_logsumexps is not None:  # with both_sides
        of_rows = (each.narrow(0, 0, len(rows)) for each in upstream)
        of_columns = (each.narrow(0, len(rows), len(columns)) for each in upstream)
        return [
            AnchorSide(rows, pieces.logsumexps, *of_rows),
            AnchorSide(columns, pieces.column_logsumexps, *of_columns),
        ]
    anchors = [AnchorSide(rows, pieces.logsumexps, *upstream)]
    if passed.column_statistics is not None and not problem.self_mode:
        lse_pos, lse_neg, *gradients = passed.column_statistics
        logsumexps = lse_pos.new_empty(2, len(columns))
        write_exponents(lse_pos, lse_neg, problem.formula, logsumexps)
        anchors.append(AnchorSide(columns, logsumexps, *gradients))
    return anchors
