"""What a backend is given and what it returns.

A backend is a module, listed in :data:`circle_kernels.backends.choice.BACKENDS`, that has

    forward(problem) -> (lse_pos, lse_neg, saved)
    save(problem, lse_pos, lse_neg) -> saved, of log-sum-exps that are known already
    backward(problem, passed, needs) -> (grad_embeddings | None, grad_references | None)
    saved_shape(problem) -> the shape of saved, in bytes, without computing anything
    saves_labels(problem) -> whether the backward pass finds labels there and reads no others
    status() -> a sentence that begins with "usable" or "not usable"
    unusable_reason(device, dtype, formula) -> why it cannot take these, or None where it can

and, where it has code for them,

    row_losses(lse_pos, lse_neg, reduction) -> (loss, slopes) as operation/reductions.py has them,
        or None, which leaves these to PyTorch
    scale_gradients(problem, passed) -> (2,), of each kind of pair sum_i grad_lse_i sum_j p_ij z_ij
        over all that count pairs, where p is the softmax of logits z: what the derivative with
        respect to log gamma is. tiled has it for those that do not
    loss_and_gradients(problem, reduction, needs) -> (loss, (grad_embeddings, grad_references)): all
        of it at once

``saved`` is one tensor of bytes (uint8) with whatever the backward pass can use, or None for an
empty one. Not of floats: hooks on saved tensors that compress these would not know their range. The
backward pass raises RuntimeError where it is not what the forward pass of the problem left.

With ``both_sides`` the columns count pairs as rows do: log-sum-exps and upstream gradients are then
(N + M,), those of rows first, and gradients of both sides are of all of them.

A batch that is spread over processes is computed in blocks: rows that are here against those of
elsewhere, as references. A row's sums are then those over all blocks, which ``save`` takes, and a
pair of one batch counts for its column, too: ``Passed.column_statistics``.

Both passes run without autograd, with autocast off, on checked arguments, and on at least one
row and one column. Log-sum-exps are (N,), or (N + M,), in :attr:`PairProblem.result_dtype`,
``-inf`` for an empty set; gradients are in the inputs' dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from circle_kernels.formula import PairFormula

# What PairProblem.listed says of the pair (i, j): how row i counts it and, in self mode, how row j
# does. ListedPair of csrc/common/problem.h.
ROW_POSITIVE, ROW_NEGATIVE, COLUMN_POSITIVE, COLUMN_NEGATIVE = 1, 2, 4, 8
# Both sides of PairProblem.listed are padded with zeros to a multiple: the C++ kernel's PANEL.
LISTED_MULTIPLE = 96

TENSORS = ("embeddings", "labels", "ref_emb", "ref_labels", "listed", "own_columns")


class Passed(NamedTuple):
    """What reaches a backward pass beside the problem."""

    saved: Tensor  # as the forward pass left it
    grad_lse_pos: Tensor  # (N,)
    grad_lse_neg: Tensor  # (N,)
    # (4, M) of references that count each pair as well, as rows of the same batch do: lse_pos,
    # lse_neg, grad_lse_pos, grad_lse_neg. The embeddings' gradient is then that of G_ij and of
    # G_ji, where G_ji = dL/ds_ij through row j's sums; the references' is not asked for.
    column_statistics: Tensor | None = None


class Needs(NamedTuple):
    """Which gradients are wanted of a backward pass."""

    embeddings: bool
    references: bool


class PairProblem(NamedTuple):
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
    # pair is positive for one of its rows and negative for the other.
    listed: Tensor | None = None
    # (N,) int64, with references and their labels: which of these is each row's own copy, a pair of
    # neither kind; -1 for none.
    own_columns: Tensor | None = None
    # With references and their labels: whether columns count pairs, too, each for itself.
    both_sides: bool = False
    # How exactly float32 has to be multiplied: "highest", "high" or "medium" (precision.py).
    precision: str = "highest"
    # Part of what a batch may keep for its backward pass, of a problem that is one of its blocks.
    kept_part: float = 1.0

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors in the order of :data:`TENSORS`."""
        return tuple(getattr(self, name) for name in TENSORS)

    @property
    def named_tensors(self) -> dict[str, Tensor | None]:
        """The tensors by the names of their arguments."""
        return dict(zip(TENSORS, self.tensors, strict=True))

    @property
    def is_empty(self) -> bool:
        """Whether there is no pair at all."""
        if self.embeddings.shape[0] == 0:
            return True
        return self.ref_emb is not None and self.ref_emb.shape[0] == 0

    @property
    def self_mode(self) -> bool:
        return self.ref_emb is None

    @property
    def columns(self) -> Tensor:  # (M, D)
        return self.embeddings if self.ref_emb is None else self.ref_emb

    @property
    def num_anchors(self) -> int:
        """How many count pairs: rows and, with ``both_sides``, columns."""
        rows = self.embeddings.shape[0]
        return rows + self.columns.shape[0] if self.both_sides else rows

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
        return self._replace(ref_labels=self.column_labels) if self.classes else self

    @property
    def result_dtype(self) -> torch.dtype:
        return result_dtype(self.embeddings.dtype)


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that log-sum-exps are computed and returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
