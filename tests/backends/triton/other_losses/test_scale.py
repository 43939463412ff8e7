"""The derivative with respect to scales, from one more walk, against the matrix in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula
from circle_kernels.backends.problem import (
    ROW_NEGATIVE,
    ROW_POSITIVE,
    PairProblem,
    Passed,
)
from circle_kernels.backends.saved_bytes import with_padding
from circle_kernels.formula import PairFormula
from circle_kernels.reference import pair_masks, similarity_matrix
from tests.support.formulas import OTHER_FORMULAS
from tests.support.targets import INTERPRETED

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends import triton as backend
from circle_kernels.backends.triton.conditions import Limits, assuming

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]

CHOSEN = ("multi-similarity", "undetached circle of two scales", "with where")
FORMULAS: dict[str, PairFormula] = {
    "circle": CircleFormula(m=0.25, gamma=64.0),
    **{name: OTHER_FORMULAS[name] for name in CHOSEN},
}


def _problem(kind: str, formula: PairFormula) -> PairProblem:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(150, 24, generator=generator)
    labels = torch.randint(0, 12, (150,), generator=generator)
    if kind in ("self", "listed"):
        problem = PairProblem(embeddings, labels, None, None, formula, True)
        if kind == "self":
            return problem
        listed = torch.randint(0, 3, (150, 150), generator=generator, dtype=torch.uint8)
        return problem._replace(listed=with_padding(listed.fill_diagonal_(0)))
    problem = PairProblem(embeddings[:67], labels[:67], embeddings[67:], labels[67:], formula, True)
    own = torch.arange(67) if kind == "copies and both sides" else None
    return problem._replace(own_columns=own, both_sides=kind != "references")


def _truth(problem: PairProblem, upstream: tuple[Tensor, Tensor]) -> Tensor:
    sides = problem.embeddings.double(), problem.columns.double()
    similarity = similarity_matrix(*sides, normalize=True)
    masks = pair_masks(problem.labels, None if problem.self_mode else problem.column_labels)
    if problem.listed is not None:
        listed = problem.listed[:150, :150]
        masks = (listed & ROW_POSITIVE) != 0, (listed & ROW_NEGATIVE) != 0
    if problem.own_columns is not None:
        others = problem.own_columns[:, None] != torch.arange(similarity.shape[1])
        masks = masks[0] & others, masks[1] & others
    formula, totals = problem.formula, []
    for logits, mask, gradient in zip(
        (formula.positive_logits(similarity), formula.negative_logits(similarity)),
        masks,
        upstream,
        strict=True,
    ):
        total = 0.0
        sums = torch.where(mask, logits, -torch.inf)
        sizes = similarity.shape if problem.both_sides else similarity.shape[:1]
        parts = gradient.double().split(list(sizes))
        for dim, part in zip((1, 0), parts, strict=False):
            shares = sums.softmax(dim).nan_to_num(0.0)
            total += (shares * logits * part.unsqueeze(dim)).sum().item()
        totals.append(total)
    return torch.tensor(totals, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["self", "listed", "references", "both", "copies and both sides"])
@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
@pytest.mark.parametrize("limits", [Limits(), Limits(sorted_tiles=0)], ids=["given", "sorted"])
def test_scales_get_the_derivative_by_their_logarithm(
    kind: str, formula: PairFormula, limits: Limits
) -> None:
    problem = _problem(kind, formula)
    with assuming(limits=limits):
        lse_pos, lse_neg, saved = backend.forward(problem)
        upstream = torch.linspace(0.5, 1.5, len(lse_pos))
        # Nothing arrives at an empty set.
        given = [
            each.masked_fill(lse == -torch.inf, 0.0)
            for each, lse in ((upstream, lse_pos), (upstream.flip(0), lse_neg))
        ]
        found = backend.scale_gradients(problem, Passed(saved, *given))
        known = backend.save(problem, lse_pos, lse_neg)
        from_known = backend.scale_gradients(problem, Passed(known, *given))
    truth = _truth(problem, tuple(given))
    torch.testing.assert_close(found.double(), truth, rtol=2e-5, atol=1e-3)
    torch.testing.assert_close(from_known.double(), truth, rtol=2e-5, atol=1e-3)


def test_references_that_count_pairs_by_their_statistics_are_counted() -> None:
    """A batch of two halves: what each has as rows and beside the other is what the whole has."""
    whole = _problem("self", FORMULAS["circle"])
    lse_pos, lse_neg, _ = backend.forward(whole)
    upstream = torch.linspace(0.5, 1.5, 150), torch.linspace(2.0, 1.0, 150)
    statistics = torch.stack([lse_pos, lse_neg, *upstream])
    total = torch.zeros(2)
    halves = (slice(0, 70), slice(70, 150))
    for rows, columns in itertools.product(halves, halves):
        if rows.start > columns.start:
            continue
        block = whole._replace(embeddings=whole.embeddings[rows], labels=whole.labels[rows])
        of_columns = None
        if rows != columns:
            block = block._replace(
                ref_emb=whole.embeddings[columns], ref_labels=whole.labels[columns]
            )
            of_columns = statistics[:, columns].contiguous()
        *sums, grad_pos, grad_neg = statistics[:, rows]
        passed = Passed(backend.save(block, *sums), grad_pos, grad_neg, of_columns)
        total += backend.scale_gradients(block, passed)
    truth = _truth(whole, upstream)
    torch.testing.assert_close(total.double(), truth, rtol=2e-5, atol=1e-3)
