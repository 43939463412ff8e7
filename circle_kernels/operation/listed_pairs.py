"""Log-sum-exps over pairs that are listed one by one, as miners do, instead of by labels.

A short list is worked off pair by pair; a long one becomes a matrix of one byte a pair, which the
tiles of a backend look their pairs up in. Neither way is there a matrix of similarities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circle_kernels.arguments import check_kinds
from circle_kernels.backends import cpu, gathered, tiled
from circle_kernels.backends.addressable import all_addressable, is_plain, materialized
from circle_kernels.backends.choice import without_autocast
from circle_kernels.backends.gathered import GatheredProblem
from circle_kernels.backends.problem import (
    COLUMN_NEGATIVE,
    COLUMN_POSITIVE,
    ROW_NEGATIVE,
    ROW_POSITIVE,
    Needs,
    Passed,
    result_dtype,
)
from circle_kernels.backends.saved_bytes import as_bytes, from_bytes, padded_sides
from circle_kernels.formula import PairFormula
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.differentiable import traced_gradients
from circle_kernels.operation.eager import is_traced, logsumexps, once, owned
from circle_kernels.operation.registered import encode_precision, is_batch_of_gradients

# One listed pair in so many of the matrix: fewer are faster pair by pair, since gathering a pair's
# rows costs what about this many of a product's pairs do.
_DENSE = 64

_Settings = tuple[PairFormula, bool]  # and whether rows are normalised
_Gradients = tuple[Tensor | None, Tensor | None]

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
    kinds = no_pairs(rows, columns, indices.rows_pos.device)
    for row, column, kind in (
        (indices.rows_pos, indices.columns_pos, ROW_POSITIVE),
        (indices.rows_neg, indices.columns_neg, ROW_NEGATIVE),
    ):
        if len(row) != len(column):
            raise ValueError(f"a list of pairs has {len(row)} rows and {len(column)} columns")
        readable = all(is_plain(each) and each.is_cpu for each in (row, column, kinds))
        valid = cpu.mark_pairs(row, column, kind, kinds) if readable else None
        if valid is False:
            raise IndexError(_OUT_OF_RANGE.format(rows=rows, columns=columns))
        if valid is None:
            marked = torch.zeros_like(kinds, dtype=torch.bool)
            marked[row, column] = True
            kinds.add_(marked, alpha=kind)
    return kinds


def label_matrix(labels: Tensor, ref_labels: Tensor, *, with_diagonal: bool) -> Tensor:
    """The same from labels; without the diagonal the pair (i, i) is neither."""
    kinds = no_pairs(len(labels), len(ref_labels), labels.device)
    kinds.copy_((labels[:, None] != ref_labels[None, :]).view(torch.uint8).add_(ROW_POSITIVE))
    if not with_diagonal:
        kinds.fill_diagonal_(0)
    return kinds


def no_pairs(rows: int, columns: int, device: torch.device) -> Tensor:
    """A matrix without any pair, the beginning of one with padding."""
    sides = padded_sides(rows, columns)
    return torch.zeros(sides, dtype=torch.uint8, device=device)[:rows, :columns]


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
    places = torch.arange(max(rows, columns), device=kinds.device)
    of_columns = torch.where(found_row > 0, first_row, rows + places[:columns])
    of_rows = torch.where(found_column > 0, of_columns[first_column], -1 - places[:rows])
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
    return logsumexps(matrix_batch(embeddings, ref_emb, kinds), Operation(formula, normalize))


def matrix_batch(embeddings: Tensor, ref_emb: Tensor | None, kinds: Tensor) -> Batch:
    """The batch that has the pairs of a :func:`pair_matrix`; no pair is both."""
    embeddings, ref_emb = _readable(embeddings, ref_emb)
    if ref_emb is None:
        # Where a pair is positive for one of its rows and negative for the other, the transposed
        # tiles say something else.
        both = both_ways(kinds)
        ref_emb, kinds = (embeddings, kinds) if both is None else (None, both)
    return listed_batch(embeddings, ref_emb, kinds)


def _readable(embeddings: Tensor, ref_emb: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both sides as kernels can read them.

    Raises:
        TypeError, ValueError: one of them does not have its own numbers.
    """
    if all_addressable(embeddings, ref_emb):
        return embeddings, ref_emb
    check_kinds(embeddings=embeddings, ref_emb=ref_emb)
    return materialized(embeddings), None if ref_emb is None else materialized(ref_emb)


def listed_batch(embeddings: Tensor, ref_emb: Tensor | None, kinds: Tensor) -> Batch:
    """A batch whose pairs are listed: labels, then all equal, say nothing."""

    def no_labels(side: Tensor) -> Tensor:
        return torch.zeros(side.shape[0], dtype=torch.int64, device=side.device)

    ref_labels = None if ref_emb is None else no_labels(ref_emb)
    return Batch(embeddings, no_labels(embeddings), ref_emb, ref_labels, kinds)


