"""What a backend is given and what it returns.

A backend is a module with two functions and what there is to know of what passes between them:

    forward(problem) -> (lse_pos, lse_neg, saved)
    backward(problem, lse_pos, lse_neg, saved, grad_lse_pos, grad_lse_neg, *, needs_embeddings,
             needs_references) -> (grad_embeddings | None, grad_references | None)
    saved_shape(problem) -> the shape of saved, in bytes, without computing anything
    saves_labels(problem) -> whether the backward pass finds labels there and reads no others

``saved`` is one tensor of bytes (uint8) with whatever the backward pass can use; it may be empty.
Not of floats: hooks on saved tensors that compress these would not know their range. The backward
pass raises RuntimeError where it is not what the forward pass of the problem left.
Both functions run without autograd, with autocast off, on checked arguments, and on at least one
row and one column. Log-sum-exps are (N,) in :attr:`PairProblem.result_dtype`, ``-inf`` for an empty
set; gradients are in the inputs' dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circle_kernels.formula import PairFormula

BACKENDS = ("auto", "triton", "cpu", "tiled", "reference")

HOOKS = "hooks on saved tensors have to give back what they were given"

NORM_EPS = 1e-12  # as torch.nn.functional.normalize

# What PairProblem.listed says of the pair (i, j): how row i counts it and, in self mode, how row j
# does. ListedPair of csrc/problem.h.
ROW_POSITIVE, ROW_NEGATIVE, COLUMN_POSITIVE, COLUMN_NEGATIVE = 1, 2, 4, 8
# Both sides of PairProblem.listed are padded with zeros to a multiple: the C++ kernel's PANEL.
LISTED_MULTIPLE = 96


@dataclass(frozen=True)
class PairProblem:
    """One call of the fused operation.

    Without references the batch is compared with itself ("self mode"): the pair of an embedding
    with itself is then neither positive nor negative, and gradients count every embedding both as
    row and as column.
    """

    embeddings: Tensor  # (N, D)
    labels: Tensor  # (N,) int64
    ref_emb: Tensor | None  # (M, D)
    ref_labels: Tensor | None  # (M,) int64; with references and without it j is reference j's label
    formula: PairFormula
    normalize: bool
    # Share of a row's total weight that the backward pass may drop to save work; 0 is exact.
    skip_below: float = 0.0
    # Whether a backward pass can follow, so that keeping something for it pays.
    keep_for_backward: bool = True
    # (N, M) uint8, padded: which pairs there are, in place of labels, which then are all equal. No
    # pair is positive for one of its rows and negative for the other. The triton backend has none.
    listed: Tensor | None = None
    # How exactly float32 has to be multiplied: "highest", "high" or "medium" (precision.py).
    precision: str = "highest"

    @property
    def tensors(self) -> dict[str, Tensor | None]:
        """The tensors by the names of their arguments."""
        return {
            "embeddings": self.embeddings,
            "labels": self.labels,
            "ref_emb": self.ref_emb,
            "ref_labels": self.ref_labels,
            "listed": self.listed,
        }

    @property
    def self_mode(self) -> bool:
        return self.ref_emb is None

    @property
    def columns(self) -> Tensor:  # (M, D)
        return self.embeddings if self.ref_emb is None else self.ref_emb

    @property
    def classes(self) -> bool:
        """Whether references are class weights: each is the only one with its label, its place."""
        return self.ref_emb is not None and self.ref_labels is None

    @property
    def column_labels(self) -> Tensor:  # (M,)
        if self.ref_emb is None:
            return self.labels
        if self.ref_labels is None:
            return torch.arange(self.ref_emb.shape[0], device=self.ref_emb.device)
        return self.ref_labels

    def with_column_labels(self) -> PairProblem:
        """The same problem for backends that want labels of class weights, too."""
        return replace(self, ref_labels=self.column_labels) if self.classes else self

    @property
    def result_dtype(self) -> torch.dtype:
        return result_dtype(self.embeddings.dtype)


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that log-sum-exps are computed and returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def divisors(
    embeddings: Tensor,  # (N, D)
    normalize: bool,
) -> Tensor:  # (N,)
    """``max(|x|, eps)`` per row, or ones; NaN for a row that holds a NaN or an infinity.

    The NaN makes every similarity of that row NaN whatever the formula, so that no loss that saw
    the row can come out finite.
    """
    norms = torch.linalg.vector_norm(embeddings, dim=1, dtype=result_dtype(embeddings.dtype))
    divisor = norms.clamp_min(NORM_EPS) if normalize else torch.ones_like(norms)
    return divisor.masked_fill(~norms.isfinite(), math.nan)


def through_normalization(
    gradient: Tensor,  # (N, D) with respect to the rows over their divisors
    unit_rows: Tensor,  # (N, D)
    row_divisors: Tensor,  # (N,)
    normalize: bool,
    dtype: torch.dtype,
) -> Tensor:  # (N, D) with respect to the rows as given, in their dtype
    """The gradient behind the division by :func:`divisors`."""
    if normalize:
        along = (gradient * unit_rows).sum(1)
        # Below eps the divisor is a constant and there is nothing to project out.
        along = along.masked_fill(row_divisors <= NORM_EPS, 0)
        gradient = (gradient - unit_rows * along[:, None]) / row_divisors[:, None]
    # Cast to a half type without making the huge gradient of a zero vector infinite.
    limit = torch.finfo(dtype).max
    at_zero = (row_divisors <= NORM_EPS)[:, None]
    return torch.where(at_zero, gradient.clamp(-limit, limit), gradient).to(dtype)
