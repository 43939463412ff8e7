"""Log-sum-exps over pairs that are listed one by one, as miners do, instead of by labels.

A short list is worked off pair by pair; a long one becomes a matrix of one byte a pair, which the
tiles of a backend look their pairs up in. Neither way is there a matrix of similarities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from circle_kernels.autograd import is_plain
from circle_kernels.backend_choice import run_backward, run_forward, without_autocast
from circle_kernels.backends import cpu, gathered
from circle_kernels.backends.gathered import GatheredProblem
from circle_kernels.backends.interface import (
    COLUMN_NEGATIVE,
    COLUMN_POSITIVE,
    LISTED_MULTIPLE,
    ROW_NEGATIVE,
    ROW_POSITIVE,
    PairProblem,
)
from circle_kernels.formula import PairFormula

# One listed pair in so many of the matrix: fewer are faster pair by pair, since gathering a pair's
# rows costs what about this many of a product's pairs do.
_DENSE = 64

_OUT_OF_RANGE = "a listed pair is not among {rows} embeddings and {columns} references"


@dataclass(frozen=True)
class PairIndices:
    """Positive pairs ``(rows_pos[k], columns_pos[k])`` and negative pairs, in any order.

    A pair that is listed twice counts once.
    """

    rows_pos: Tensor  # (P,)
    columns_pos: Tensor  # (P,)
    rows_neg: Tensor  # (K,)
    columns_neg: Tensor  # (K,)

    def __len__(self) -> int:
        return len(self.rows_pos) + len(self.rows_neg)

    def is_short(self, rows: int, columns: int) -> bool:
        """Whether gathering beats a matrix of ``rows`` by ``columns``, in time and in memory."""
        return len(self) * _DENSE <= rows * columns


def pair_matrix(indices: PairIndices, rows: int, columns: int) -> Tensor:
    """(rows, columns) uint8: ``ROW_POSITIVE``, ``ROW_NEGATIVE``, both where a pair is listed as
    both, or 0; a view of memory that is padded as :attr:`PairProblem.listed` is.

    Raises:
        IndexError: an index out of range.
        ValueError: a list with more rows than columns, or the other way round.
    """
    kinds = _padded(torch.uint8, rows, columns, indices.rows_pos.device)[:rows, :columns]
    for row, column, kind in (
        (indices.rows_pos, indices.columns_pos, ROW_POSITIVE),
        (indices.rows_neg, indices.columns_neg, ROW_NEGATIVE),
    ):
        if len(row) != len(column):
            raise ValueError(f"a list of pairs has {len(row)} rows and {len(column)} columns")
        valid = cpu.mark_pairs(row, column, kind, kinds) if _is_plain_on_cpu(row, column) else None
        if valid is False:
            raise IndexError(_OUT_OF_RANGE.format(rows=rows, columns=columns))
        if valid is None:
            marked = torch.zeros_like(kinds, dtype=torch.bool)
            marked[row, column] = True
            kinds.add_(marked, alpha=kind)
    return kinds


def _is_plain_on_cpu(*tensors: Tensor) -> bool:
    return all(is_plain(each) and each.device.type == "cpu" for each in tensors)


def label_matrix(labels: Tensor, ref_labels: Tensor, *, with_diagonal: bool) -> Tensor:
    """The same from labels; without the diagonal the pair (i, i) is neither."""
    kinds = _padded(torch.uint8, len(labels), len(ref_labels), labels.device)
    inner = kinds[: len(labels), : len(ref_labels)]
    inner.copy_((labels[:, None] != ref_labels[None, :]).view(torch.uint8).add_(ROW_POSITIVE))
    if not with_diagonal:
        inner.fill_diagonal_(0)
    return inner


def _padded(dtype: torch.dtype, rows: int, columns: int, device: torch.device) -> Tensor:
    shape = [-(-size // LISTED_MULTIPLE) * LISTED_MULTIPLE for size in (rows, columns)]
    return torch.zeros(shape, dtype=dtype, device=device)


def labels_of(kinds: Tensor, *, with_diagonal: bool) -> tuple[Tensor, Tensor] | None:
    """Labels of rows and columns whose pairs are exactly those of a :func:`pair_matrix`.

    Without the diagonal, rows and columns are the same embeddings and have one label each. None
    where no labels have these pairs.
    """
    rows, columns = kinds.shape
    present = (kinds == ROW_POSITIVE) | (kinds == ROW_NEGATIVE)
    if not with_diagonal:
        present.fill_diagonal_(True)
    if not present.all():
        return None
    positive = kinds == ROW_POSITIVE
    if not with_diagonal:
        positive.fill_diagonal_(True)
    # A class is called after its first row; columns without one, and rows without columns, are
    # classes of their own.
    found_row, first_row = positive.view(torch.uint8).max(0)
    found_column, first_column = positive.view(torch.uint8).max(1)
    of_columns = torch.where(found_row > 0, first_row, rows + torch.arange(columns).to(first_row))
    of_rows = torch.where(
        found_column > 0, of_columns[first_column], -1 - torch.arange(rows).to(first_row)
    )
    same = of_rows[:, None] == of_columns[None, :]
    return (of_rows, of_columns) if torch.equal(same, positive) else None


def matrix_logsumexp(
    embeddings: Tensor,  # (N, D)
    ref_emb: Tensor | None,  # (M, D); None for the embeddings themselves
    kinds: Tensor,  # (N, M) uint8 from pair_matrix; no pair is both
    *,
    formula: PairFormula,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`circle_kernels.pair_logsumexp` over the pairs of a :func:`pair_matrix`."""
    both_ways = _both_ways(kinds) if ref_emb is None else None
    if both_ways is None:
        # Where a pair is positive for one of its rows and negative for the other, the transposed
        # tiles say something else.
        ref_emb = embeddings if ref_emb is None else ref_emb
    else:
        kinds = both_ways
    backend = "auto" if is_plain(embeddings) else "tiled"
    return _MatrixLogSumExp.apply(embeddings, ref_emb, kinds, formula, normalize, backend)


