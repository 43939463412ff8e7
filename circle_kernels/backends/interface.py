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
# does. ListedPair of csrc/common/problem.h.
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


@dataclass(frozen=True)
class UnitRows:
    """One side's rows over their divisors, ``max(|x|, eps)`` per row or 1, and the way back.

    A row that holds a NaN or an infinity is NaN, so that every similarity of it is NaN whatever the
    formula, and no loss that saw the row can come out finite.
    """

    rows: Tensor  # (N, D) in the result dtype
    divisors: Tensor  # (N,) of the rows as given times ``powers``
    powers: Tensor  # (N,) powers of two, 1 but for rows whose squares might overflow
    normalize: bool
    dtype: torch.dtype  # of the rows as given, and so of their gradient

    def input_gradient(
        self,
        gradient: Tensor,  # (N, D) with respect to ``rows``
    ) -> Tensor:  # (N, D) with respect to the rows as given, in their dtype
        """The gradient behind the division by the divisors."""
        # At or below eps the divisor is a constant: nothing to project out.
        at_zero = self.divisors <= NORM_EPS
        if self.normalize:
            along = (gradient * self.rows).sum(1).masked_fill(at_zero, 0)
            gradient = (gradient - self.rows * along[:, None]) / self.divisors[:, None]
            gradient *= self.powers[:, None]
        # Cast to a half type without making the huge gradient of a zero vector infinite.
        limit = torch.finfo(self.dtype).max
        return torch.where(at_zero[:, None], gradient.clamp(-limit, limit), gradient).to(self.dtype)


def unit_rows(
    embeddings: Tensor,  # (N, D)
    normalize: bool,
) -> UnitRows:
    """Divide rows by their norms, or leave them as they are."""
    dtype = result_dtype(embeddings.dtype)
    rows = embeddings.contiguous()
    largest = torch.linalg.vector_norm(rows, math.inf, dim=1, dtype=dtype)
    # Entries below 2^48 in float32 have squares that add up; larger ones do so times 2^-80, and
    # their norm stays well above eps.
    octaves = math.frexp(torch.finfo(dtype).max)[1] // 2
    powers = torch.ones_like(largest)
    if normalize:
        powers.masked_fill_(largest >= 2.0 ** (octaves - 16), 2.0 ** -(octaves + 16))
    rows = rows * powers[:, None]
    divisors = torch.ones_like(largest)
    if normalize:
        divisors = torch.linalg.vector_norm(rows, dim=1).clamp_min(NORM_EPS)
    divisors.masked_fill_(~largest.isfinite(), math.nan)
    rows /= divisors[:, None]
    return UnitRows(rows, divisors, powers, normalize, embeddings.dtype)


def padded_sides(rows: int, columns: int) -> list[int]:
    """Both sides of the memory of :attr:`PairProblem.listed`."""
    return [-(-size // LISTED_MULTIPLE) * LISTED_MULTIPLE for size in (rows, columns)]


def with_padding(
    listed: Tensor,  # (N, M) uint8
) -> Tensor:  # (N, M) uint8, the beginning of a padded matrix
    """:attr:`PairProblem.listed` as it is or, where its padding is lost, as a copy: what hooks on
    saved tensors give back are the entries."""
    rows, columns = listed.shape
    sides = padded_sides(rows, columns)
    reach = listed.storage_offset() + (sides[0] - 1) * listed.stride(0) + sides[1]
    if (
        listed.stride(1) == 1
        and listed.stride(0) >= sides[1]
        and reach <= listed.untyped_storage().nbytes()
    ):
        return listed
    padded = listed.new_zeros(sides)[:rows, :columns]
    return padded.copy_(listed)
