"""The naive path as a backend, for comparison: the whole similarity matrix, in ordinary PyTorch.

Its forward pass can be differentiated by autograd, any number of times, and compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circle_kernels.backends.problem import ROW_NEGATIVE, ROW_POSITIVE, Needs, PairProblem, Passed
from circle_kernels.formula import PairFormula
from circle_kernels.reference import masked_logsumexps, pair_masks, similarity_matrix


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


def forward(problem: PairProblem) -> tuple[Tensor, Tensor, None]:
    """Log-sum-exps of every row, computed in the embeddings' own dtype."""
    similarity = similarity_matrix(problem.embeddings, problem.columns, normalize=problem.normalize)
    if problem.listed is not None:
        positive, negative = ((problem.listed & kind) != 0 for kind in (ROW_POSITIVE, ROW_NEGATIVE))
    else:
        ref_labels = None if problem.self_mode else problem.column_labels
        positive, negative = pair_masks(problem.labels, ref_labels)
    lse_pos, lse_neg = masked_logsumexps(similarity, positive, negative, problem.formula)
    return lse_pos.to(problem.result_dtype), lse_neg.to(problem.result_dtype), None


def backward(
    problem: PairProblem, passed: Passed, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of both sides by autograd, of the forward pass run again."""
    embeddings = problem.embeddings.detach().requires_grad_(needs.embeddings)
    ref_emb = None
    if problem.ref_emb is not None:
        ref_emb = problem.ref_emb.detach().requires_grad_(needs.references)
    with torch.enable_grad():
        lse_pos, lse_neg, _ = forward(problem._replace(embeddings=embeddings, ref_emb=ref_emb))
    if lse_pos.requires_grad:
        torch.autograd.backward((lse_pos, lse_neg), passed[1:])
    elif embeddings.requires_grad or (ref_emb is not None and ref_emb.requires_grad):
        raise RuntimeError(
            "backend='reference' is differentiated by autograd, which is off here: in inference "
            "mode, or inside of a compiler's graph"
        )
    return embeddings.grad, None if ref_emb is None else ref_emb.grad