def both_ways(kinds: Tensor) -> Tensor | None:
    """What both rows of a pair say of it; None where one says positive and the other negative."""
    base = _whole(kinds)
    both = base.t().contiguous().mul_(COLUMN_POSITIVE // ROW_POSITIVE).add_(base)
    positive = (both & (ROW_POSITIVE | COLUMN_POSITIVE)).bool()
    negative = (both & (ROW_NEGATIVE | COLUMN_NEGATIVE)).bool()
    return None if positive.logical_and_(negative).any() else both[: len(kinds), : len(kinds)]


def _whole(kinds: Tensor) -> Tensor:
    """The padded matrix that a :func:`pair_matrix` is the beginning of."""
    rows, columns = padded_sides(*kinds.shape)
    return kinds.as_strided((rows, columns), (columns, 1))


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
    embeddings, ref_emb = _readable(embeddings, ref_emb)
    if is_traced(Batch(embeddings, pairs[0], ref_emb), Operation(formula, normalize)):
        kinds = matrix_of_pairs(pairs, embeddings, ref_emb)
        return matrix_logsumexp(embeddings, ref_emb, kinds, formula=formula, normalize=normalize)
    keep = Batch(embeddings, pairs[0], ref_emb).requires_grad
    return _GatheredLogSumExp.apply(embeddings, ref_emb, (pairs, (formula, normalize), keep))


def matrix_of_pairs(
    pairs: tuple[Tensor, Tensor, Tensor], embeddings: Tensor, ref_emb: Tensor | None
) -> Tensor:
    """:func:`pair_matrix` of what :func:`unique_pairs` returned."""
    rows, columns, positive = pairs
    indices = PairIndices(rows[positive], columns[positive], rows[~positive], columns[~positive])
    return pair_matrix(indices, len(embeddings), len(embeddings if ref_emb is None else ref_emb))


class _GatheredLogSumExp(torch.autograd.Function):
    """The same with its gradient, from the pairs' similarities."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        call: tuple[tuple[Tensor, Tensor, Tensor], _Settings, bool],  # and whether to keep it
    ) -> tuple[Tensor, Tensor]:
        pairs, settings, keep = call
        with without_autocast(embeddings.device.type):
            lse_pos, lse_neg, similarities = gathered.forward(
                GatheredProblem(embeddings, ref_emb, *pairs, *settings)
            )
        if keep:
            ctx.settings, ctx.needs = settings, Needs(*ctx.needs_input_grad[:2])
            statistics = map(as_bytes, (lse_pos, lse_neg, similarities))
            ctx.save_for_backward(owned(embeddings), owned(ref_emb), *pairs, *statistics)
        return lse_pos, lse_neg

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        batched = is_batch_of_gradients(*upstream)
        compute = _batch_of_gradients if batched else _gathered_gradients
        *tensors, lse_pos, lse_neg, similarities = ctx.saved_tensors
        dtype = result_dtype(tensors[0].dtype)
        statistics = (from_bytes(each, dtype) for each in (lse_pos, lse_neg, similarities))
        gradients = once(
            (*tensors, *statistics),
            upstream,
            lambda saved, upstream: compute(saved, upstream, ctx.settings, ctx.needs),
        )
        return (*gradients, None)


def _gathered_gradients(
    saved: tuple[Any, ...],
    upstream: tuple[Tensor, ...],
    settings: _Settings,
    needs: Needs,
) -> _Gradients:
    embeddings, ref_emb, rows, columns, positive, lse_pos, lse_neg, similarities = saved
    with without_autocast(embeddings.device.type):
        return gathered.backward(
            GatheredProblem(embeddings, ref_emb, rows, columns, positive, *settings),
            torch.cat([lse_pos, lse_neg]),
            similarities,
            torch.cat(upstream),
            needs,
        )


def _batch_of_gradients(
    saved: tuple[Any, ...],
    upstream: tuple[Tensor, ...],
    settings: _Settings,
    needs: Needs,
) -> _Gradients:
    """The same by the registered op, which ``torch.func`` knows, over a matrix of the pairs."""
    embeddings, ref_emb, rows, columns, positive, lse_pos, lse_neg, _ = saved
    references = embeddings if ref_emb is None else ref_emb
    kinds = matrix_of_pairs((rows, columns, positive), embeddings, ref_emb)
    batch = listed_batch(embeddings, references, kinds)
    operation = Operation(*settings, backend="tiled")
    of_rows, of_columns = traced_gradients(
        batch,
        operation,
        Passed(tiled.save(operation.problem(batch), lse_pos, lse_neg), *upstream),
        Needs(needs.embeddings, needs.embeddings if ref_emb is None else needs.references),
        encode_precision("highest"),
    )
    if ref_emb is None and of_rows is not None and of_columns is not None:
        return of_rows + of_columns, None
    return of_rows, of_columns
