"""Some rows of a batch as the process that holds them computes them: in blocks of columns."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from circle_kernels.backends import triton as triton_backend
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from tests.support.cases import Case
from tests.support.yardstick import Yardstick, yardsticks


def problem_of(case: Case, dtype: torch.dtype, device: str = "cpu") -> PairProblem:
    """A whole batch, compared with itself."""
    embeddings, labels, *_ = case.tensors(dtype, device)
    assert embeddings is not None
    assert labels is not None
    return PairProblem(embeddings.detach(), labels, None, None, case.formula, case.normalize)


def blocks_of(batch: PairProblem, rows: slice) -> Iterator[tuple[slice, PairProblem]]:
    """The rows against those before them, themselves and those behind them."""
    embeddings, labels = batch.embeddings, batch.labels
    own = batch._replace(embeddings=embeddings[rows], labels=labels[rows])
    yield rows, own
    for columns in (slice(0, rows.start), slice(rows.stop, len(labels))):
        if columns.start < columns.stop:
            yield columns, own._replace(ref_emb=embeddings[columns], ref_labels=labels[columns])


def logsumexps_of_rows(batch: PairProblem, rows: slice) -> Tensor:  # (2, rows)
    """Added up from those of blocks."""
    found = [torch.stack(triton_backend.forward(block)[:2]) for _, block in blocks_of(batch, rows)]
    return torch.logsumexp(torch.stack(found), dim=0)


def gradient_of_rows(
    batch: PairProblem,
    rows: slice,
    upstream: Tensor,  # (2, N)
    sums: Tensor,  # (2, N), of all rows
    *,
    known: bool,
) -> Tensor:  # (rows, D), float64
    """Added up from those of blocks: with sums that are ``known``, or with a block's own, against
    which gradients are then as much smaller as its share of the sums is."""
    statistics = torch.cat([sums, upstream])
    total = torch.zeros(batch.embeddings[rows].shape, dtype=torch.float64, device=sums.device)
    for columns, block in blocks_of(batch, rows):
        gradients = upstream[:, rows]
        if known:
            saved = triton_backend.save(block, *sums[:, rows])
        else:
            *of_block, saved = triton_backend.forward(block)
            shares = (torch.stack(of_block) - sums[:, rows]).exp()
            gradients = gradients * shares.nan_to_num(nan=0.0)  # of empty sets
        of_columns = None if block.self_mode else statistics[:, columns]
        passed = Passed(saved, *gradients, of_columns)
        gradient, none = triton_backend.backward(block, passed, Needs(True, False))
        assert gradient is not None
        assert gradient.dtype == batch.embeddings.dtype
        assert none is None
        total += gradient.double()
    return total


def assert_rows_are_exact(case: Case, rows: slice, dtype: torch.dtype, device: str = "cpu") -> None:
    """Sums and gradients of these rows are as exact as eager's, from either kind of sums."""
    of_sums, (of_gradient,) = yardsticks(case, dtype, device)
    batch = problem_of(case, dtype, device)
    sums = torch.stack(triton_backend.forward(batch)[:2])
    gamma, float_eps = case.formula.gamma, torch.finfo(torch.float32).eps
    for ours, whole in zip(logsumexps_of_rows(batch, rows), of_sums, strict=True):
        scale = whole.truth[whole.truth.isfinite()].abs().amax().item()
        _rows_of(whole, rows).assert_close(ours, float_eps, gamma, scale)
    upstream = upstream_of(case).to(sums)
    scale = of_gradient.truth.abs().max().item()
    for known in (True, False):
        found = gradient_of_rows(batch, rows, upstream, sums, known=known)
        _rows_of(of_gradient, rows).assert_close(found, torch.finfo(dtype).eps, gamma, scale)


def upstream_of(case: Case) -> Tensor:  # (2, N) float64
    """What arrives from above in :func:`tests.support.yardstick.gradients`."""
    generator = torch.Generator().manual_seed(case.n)
    return torch.rand(2, case.n, generator=generator, dtype=torch.float64) - 0.3


def _rows_of(whole: Yardstick, rows: slice) -> Yardstick:
    return Yardstick(whole.truth[rows], whole.eager[rows])