def _both_ways(kinds: Tensor) -> Tensor | None:
    """What both rows of a pair say of it; None where one says positive and the other negative."""
    base = _whole(kinds)
    both = base.t().contiguous().mul_(COLUMN_POSITIVE // ROW_POSITIVE).add_(base)
    positive = (both & (ROW_POSITIVE | COLUMN_POSITIVE)).bool()
    negative = (both & (ROW_NEGATIVE | COLUMN_NEGATIVE)).bool()
    return None if positive.logical_and_(negative).any() else both[: len(kinds), : len(kinds)]


def _whole(kinds: Tensor) -> Tensor:
    """The padded matrix that a :func:`pair_matrix` is the beginning of."""
    stride = kinds.stride(0)
    rows = -(-kinds.shape[0] // LISTED_MULTIPLE) * LISTED_MULTIPLE
    return kinds.as_strided((rows, stride), (stride, 1))


class _MatrixLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        kinds: Tensor,
        formula: PairFormula,
        normalize: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.settings = (formula, normalize)
        ctx.backend = backend
        problem = _problem(ctx, embeddings, ref_emb, kinds)
        lse_pos, lse_neg, saved = run_forward(problem, backend)
        ctx.save_for_backward(embeddings, ref_emb, kinds, lse_pos, lse_neg, saved)
        return lse_pos, lse_neg

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor) -> tuple[Any, ...]:
        embeddings, ref_emb, kinds, lse_pos, lse_neg, saved = ctx.saved_tensors
        gradients = run_backward(
            _problem(ctx, embeddings, ref_emb, kinds),
            lse_pos,
            lse_neg,
            saved,
            grad_lse_pos,
            grad_lse_neg,
            ctx.backend,
            ctx.needs_input_grad[0],
            ctx.needs_input_grad[1],
        )
        return (*gradients, None, None, None, None)


def _problem(ctx: Any, embeddings: Tensor, ref_emb: Tensor | None, kinds: Tensor) -> PairProblem:
    def no_labels(side: Tensor) -> Tensor:
        return torch.zeros(len(side), dtype=torch.int64, device=side.device)

    formula, normalize = ctx.settings
    return PairProblem(
        embeddings,
        no_labels(embeddings),
        ref_emb,
        None if ref_emb is None else no_labels(ref_emb),
        formula,
        normalize,
        keep_for_backward=ctx.needs_input_grad[0] or ctx.needs_input_grad[1],
        listed=kinds,
    )


def unique_pairs(
    indices: PairIndices, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rows, columns and kinds (True for positive) of all pairs, each once, sorted by row.

    None where a pair is listed both as positive and as negative.

    Raises:
        IndexError: an index out of range.
    """
    keys = []
    for row, column in (
        (indices.rows_pos, indices.columns_pos),
        (indices.rows_neg, indices.columns_neg),
    ):
        # Negative indices count from the end, as everywhere in torch.
        row, column = row + (row < 0) * rows, column + (column < 0) * columns
        if ((row < 0) | (row >= rows) | (column < 0) | (column >= columns)).any():
            raise IndexError(_OUT_OF_RANGE.format(rows=rows, columns=columns))
        keys.append(torch.unique(row * columns + column))
    pairs, order = torch.cat(keys).sort(stable=True)
    if (pairs[1:] == pairs[:-1]).any():
        return None
    return pairs // columns, pairs % columns, order < len(keys[0])


def gathered_logsumexp(
    embeddings: Tensor,  # (N, D)
    ref_emb: Tensor | None,  # (M, D); None for the embeddings themselves
    pairs: tuple[Tensor, Tensor, Tensor],  # from unique_pairs
    *,
    formula: PairFormula,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`circle_kernels.pair_logsumexp` over a few pairs."""
    return _GatheredLogSumExp.apply(embeddings, ref_emb, *pairs, formula, normalize)


class _GatheredLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        rows: Tensor,
        columns: Tensor,
        positive: Tensor,
        formula: PairFormula,
        normalize: bool,
    ) -> tuple[Tensor, Tensor]:
        inputs = (embeddings, ref_emb, rows, columns, positive)
        ctx.settings = (formula, normalize)
        with without_autocast(embeddings.device.type):
            lse_pos, lse_neg, similarities = gathered.forward(
                GatheredProblem(*inputs, *ctx.settings)
            )
        ctx.save_for_backward(*inputs, lse_pos, lse_neg, similarities)
        return lse_pos, lse_neg

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor) -> tuple[Any, ...]:
        *inputs, lse_pos, lse_neg, similarities = ctx.saved_tensors
        with without_autocast(inputs[0].device.type):
            gradients = gathered.backward(
                GatheredProblem(*inputs, *ctx.settings),
                torch.cat([lse_pos, lse_neg]),
                similarities,
                torch.cat([grad_lse_pos, grad_lse_neg]),
                needs_embeddings=ctx.needs_input_grad[0],
                needs_references=ctx.needs_input_grad[1],
            )
        return (*gradients, *(None,) * 5)
