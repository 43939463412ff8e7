"""A backend of a few lines: what has to be written to add one, and no more."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.backends.rows import unit_rows
from circle_kernels.backends.saved_bytes import as_bytes, from_bytes
from circle_kernels.formula import PairFormula

calls: list[str] = []  # what has been asked of it
precisions: list[str] = []  # of the products, in each pass


def status() -> str:
    return "usable: to show how"


def unusable_reason(device: torch.device, dtype: torch.dtype, formula: PairFormula) -> str | None:
    return "float16 is not for toys" if dtype == torch.float16 else None


def saved_shape(problem: PairProblem) -> tuple[int]:
    return (2 * problem.embeddings.shape[0] * problem.result_dtype.itemsize,)


def saves_labels(problem: PairProblem) -> bool:
    return False


def forward(problem: PairProblem) -> tuple[Tensor, Tensor, Tensor]:
    calls.append("forward")
    precisions.append(problem.precision)
    similarity, same, different = _pairs(problem)
    lse_pos, lse_neg = (
        logits.masked_fill(~mask, -math.inf).logsumexp(1)
        for logits, mask in (
            (problem.formula.positive_logits(similarity), same),
            (problem.formula.negative_logits(similarity), different),
        )
    )
    return lse_pos, lse_neg, as_bytes(torch.cat([lse_pos, lse_neg]))


def backward(
    problem: PairProblem, passed: Passed, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    calls.append("backward")
    precisions.append(problem.precision)
    similarity, same, different = _pairs(problem)
    lse_pos, lse_neg = from_bytes(passed.saved, problem.result_dtype).chunk(2)
    weights = torch.zeros_like(similarity)
    for mask, lse, grad, logits, slopes in (
        (
            same,
            lse_pos,
            passed.grad_lse_pos,
            problem.formula.positive_logits(similarity),
            problem.formula.positive_slopes(similarity),
        ),
        (
            different,
            lse_neg,
            passed.grad_lse_neg,
            problem.formula.negative_logits(similarity),
            problem.formula.negative_slopes(similarity),
        ),
    ):
        shares = (logits - lse[:, None]).exp() * slopes * grad[:, None]
        weights = torch.where(mask, shares, weights)
    rows, columns = _sides(problem)
    grad_rows, grad_columns = weights @ columns.rows, weights.T @ rows.rows
    if problem.self_mode:
        return rows.input_gradient(grad_rows + grad_columns), None
    return (
        rows.input_gradient(grad_rows) if needs.embeddings else None,
        columns.input_gradient(grad_columns) if needs.references else None,
    )


def row_losses(lse_pos: Tensor, lse_neg: Tensor, reduction: str) -> None:
    calls.append("row_losses")


def _sides(problem: PairProblem):
    return (unit_rows(side, problem.normalize) for side in (problem.embeddings, problem.columns))


def _pairs(problem: PairProblem) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = _sides(problem)
    same = problem.labels[:, None] == problem.column_labels[None, :]
    different = ~same
    if problem.self_mode:
        same.fill_diagonal_(False)
    return rows.rows @ columns.rows.T, same, different
