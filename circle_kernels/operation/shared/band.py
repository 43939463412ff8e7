"""The fused operation on a band: the rows that one process has of a batch of several.

In self mode the gradient of row i is ``sum_j (G_ij + G_ji) y_j``, and G_ji needs of row j only its
embedding, its two log-sum-exps and their upstream gradients. So a process that sees all embeddings,
and then four numbers a row, computes the whole gradient of its own rows alone. To references, which
are no rows, it is the other way round: who has them sees all rows and their four numbers.

A band is computed in blocks: its own rows, which are a batch of their own in self mode, and the
rows of other processes as references. A batch of one process is the band without the latter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circle_kernels.backends.choice import run_backward, run_forward, serving, without_autocast
from circle_kernels.backends.problem import Needs, PairProblem, Passed, result_dtype
from circle_kernels.distributed.columns import Block, Columns, Spread
from circle_kernels.operation.batch import Batch, Operation

# At most so many blocks leave something for the backward pass: own rows, those before and after.
KEPT_BLOCKS = 3

_Gradients = tuple[Tensor | None, Tensor | None]  # of embeddings and of references


class Sums(NamedTuple):
    """Log-sum-exps of a band's rows over all columns, and what its blocks keep."""

    lse_pos: Tensor  # (n,)
    lse_neg: Tensor  # (n,)
    saved: list[Tensor]  # of each block that kept something, bytes
    partial: list[Tensor]  # (2, n): each one's log-sum-exps


@dataclass(frozen=True)
class Band:
    """This process's part of a batch: its rows, and what they are compared with."""

    rows: Block  # this process's embeddings and labels
    spread: Spread  # of the rows
    columns: Columns  # everybody's rows in self mode, else everybody's references, with labels
    self_mode: bool
    operation: Operation
    precision: str

    def forward(self, *, keep: bool) -> Sums:
        """Log-sum-exps of this process's rows; ``keep`` where a backward pass can follow."""
        blocks: Iterable[Block | None]
        blocks = _own_and(self.columns.others()) if self.self_mode else self.columns.everything()
        embeddings = self.rows[0]
        dtype = result_dtype(embeddings.dtype)
        total = embeddings.new_full((2, len(embeddings)), -math.inf, dtype=dtype)
        saved, partial = [], []
        # What blocks of a ring keep would be as large as what all processes hold.
        keep = keep and not self.spread.ring
        for block in blocks:
            problem = self._problem(self.rows, block)._replace(keep_for_backward=keep)
            lse_pos, lse_neg, kept = run_forward(self._module(problem), problem)
            part = torch.stack([lse_pos, lse_neg])
            total = torch.logaddexp(total, part)  # of two -inf -inf
            if keep:
                saved.append(kept)
                partial.append(part)
        return Sums(total[0], total[1], saved, partial)

    def backward(self, sums: Sums, upstream: tuple[Tensor, Tensor], needs: Needs) -> _Gradients:
        """Gradients of this process's rows and references.

        A collective call where references need theirs, and in self mode.
        """
        with without_autocast(self.rows[0].device.type):
            return self._backward(sums, upstream, needs)

    def _backward(self, sums: Sums, upstream: tuple[Tensor, Tensor], needs: Needs) -> _Gradients:
        # Of an empty set nothing is counted, whatever comes from above.
        upstream = (
            upstream[0].masked_fill(sums.lse_pos == -math.inf, 0),
            upstream[1].masked_fill(sums.lse_neg == -math.inf, 0),
        )
        statistics = torch.stack([*sums[:2], *upstream], dim=1)  # (n, 4)
        if self.self_mode:
            blocks = _own_and(self.columns.others(statistics))
            return self._row_gradient(sums, upstream, blocks), None
        of_rows = of_references = None
        if needs.embeddings:
            of_rows = self._row_gradient(sums, upstream, self.columns.everything())
        if needs.references:
            of_references = self._reference_gradient(statistics)
        return of_rows, of_references

    def _row_gradient(
        self, sums: Sums, upstream: tuple[Tensor, Tensor], blocks: Iterable[Block | None]
    ) -> Tensor:  # (n, D)
        total = _Total(self.rows[0])
        for place, block in enumerate(blocks):
            problem = self._problem(self.rows, block)
            if problem.is_empty:
                continue
            module = self._module(problem)
            if place < len(sums.saved):
                # Weights relative to the block's own sums are those relative to all times this.
                shares = _shares(sums.partial[place], torch.stack(sums[:2]))
                saved = sums.saved[place].view(module.saved_shape(problem))
                passed = Passed(saved, *(torch.stack(upstream) * shares))
            else:
                passed = Passed(module.save(problem, *sums[:2]), *upstream)
            if block is not None and self.self_mode:
                passed = passed._replace(column_statistics=block[2].T.contiguous())
            total.add(run_backward(module, problem, passed, Needs(True, False))[0])
        return total.result()

    def _reference_gradient(self, statistics: Tensor) -> Tensor:  # (m, D), of (n, 4)
        own = self.columns.own
        total = _Total(own[0])
        for *rows, of_rows in self.spread.columns(self.rows).everything(statistics):
            problem = self._problem(tuple(rows), own)
            if problem.is_empty:
                continue
            module = self._module(problem)
            lse_pos, lse_neg, *upstream = of_rows.T.contiguous()
            passed = Passed(module.save(problem, lse_pos, lse_neg), *upstream)
            total.add(run_backward(module, problem, passed, Needs(False, True))[1])
        return total.result()

    def _problem(self, rows: Block, block: Block | None) -> PairProblem:
        """Rows with one another, or with a block of others."""
        ref_emb, ref_labels = (None, None) if block is None else block[:2]
        batch = Batch(rows[0], rows[1], ref_emb, ref_labels)
        problem = self.operation.problem(batch, precision=self.precision)
        columns, whole = len(problem.columns), max(sum(self.columns.spread.sizes), 1)
        # What a row may lose, it may lose over all blocks; where columns count pairs, too, a
        # backend spreads it over the longer side.
        longer = max(columns, len(problem.embeddings)) if self.self_mode else columns
        return problem._replace(
            kept_part=columns / whole, skip_below=problem.skip_below * longer / whole
        )

    def _module(self, problem: PairProblem) -> Any:
        return serving(problem, self.operation.backend)


def _own_and(others: Iterable[Block]) -> Iterable[Block | None]:
    return itertools.chain([None], others)


def _shares(partial: Tensor, total: Tensor) -> Tensor:
    """The part that some pairs have in a sum, from both logarithms; 0 of an empty one."""
    return (partial - total).exp().masked_fill(partial == -math.inf, 0)


class _Total:
    """A gradient in parts, added up in the dtype of sums."""

    def __init__(self, side: Tensor) -> None:
        self._side = side
        self._sum: Tensor | None = None

    def add(self, part: Tensor | None) -> None:
        assert part is not None
        wide = part.to(result_dtype(part.dtype))
        self._sum = wide if self._sum is None else self._sum.add_(wide)

    def result(self) -> Tensor:
        """The gradient in the dtype of its side."""
        total, side = self._sum, self._side
        if total is None:
            return torch.zeros_like(side)
        if side.dtype == torch.float16:
            # That of a zero vector is huge, and not to become infinite by being added up.
            limit = torch.finfo(side.dtype).max
            total = torch.where(side.any(1, keepdim=True), total, total.clamp(-limit, limit))
        return total.to(side.dtype)
