"""The fused operation in pure PyTorch, one tile of the similarity matrix at a time.

Serves every device and dtype in bounded memory. Half-precision inputs are computed in float32.
In self mode only the tiles on and above the diagonal are visited: such a tile serves its rows and
its columns, in the forward pass with two log-sum-exps, in the backward pass with two products of
one weight tile. See docs/derivation.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from circle_kernels.backends.problem import (
    COLUMN_NEGATIVE,
    COLUMN_POSITIVE,
    ROW_NEGATIVE,
    ROW_POSITIVE,
    Needs,
    PairProblem,
    Passed,
)
from circle_kernels.backends.rows import unit_rows
from circle_kernels.backends.saved_bytes import HOOKS, as_bytes, from_bytes
from circle_kernels.formula import PairFormula
from circle_kernels.logsumexp import masked_logsumexp

# Rows and columns of a tile. On the CPU some ten temporaries of a tile have to share the cache;
# elsewhere a launch costs more than the memory does.
_CPU_TILE = 512
_ACCELERATOR_TILE = 2048

_OF_ROWS, _OF_COLUMNS = ROW_POSITIVE | ROW_NEGATIVE, COLUMN_POSITIVE | COLUMN_NEGATIVE


@dataclass(frozen=True)
class _Statistics:
    """What the backward pass knows of each row: its log-sum-exps and the gradients on them."""

    lse_pos: Tensor  # (N,)
    lse_neg: Tensor  # (N,)
    grad_lse_pos: Tensor  # (N,)
    grad_lse_neg: Tensor  # (N,)

    def weights(
        self, rows: slice, logits: Tensor, positive: Tensor, counted: Tensor | None, dim: int
    ) -> Tensor:
        """``dL/dz`` of a tile from the statistics of the rows that lie along ``dim``, which count
        all pairs where ``counted`` is None."""
        shape = (-1, 1) if dim == 0 else (1, -1)
        lse_pos, lse_neg, grad_pos, grad_neg = (
            statistic[rows].view(shape)
            for statistic in (self.lse_pos, self.lse_neg, self.grad_lse_pos, self.grad_lse_neg)
        )
        shares = (logits - torch.where(positive, lse_pos, lse_neg)).exp_()
        if counted is not None:
            shares.masked_fill_(~counted, 0)
        return shares.mul_(torch.where(positive, grad_pos, grad_neg))


class _Tiles:
    """The tiles of a problem: similarities and masks, recomputed whenever they are asked for."""

    def __init__(self, problem: PairProblem) -> None:
        self.problem = problem
        self.row_side = unit_rows(problem.embeddings, problem.normalize)
        self.column_side = (
            self.row_side if problem.self_mode else unit_rows(problem.columns, problem.normalize)
        )
        self.rows, self.columns = self.row_side.rows, self.column_side.rows
        self.edge = _CPU_TILE if problem.embeddings.device.type == "cpu" else _ACCELERATOR_TILE

    @property
    def leaves_pairs_out(self) -> bool:
        """Whether there are pairs of neither kind beside those of rows with themselves."""
        return self.problem.listed is not None or self.problem.own_columns is not None

    def factors(self) -> tuple[Tensor, Tensor]:
        """Rows and columns as gradients are products with. A row of NaN makes the gradients of all
        pairs that count NaN; times the 0 of others it would spread."""
        if not self.leaves_pairs_out:
            return self.rows, self.columns
        rows, columns = (
            each.nan_to_num(0.0, math.inf, -math.inf) for each in (self.rows, self.columns)
        )
        return rows, columns

    def counted(self, rows: slice, columns: slice, dim: int) -> Tensor | None:
        """True where the rows that lie along ``dim`` count a listed pair; None for labels."""
        if self.problem.listed is None:
            return None
        return self.listed(rows, columns, _OF_ROWS if dim == 0 else _OF_COLUMNS)

    def masks(self, rows: slice, columns: slice, dim: int) -> tuple[Tensor, Tensor]:
        """The positive and the negative pairs of the rows that lie along ``dim``."""
        if self.problem.listed is not None:
            positive, negative = (
                (ROW_POSITIVE, ROW_NEGATIVE) if dim == 0 else (COLUMN_POSITIVE, COLUMN_NEGATIVE)
            )
            return self.listed(rows, columns, positive), self.listed(rows, columns, negative)
        same = self.positive(rows, columns)
        different = ~same
        if self.on_diagonal(rows, columns):
            same.fill_diagonal_(False)
        own = self.own(rows, columns)
        if own is not None:
            same &= ~own
            different &= ~own
        return same, different

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Row and column range of each tile to visit; in self mode those from the diagonal on."""
        for row in range(0, len(self.rows), self.edge):
            for column in range(row if self.problem.self_mode else 0, len(self.columns), self.edge):
                yield (
                    slice(row, min(row + self.edge, len(self.rows))),
                    slice(column, min(column + self.edge, len(self.columns))),
                )

    def on_diagonal(self, rows: slice, columns: slice) -> bool:
        return self.problem.self_mode and rows.start == columns.start

    def mirrored(self, rows: slice, columns: slice) -> bool:
        """Whether the tile also stands for its transpose, which is not visited."""
        return self.problem.self_mode and rows.start != columns.start

    def own(self, rows: slice, columns: slice) -> Tensor | None:
        """True where a column is the row's own copy; None where there are no copies."""
        own = self.problem.own_columns
        if own is None:
            return None
        places = torch.arange(columns.start, columns.stop, device=own.device)
        return own[rows][:, None] == places[None, :]

    def similarity(self, rows: slice, columns: slice) -> Tensor:
        return self.rows[rows] @ self.columns[columns].T

    def listed(self, rows: slice, columns: slice, kinds: int) -> Tensor:
        """True where one of the kinds is listed."""
        assert self.problem.listed is not None
        return (self.problem.listed[rows, columns] & kinds) != 0

    def positive(self, rows: slice, columns: slice) -> Tensor:
        """True where labels agree, which on the diagonal includes an embedding with itself, or
        where a positive pair is listed."""
        if self.problem.listed is not None:
            return self.listed(rows, columns, ROW_POSITIVE | COLUMN_POSITIVE)
        return self.problem.labels[rows][:, None] == self.problem.column_labels[columns][None, :]


