"""The log-sum-exps of a short list of pairs: only the rows that it names are read.

Not a backend of every problem: there is no matrix and no tile, so what a long list costs is memory
traffic, D numbers for each pair, where a product over all pairs costs arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from circle_kernels.backends.problem import Needs, result_dtype
from circle_kernels.backends.rows import UnitRows, unit_rows
from circle_kernels.formula import PairFormula

_CHUNK = 2**20  # numbers gathered at a time from each side


@dataclass(frozen=True)
class GatheredProblem:
    """Pairs of rows of ``embeddings`` and of ``ref_emb``, each pair at most once."""

    embeddings: Tensor  # (N, D)
    ref_emb: Tensor | None  # (M, D); None for the embeddings themselves
    rows: Tensor  # (P,) int64 in [0, N)
    columns: Tensor  # (P,) int64 in [0, M)
    positive: Tensor  # (P,) bool
    formula: PairFormula
    normalize: bool

    @property
    def sets(self) -> Tensor:  # (P,)
        """Each pair's place among 2N sets: the rows' positives, then the rows' negatives."""
        return self.rows + ~self.positive * len(self.embeddings)

    def chunks(self) -> list[slice]:
        """Ranges of pairs of which as many rows fit in the memory that a chunk may take."""
        size = max(_CHUNK // self.embeddings.shape[1], 1)
        return [slice(begin, begin + size) for begin in range(0, len(self.rows), size)]

    def sides(self) -> tuple[UnitRows, UnitRows]:
        """Embeddings and references over their divisors; the same side twice without references."""
        embeddings = unit_rows(self.embeddings, self.normalize)
        if self.ref_emb is None:
            return embeddings, embeddings
        return embeddings, unit_rows(self.ref_emb, self.normalize)


def forward(problem: GatheredProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Both log-sum-exps (N,), and the pairs' similarities (P,) for the backward pass."""
    dtype = result_dtype(problem.embeddings.dtype)
    embeddings, references = (side.rows for side in problem.sides())
    similarities = torch.cat(
        [
            (embeddings[problem.rows[chunk]] * references[problem.columns[chunk]]).sum(1)
            for chunk in problem.chunks()
        ]
        or [embeddings.new_empty(0)]
    )
    logits = problem.formula.pair_logits(similarities, problem.positive)
    sets = problem.sets
    highest = torch.full((2 * len(embeddings),), -math.inf, dtype=dtype, device=logits.device)
    highest.scatter_reduce_(0, sets, logits, "amax")
    sums = _add_at(torch.zeros_like(highest), sets, (logits - highest[sets]).exp())
    lse_pos, lse_neg = (highest + sums.log()).view(2, -1)
    return lse_pos, lse_neg, similarities


def backward(
    problem: GatheredProblem,
    lse: Tensor,  # (2 N,), of the positives and then of the negatives
    similarities: Tensor,  # (P,)
    grad_lse: Tensor,  # (2 N,)
    needs: Needs,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of both sides; without references all of it is the embeddings'."""
    sets = problem.sets
    logits = problem.formula.pair_logits(similarities, problem.positive)
    slopes = problem.formula.pair_slopes(similarities, problem.positive)
    weights = (logits - lse[sets]).exp() * grad_lse[sets] * slopes
    embedding_side, reference_side = problem.sides()
    embeddings, references = embedding_side.rows, reference_side.rows
    grad_embeddings = torch.zeros_like(embeddings) if needs.embeddings else None
    if problem.ref_emb is None:
        grad_references = grad_embeddings
    else:
        grad_references = torch.zeros_like(references) if needs.references else None
    for chunk in problem.chunks():
        rows, columns, weight = problem.rows[chunk], problem.columns[chunk], weights[chunk, None]
        if grad_embeddings is not None:
            _add_at(grad_embeddings, rows, references[columns] * weight)
        if grad_references is not None:
            _add_at(grad_references, columns, embeddings[rows] * weight)
    return (
        embedding_side.input_gradient(grad_embeddings) if grad_embeddings is not None else None,
        reference_side.input_gradient(grad_references)
        if grad_references is not None and problem.ref_emb is not None
        else None,
    )


def _add_at(target: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """``target[index] += values`` in place, in an order that is always the same."""
    if target.device.type == "cpu":
        return target.index_add_(0, index, values)
    # Sorted by index, where index_add_ would take whichever comes first.
    return target.index_put_((index,), values, accumulate=True)
