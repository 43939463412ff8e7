"""The nearest neighbours of embeddings, without the (N, M) similarities in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from circle_kernels.arguments import check_embeddings, check_kinds, check_references, one_dtype
from circle_kernels.evaluation.exact import on_grid
from circle_kernels.evaluation.gallery import check_finite
from circle_kernels.evaluation.progress import progress_bar
from circle_kernels.evaluation.similarities import Similarities
from circle_kernels.options import check_flag, check_integer
from circle_kernels.top_k import streamed_top

# Similarities in memory at a time, and of how many rows.
_ENTRIES_AT_ONCE = 2**20
_ROWS_AT_ONCE = 1024


class Nearest(NamedTuple):
    """The nearest neighbours of each row, the most similar first.

    Attributes:
        similarities: (N, k), float32, or float64 for float64.
        indices: (N, k) int64, of references.
    """

    similarities: Tensor
    indices: Tensor


@torch.no_grad()
def nearest(
    embeddings: Tensor,  # (N, D)
    ref_emb: Tensor | None = None,  # (M, D)
    k: SupportsIndex = 10,
    *,
    normalize: bool = True,
    progress: bool = False,
) -> Nearest:
    """The k most similar references of each embedding, by exhaustive search.

    Similarities are sums without rounding errors, rounded once to the result's dtype (from rows
    that are rounded to about ``2^-27`` of their norm, and ``2^-48`` for float64). So the result is
    the same on every device and for any number of threads, and equal references tie.

    Args:
        embeddings: (N, D) queries, float16, bfloat16, float32 or float64, finite.
        ref_emb: (M, D) what is searched, on the same device; of two dtypes the wider one counts.
            Without them the embeddings are, each without its own copy.
        k: how many, at most M, or N - 1 without references.
        normalize: compare by cosine; else by inner product.
        progress: show a progress bar, by tqdm.

    Returns:
        Similarities and indices of references; of equally similar ones the lower index first.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype, device or range, or
            embeddings that are not finite; the message names it.
        ImportError: ``progress`` without tqdm.

    Example:
        >>> nearest(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), k=1).indices.tolist()
        [[1], [2], [1]]
    """
    check_kinds(embeddings=embeddings, ref_emb=ref_emb)
    check_embeddings("embeddings", embeddings)
    check_finite("embeddings", embeddings)
    references = embeddings
    if ref_emb is not None:
        check_references("ref_emb", ref_emb, embeddings)
        check_finite("ref_emb", ref_emb)
        embeddings, references = one_dtype(embeddings, ref_emb)
    normalize, progress = check_flag("normalize", normalize), check_flag("progress", progress)
    count = _checked_count(k, len(references), without_own=ref_emb is None)

    columns = _Operand.of(references, normalize)
    blocks = []
    with progress_bar(len(embeddings), "row", progress) as advance:
        for start in range(0, max(len(embeddings), 1), _ROWS_AT_ONCE):
            rows = _Operand.of(embeddings[start : start + _ROWS_AT_ONCE], normalize)
            nothing = rows.rows.new_empty(len(rows.rows), 0, dtype=columns.similarities.dtype)
            own = start if ref_emb is None else None
            blocks.append(streamed_top(_chunks(rows, columns, own), nothing, count))
            advance(len(rows.rows))
    return Nearest(*(torch.cat(each) for each in zip(*blocks, strict=True)))


def _checked_count(k: SupportsIndex, references: int, *, without_own: bool) -> int:
    count = check_integer("k", k, smallest=1)
    most = max(references - without_own, 0)
    if count > most:
        others = "other embeddings" if without_own else "references"
        raise ValueError(f"k must be at most the {most} {others}, got {count}")
    return count


class _Operand(NamedTuple):
    """Rows to compare, of norms near 1."""

    rows: Tensor  # (N, D) float64
    exponents: Tensor | None  # (N,) int32: of the powers of two that inner products are to have
    similarities: Similarities

    @staticmethod
    def of(given: Tensor, normalize: bool) -> _Operand:  # (N, D)
        rows, exponents = given.double(), None
        if not normalize:
            nothing = torch.zeros((), dtype=torch.int32, device=rows.device)
            # First by the largest coordinate, so that squares neither overflow nor vanish.
            _, first = torch.frexp(torch.linalg.vector_norm(rows, math.inf, dim=1))
            rows = _times_powers(rows, -first, nothing)
            _, second = torch.frexp(torch.linalg.vector_norm(rows, dim=1))
            rows, exponents = _times_powers(rows, -second, nothing), first + second
        similarities = Similarities.of(given.dtype, unit=True)
        on_its_grid = on_grid(rows, normalize, alike=False)
        return _Operand(similarities.operand(on_its_grid), exponents, similarities)

    def tile(self, columns: _Operand, chosen: slice) -> Tensor:  # (N, chosen)
        """Similarities to some columns."""
        values = self.similarities.tile(self.rows, columns.rows[chosen])
        if self.exponents is not None and columns.exponents is not None:
            values = _times_powers(values, self.exponents, columns.exponents[chosen])
        return values.to(self.similarities.dtype)


def _chunks(
    rows: _Operand,
    columns: _Operand,
    own: int | None,  # which column is the first row's own copy
) -> Iterator[tuple[int, Tensor]]:
    """The first column of each chunk, and the similarities (R, chunk); -inf of own copies."""
    number, depth = rows.rows.shape
    places = torch.arange(number, device=rows.rows.device)
    size = max(1, _ENTRIES_AT_ONCE // max(number, depth))
    for first in range(0, len(columns.rows), size):
        values = rows.tile(columns, slice(first, first + size))
        if own is not None:
            copies = places + (own - first)
            here = (copies >= 0) & (copies < values.shape[1])
            values[places[here], copies[here]] = -math.inf
        yield first, values


def _times_powers(
    values: Tensor,  # (R, C) float64
    of_rows: Tensor,  # (R,) int32
    of_columns: Tensor,  # (C,) or () int32
) -> Tensor:
    """Values times powers of two.

    A single one may be beyond float64's range, and that of a row may make up for a column's.
    """
    for rows, columns in zip(_halves(of_rows), _halves(of_columns), strict=True):
        values = torch.ldexp(torch.ldexp(values, rows[:, None]), columns)
    return values


def _halves(exponents: Tensor) -> tuple[Tensor, Tensor]:
    half = exponents.div(2, rounding_mode="floor")
    return half.double(), (exponents - half).double()