def status() -> str:
    """A sentence that begins with ``"usable"``."""
    return "usable: pure PyTorch in tiles, every device and dtype"


def unusable_reason(device: torch.device, dtype: torch.dtype, formula: PairFormula) -> None:
    """Nothing keeps it from serving."""


def saved_shape(problem: PairProblem) -> tuple[int, int]:
    """Both log-sum-exps as bytes. No other backend saves a matrix."""
    return (2, problem.num_anchors * problem.result_dtype.itemsize)


def save(problem: PairProblem, lse_pos: Tensor, lse_neg: Tensor) -> Tensor:
    """What the backward pass needs of both log-sum-exps, whoever has computed them."""
    return as_bytes(torch.stack([lse_pos, lse_neg]))


def saves_labels(problem: PairProblem) -> bool:
    """Nothing is saved."""
    return False


def forward(problem: PairProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of every row, merged tile by tile."""
    tiles = _Tiles(problem.with_column_labels())
    lse_pos = tiles.rows.new_full((problem.num_anchors,), -math.inf)
    lse_neg = lse_pos.clone()
    # Those of columns, which in self mode are the rows.
    first = len(tiles.rows) if problem.both_sides else 0
    for rows, columns in tiles.slices():
        similarity = tiles.similarity(rows, columns)
        kinds = (
            (lse_pos, problem.formula.positive_logits(similarity)),
            (lse_neg, problem.formula.negative_logits(similarity)),
        )
        masks = tiles.masks(rows, columns, dim=0)
        for (lse, logits), mask in zip(kinds, masks, strict=True):
            lse[rows] = torch.logaddexp(lse[rows], masked_logsumexp(logits, mask, dim=1))
        if tiles.mirrored(rows, columns) or problem.both_sides:
            if problem.listed is not None:
                masks = tiles.masks(rows, columns, dim=1)
            for (lse, logits), mask in zip(kinds, masks, strict=True):
                of_columns = lse[first:][columns]
                of_columns.copy_(torch.logaddexp(of_columns, masked_logsumexp(logits, mask, dim=0)))
    return lse_pos, lse_neg, save(problem, lse_pos, lse_neg)


def backward(
    problem: PairProblem, passed: Passed, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of both sides from recomputed tiles.

    Raises:
        RuntimeError: ``passed.saved`` is not what :func:`forward` returned for this problem.
    """
    tiles, of_rows, of_columns = _passed(problem, passed)
    row_factors, column_factors = tiles.factors()
    grad_rows = torch.zeros_like(tiles.rows) if needs.embeddings else None
    if problem.self_mode:
        grad_columns = grad_rows
    else:
        grad_columns = torch.zeros_like(tiles.columns) if needs.references else None

    for rows, columns in tiles.slices():
        gradient = _Pairs(tiles, rows, columns).gradient(of_rows, of_columns)
        if grad_rows is not None:
            grad_rows[rows].addmm_(gradient, column_factors[columns])
        if grad_columns is not None and not tiles.on_diagonal(rows, columns):
            grad_columns[columns].addmm_(gradient.T, row_factors[rows])

    return (
        tiles.row_side.input_gradient(grad_rows) if grad_rows is not None else None,
        tiles.column_side.input_gradient(grad_columns)
        if grad_columns is not None and not problem.self_mode
        else None,
    )


def _passed(problem: PairProblem, passed: Passed) -> tuple[_Tiles, _Statistics, _Statistics | None]:
    """The tiles of a backward pass, and what it knows of rows and of columns that count pairs.

    Raises:
        RuntimeError: ``passed.saved`` is not what :func:`forward` returned for this problem.
    """
    saved, *gradients, column_statistics = passed
    if saved.shape != saved_shape(problem):
        raise RuntimeError(
            f"circle_kernels: the backward pass wants log-sum-exps as {saved_shape(problem)} "
            f"bytes, got shape {tuple(saved.shape)}; {HOOKS}"
        )
    tiles = _Tiles(problem.with_column_labels())
    known = [*from_bytes(saved, problem.result_dtype), *gradients]
    of_rows = _Statistics(*(each[: len(tiles.rows)] for each in known))
    of_columns = of_rows if problem.self_mode else None
    if problem.both_sides:
        of_columns = _Statistics(*(each[len(tiles.rows) :] for each in known))
    if column_statistics is not None:
        of_columns = _Statistics(*column_statistics)
    return tiles, of_rows, of_columns


def scale_gradients(problem: PairProblem, passed: Passed) -> Tensor:  # (2,)
    """Of each kind of pair ``sum_i grad_lse_i sum_j softmax_ij z_ij``, from recomputed tiles."""
    tiles, of_rows, of_columns = _passed(problem, passed)
    total = tiles.rows.new_zeros(2)
    for rows, columns in tiles.slices():
        pairs = _Pairs(tiles, rows, columns)
        # On the diagonal both pairs of two rows are there, each as its row's.
        mirrored = None if tiles.on_diagonal(rows, columns) else of_columns
        weights = pairs.weights(of_rows, mirrored)
        terms = weights * pairs.logits.masked_fill(weights == 0, 0)  # perhaps infinite, or NaN
        of_positives = terms.masked_fill(~pairs.positive, 0).sum()
        total += torch.stack([of_positives, terms.sum() - of_positives])
    return total


class _Pairs:
    """The pairs of a tile."""

    def __init__(self, tiles: _Tiles, rows: slice, columns: slice) -> None:
        self._tiles, self._rows, self._columns = tiles, rows, columns
        self.similarity = tiles.similarity(rows, columns)
        self.positive = tiles.positive(rows, columns)
        self.logits = tiles.problem.formula.pair_logits(self.similarity, self.positive)

    def weights(self, of_rows: _Statistics, of_columns: _Statistics | None) -> Tensor:
        """``dL/dz`` of each pair, of both its sides where columns count pairs, too, as in self
        mode: s_ij and s_ji are one number."""
        tiles, rows, columns = self._tiles, self._rows, self._columns
        counted = tiles.counted(rows, columns, dim=0)
        weights = of_rows.weights(rows, self.logits, self.positive, counted, dim=0)
        if of_columns is not None:
            counted = tiles.counted(rows, columns, dim=1)
            weights += of_columns.weights(columns, self.logits, self.positive, counted, dim=1)
        return self._without_own(weights)

    def _without_own(self, values: Tensor) -> Tensor:
        """With 0 where a row meets itself or its own copy."""
        tiles, rows, columns = self._tiles, self._rows, self._columns
        if tiles.on_diagonal(rows, columns) and tiles.problem.listed is None:
            values.fill_diagonal_(0)
        own = tiles.own(rows, columns)
        return values if own is None else values.masked_fill_(own, 0)

    def gradient(self, of_rows: _Statistics, of_columns: _Statistics | None) -> Tensor:
        """``G``, or ``G + G.T``."""
        problem = self._tiles.problem
        slopes = problem.formula.pair_slopes(self.similarity, self.positive)
        if problem.formula.is_of_functions or self._tiles.leaves_pairs_out:
            # NaN, or infinite ones, as a distance has at 1, times the 0 of a pair that does not
            # count.
            slopes = self._without_own(slopes)
            if problem.listed is not None:
                kinds = _OF_ROWS if of_columns is None else _OF_ROWS | _OF_COLUMNS
                slopes.masked_fill_(~self._tiles.listed(self._rows, self._columns, kinds), 0)
        return self.weights(of_rows, of_columns).mul_(slopes)
