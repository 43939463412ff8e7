"""The gradients of both scales' logarithms against autograd's, where scales are learned."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula
from circle_kernels.backends import cpu
from circle_kernels.backends.problem import (
    COLUMN_NEGATIVE,
    COLUMN_POSITIVE,
    ROW_NEGATIVE,
    ROW_POSITIVE,
    PairProblem,
    Passed,
)
from circle_kernels.formula import PairFormula
from circle_kernels.logsumexp import masked_logsumexp
from circle_kernels.reference import similarity_matrix
from tests.support.formulas import FUNCTIONS

pytestmark = [pytest.mark.backends, pytest.mark.sanitized]

FORMULAS = {
    "circle": CircleFormula(m=0.25, gamma=64.0),
    "two scales": UnifiedFormula(gamma_pos=2.0, gamma_neg=50.0, margin_pos=0.5, margin_neg=0.5),
    "with a peak": FUNCTIONS["with a peak"],
}
WAYS = ("self mode", "references", "own copies", "both sides", "listed")


def _problem(way: str, formula: PairFormula, dtype: torch.dtype, rows: int = 130) -> PairProblem:
    generator = torch.Generator().manual_seed(rows)
    columns = rows if way == "listed" else 201
    values = torch.randn(rows + columns, 24, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 30, (rows + columns,), generator=generator)
    problem = PairProblem(values[:rows], labels[:rows], None, None, formula, True)
    if way == "self mode":
        return problem
    if way == "listed":
        kinds = torch.randint(0, 4, (rows, rows), generator=generator)
        row_kinds = torch.tensor([0, ROW_POSITIVE, ROW_NEGATIVE, 0])[kinds]
        # What row j says of (j, i) stands at (i, j), unless the two disagree.
        of_columns = {ROW_POSITIVE: COLUMN_POSITIVE, ROW_NEGATIVE: COLUMN_NEGATIVE}
        disagree = (row_kinds | row_kinds.T) == ROW_POSITIVE | ROW_NEGATIVE
        row_kinds[disagree] = 0
        listed = row_kinds.clone()
        for kind, of_column in of_columns.items():
            listed |= (kind == row_kinds.T) * of_column
        return problem._replace(
            labels=torch.zeros_like(problem.labels), listed=listed.to(torch.uint8)
        )
    problem = problem._replace(ref_emb=values[rows:], ref_labels=labels[rows:])
    if way == "own copies":
        own = torch.randint(-1, columns, (rows,), generator=generator)
        return problem._replace(own_columns=own)
    return problem._replace(both_sides=way == "both sides")


def _expected(problem: PairProblem, upstream: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The gradients, and the sizes of what they are sums of."""
    scales = torch.ones(2, dtype=torch.float64, requires_grad=True)
    similarity = similarity_matrix(
        problem.embeddings.double(), problem.columns.double(), normalize=True
    )
    same = problem.labels[:, None] == problem.column_labels[None, :]
    kinds = [same, ~same]
    if problem.listed is not None:
        kinds = [(problem.listed & kind) != 0 for kind in (ROW_POSITIVE, ROW_NEGATIVE)]
    elif problem.self_mode:
        kinds[0] = same.clone().fill_diagonal_(False)
    if problem.own_columns is not None:
        others = problem.own_columns[:, None] != torch.arange(similarity.shape[1])
        kinds = [kind & others for kind in kinds]
    formula, sizes = problem.formula, []
    loss = similarity.new_zeros(())
    logits = (formula.positive_logits(similarity), formula.negative_logits(similarity))
    for scale, logit, kind, gradient in zip(scales, logits, kinds, upstream, strict=True):
        dims = (1, 0) if problem.both_sides else (1,)
        lse = torch.cat([masked_logsumexp(scale * logit, kind, dim=dim) for dim in dims])
        finite = lse.isfinite()
        loss = loss + (lse[finite] * gradient.double()[finite]).sum()
        sizes.append(gradient.double().abs().sum() * (1 + logit.abs().max()))
    (gradients,) = torch.autograd.grad(loss, scales)
    return gradients, torch.stack(sizes).detach()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORMULAS)
def test_scale_gradients_are_those_of_autograd(name: str, way: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        problem = _problem(way, FORMULAS[name], dtype)
        lse_pos, lse_neg, _ = cpu.forward(problem)
        generator = torch.Generator().manual_seed(1)
        upstream = tuple(
            torch.randn(len(lse), generator=generator, dtype=lse.dtype)
            for lse in (lse_pos, lse_neg)
        )
        for skip_below, known in itertools.product((0.0, 0.1), (False, True)):
            changed = problem._replace(skip_below=skip_below)
            kept = cpu.save(changed, lse_pos, lse_neg) if known else cpu.forward(changed)[2]
            gradients = cpu.scale_gradients(changed, Passed(kept, *upstream))
            expected, sizes = _expected(problem, upstream)
            assert gradients.dtype == lse_pos.dtype
            allowed = 32 * torch.finfo(lse_pos.dtype).eps * sizes
            assert ((gradients - expected).abs() <= allowed).all(), (dtype, gradients, expected)


def test_columns_that_are_rows_elsewhere_count_too() -> None:
    """Blocks of a batch add up, each pair counted by the block of either order halfway."""
    problem = _problem("self mode", FORMULAS["circle"], torch.float64)
    lse_pos, lse_neg, saved = cpu.forward(problem)
    upstream = torch.randn(2, 130, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = cpu.scale_gradients(problem, Passed(saved, *upstream))
    total = torch.zeros_like(whole)
    parts = (slice(0, 50), slice(50, 130))
    everything = torch.stack([lse_pos, lse_neg, *upstream])
    for rows, columns in itertools.product(parts, parts):
        block = problem._replace(embeddings=problem.embeddings[rows], labels=problem.labels[rows])
        of_rows = everything[:, rows]
        others = None
        if rows != columns:
            block = block._replace(
                ref_emb=problem.embeddings[columns], ref_labels=problem.labels[columns]
            )
            others = everything[:, columns]
        known = cpu.save(block, *of_rows[:2])
        gradients = cpu.scale_gradients(block, Passed(known, *of_rows[2:], others))
        total += gradients if rows == columns else gradients / 2
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
