"""The naive path as a backend, for comparison: the whole similarity matrix, in ordinary PyTorch.

Its forward pass can be differentiated by autograd, any number of times, and compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circle_kernels.backends.problem import ROW_NEGATIVE, ROW_POSITIVE, Needs, PairProblem, Passed
from circle_kernels.backends.saved_bytes import as_bytes, from_bytes
from circle_kernels.formula import PairFormula
from circle_kernels.reference import (
    masked_logsumexps,
    pair_masks,
    similarities_of,
    similarity_matrix,
)


def status() -> str:
    """A sentence that begins with ``"usable"``."""
    return "usable: naive PyTorch with the whole similarity matrix, for comparison"


def unusable_reason(device: torch.device, dtype: torch.dtype, formula: PairFormula) -> None:
    """Nothing keeps it from serving."""


def saved_shape(problem: PairProblem) -> tuple[int]:
    """Nothing is saved but by autograd."""
    return (0,)


def saves_labels(problem: PairProblem) -> bool:
    """Nothing is saved but by autograd."""
    return False


def save(problem: PairProblem, lse_pos: Tensor, lse_neg: Tensor) -> Tensor:
    """Both log-sum-exps as bytes."""
    return as_bytes(torch.stack([lse_pos, lse_neg]))


def forward(problem: PairProblem) -> tuple[Tensor, Tensor, None]:
    """Log-sum-exps of every row, computed in the embeddings' own dtype."""
    similarity, (positive, negative) = _similarity(problem), _masks(problem)
    lse_pos, lse_neg = masked_logsumexps(similarity, positive, negative, problem.formula)
    if problem.both_sides:
        of_columns = masked_logsumexps(similarity.T, positive.T, negative.T, problem.formula)
        lse_pos, lse_neg = torch.cat((lse_pos, of_columns[0])), torch.cat((lse_neg, of_columns[1]))
    return lse_pos.to(problem.result_dtype), lse_neg.to(problem.result_dtype), None


def _similarity(problem: PairProblem) -> Tensor:  # (N, M)
    return similarity_matrix(problem.embeddings, problem.columns, normalize=problem.normalize)


def _masks(problem: PairProblem) -> tuple[Tensor, Tensor]:  # (N, M) bool each
    if problem.listed is not None:
        positive, negative = ((problem.listed & kind) != 0 for kind in (ROW_POSITIVE, ROW_NEGATIVE))
        return positive, negative
    masks = pair_masks(problem.labels, None if problem.self_mode else problem.column_labels)
    if problem.own_columns is None:
        return masks
    places = torch.arange(problem.columns.shape[0], device=problem.labels.device)
    others = problem.own_columns[:, None] != places[None, :]
    return masks[0] & others, masks[1] & others


def backward(
    problem: PairProblem, passed: Passed, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of both sides by autograd, of the forward pass run again."""
    saved, *upstream, column_statistics = passed
    embeddings = problem.embeddings.detach().requires_grad_(needs.embeddings)
    ref_emb = None
    if problem.ref_emb is not None:
        ref_emb = problem.ref_emb.detach().requires_grad_(needs.references)
    problem = problem._replace(embeddings=embeddings, ref_emb=ref_emb)
    with torch.enable_grad():
        if saved is None or saved.numel() == 0:
            outputs: tuple[Tensor, ...] = forward(problem)[:2]
        else:
            known = from_bytes(saved, problem.result_dtype)
            outputs = (_share(problem, *known, *upstream, dim=1),)
            upstream = [torch.ones_like(outputs[0])]
        if column_statistics is not None:
            outputs = (*outputs, _share(problem, *column_statistics, dim=0))
            upstream.append(torch.ones_like(outputs[-1]))
    if outputs[0].requires_grad:
        torch.autograd.backward(outputs, upstream)
    elif embeddings.requires_grad or (ref_emb is not None and ref_emb.requires_grad):
        raise RuntimeError(
            "backend='reference' is differentiated by autograd, which is off here: in inference "
            "mode, or inside of a compiler's graph"
        )
    return embeddings.grad, None if ref_emb is None else ref_emb.grad


def _share(
    problem: PairProblem,
    lse_pos: Tensor,  # (N,), or (M,) of columns, as are all
    lse_neg: Tensor,
    grad_lse_pos: Tensor,
    grad_lse_neg: Tensor,
    *,
    dim: int,  # which each log-sum-exp is over, perhaps with pairs that are not in this problem
) -> Tensor:
    """A number with the derivative that ``sum(grad_lse * lse)`` has with respect to these pairs."""
    similarity = _similarity(problem).to(problem.result_dtype)
    formula, total = problem.formula, similarity.new_zeros(())
    kinds = (
        (formula.positive_logits, lse_pos, grad_lse_pos),
        (formula.negative_logits, lse_neg, grad_lse_neg),
    )
    for (logits_of, lse, gradient), mask in zip(kinds, _masks(problem), strict=True):
        logits = logits_of(similarities_of(similarity, mask, formula))
        lse, gradient = lse.unsqueeze(dim), gradient.unsqueeze(dim)
        weights = ((logits.detach() - lse).exp() * gradient).masked_fill(~mask, 0)
        total = total + (weights * logits.masked_fill(~mask, 0)).sum()
    return total
