"""A batch in blocks, as processes that share it compute it: the blocks' gradients add up."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula
from circle_kernels.backends.choice import serving
from circle_kernels.backends.problem import Needs, PairProblem, Passed, result_dtype
from circle_kernels.formula import PairFormula
from circle_kernels.reference import pair_logsumexp_reference
from tests.support.regimes import REGIMES
from tests.support.targets import TARGETS, Target
from tests.support.yardstick import Yardstick

pytestmark = pytest.mark.sanitized

N, D = 130, 24
BANDS = (slice(0, 1), slice(1, 100), slice(100, N))  # one row; a panel of the C++ kernel and more
ROWS = Needs(embeddings=True, references=False)
# Not in half precision, to which it rounds the log-sum-exps that blocks have to share.
REFERENCE = Target("reference", "cpu", (torch.float64, torch.float32))
for_every_target = pytest.mark.parametrize("target", [*TARGETS, REFERENCE], ids=str)

PAPER = CircleFormula()
UNDETACHED = CircleFormula(m=0.25, gamma=256.0, detach_weights=False)
STEEP = CircleFormula(m=0.5, gamma=1024.0)
FORMULAS = (PAPER, UNDETACHED, STEEP, UnifiedFormula(m=0.35, gamma=64.0))


def _far_apart(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A third of the batch in one tight cluster, of several classes: what its rows count lies far
    above all that others do, in the same tiles."""
    embeddings, labels = REGIMES["random"](n, d, generator)
    embeddings[::3] = embeddings[:1] + 0.01 * embeddings[::3]
    return embeddings, labels


MADE = REGIMES | {"far_apart": _far_apart}
SETTINGS = [(regime, PAPER) for regime in MADE]
SETTINGS += [
    (regime, formula)
    for regime in ("random", "clusters", "far_apart", "duplicates_and_antipodes")
    for formula in FORMULAS[1:]
]


class Whole(NamedTuple):
    """A batch, and what is to be found for it."""

    embeddings: Tensor  # (N, D)
    labels: Tensor
    upstream: Tensor  # (2, N)
    lse: list[Yardstick]
    gradient: Yardstick


@functools.lru_cache(maxsize=4)
def whole(regime: str, formula: PairFormula, dtype: torch.dtype) -> Whole:
    embeddings, labels = MADE[regime](N, D, torch.Generator().manual_seed(0))
    embeddings = embeddings.to(dtype)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.rand(2, N, generator=generator, dtype=torch.float64) - 0.3
    found = []
    for compute in (torch.float64, dtype):
        inputs = embeddings.to(compute, copy=True).requires_grad_()
        statistics = pair_logsumexp_reference(inputs, labels, formula=formula)
        torch.autograd.backward(statistics, tuple(upstream.to(statistics[0].dtype)))
        found.append((*(each.detach() for each in statistics), inputs.grad))
    *lse, gradient = (Yardstick(*pair) for pair in zip(*found, strict=True))
    return Whole(embeddings, labels, upstream.to(result_dtype(dtype)), lse, gradient)


def blocks(batch: Whole, formula: PairFormula, device: str, **options: Any) -> list[list]:
    """Problems of rows of one band against those of each band: its own, and then as references."""
    embeddings, labels = batch.embeddings.to(device), batch.labels.to(device)

    def problem(rows: slice, columns: slice) -> PairProblem:
        others = (None, None) if rows == columns else (embeddings[columns], labels[columns])
        return PairProblem(embeddings[rows], labels[rows], *others, formula, True, **options)

    return [[problem(rows, columns) for columns in BANDS] for rows in BANDS]


def saved_or_nothing(saved: Tensor | None) -> Tensor:
    return torch.empty(0, dtype=torch.uint8) if saved is None else saved


@for_every_target
@pytest.mark.parametrize(("regime", "formula"), SETTINGS, ids=lambda v: getattr(v, "name", v))
def test_blocks_add_up_to_the_batch(target: Target, regime: str, formula: PairFormula) -> None:
    """From what forward passes left, with the share that a block has of each row's sum, and from
    sums over all blocks."""
    for dtype in target.dtypes:
        batch = whole(regime, formula, dtype)
        problems = blocks(batch, formula, target.device)
        module = serving(problems[0][0], target.backend)
        passes = [[module.forward(problem) for problem in row] for row in problems]
        totals = [
            torch.cat(
                [functools.reduce(torch.logaddexp, [each[kind] for each in row]) for row in passes]
            )
            for kind in (0, 1)
        ]
        eps = torch.finfo(result_dtype(dtype)).eps
        for ours, yardstick in zip(totals, batch.lse, strict=True):
            yardstick.assert_close(ours, eps, formula.gamma)

        statistics = torch.stack([*totals, *batch.upstream.to(target.device)])
        gradients = {}
        for rows, row, found in zip(BANDS, problems, passes, strict=True):
            lse, upstream = statistics[:2, rows], statistics[2:, rows]
            for columns, problem, (*parts, saved) in zip(BANDS, row, found, strict=True):
                of_columns = None if problem.self_mode else statistics[:, columns]
                shares = (torch.stack(parts) - lse).exp().nan_to_num(0)  # of -inf, an empty set
                for way, passed in {
                    "forward": Passed(saved_or_nothing(saved), *(shares * upstream), of_columns),
                    "save": Passed(module.save(problem, *lse), *upstream, of_columns),
                }.items():
                    gradient, _ = module.backward(problem, passed, ROWS)
                    assert gradient.dtype == dtype
                    total = gradients.setdefault(way, torch.zeros(N, D, dtype=lse.dtype))
                    total[rows] += gradient.cpu()
        norm = batch.embeddings.double().norm(dim=1).min().item()
        floor = 4 * formula.gamma / norm if dtype == torch.float64 else 0.0
        for ours in gradients.values():
            batch.gradient.assert_close(ours, torch.finfo(dtype).eps, formula.gamma, scale=floor)


@for_every_target
def test_columns_without_gradients_add_nothing(target: Target) -> None:
    """Nor do those whose sets are empty, whatever arrives for them."""
    for dtype in target.dtypes:
        batch = whole("random", PAPER, dtype)
        problem = blocks(batch, PAPER, target.device)[1][2]
        module = serving(problem, target.backend)
        upstream = batch.upstream[:, BANDS[1]].to(target.device)
        lse_pos, lse_neg, _ = module.forward(problem)
        # By themselves these columns are a class each: what they count lies in other blocks.
        problem = problem._replace(ref_labels=1000 + torch.arange(30, device=target.device))
        saved = module.save(problem, lse_pos, lse_neg)
        statistics = torch.ones(4, 30, dtype=lse_pos.dtype, device=target.device)
        statistics[0] = -math.inf
        statistics[3] = 0
        expected, _ = module.backward(problem, Passed(saved, *upstream), ROWS)
        ours, _ = module.backward(problem, Passed(saved, *upstream, statistics), ROWS)
        torch.testing.assert_close(ours, expected)


@for_every_target
@pytest.mark.parametrize("skip_below", [0.0, 1e-6])
def test_nan_goes_where_it_goes_in_a_whole_batch(target: Target, skip_below: float) -> None:
    for dtype in target.dtypes:
        batch = whole("sorted_labels", PAPER, dtype)
        embeddings = batch.embeddings.clone()
        embeddings[120, 3] = math.nan
        batch = batch._replace(embeddings=embeddings)
        problem = PairProblem(embeddings, batch.labels, None, None, PAPER, True, skip_below)
        problem = problem._replace(
            embeddings=embeddings.to(target.device), labels=batch.labels.to(target.device)
        )
        module = serving(problem, target.backend)
        lse_pos, lse_neg, saved = module.forward(problem)
        # Only one kind's gradients, so that some rows have none through that embedding.
        upstream = batch.upstream.to(target.device) * torch.tensor([[1], [0]]).to(target.device)
        passed = Passed(saved_or_nothing(saved), *upstream)
        expected, _ = module.backward(problem, passed, ROWS)
        statistics = torch.stack([lse_pos, lse_neg, *upstream])
        ours = torch.zeros(N, D, dtype=lse_pos.dtype)
        for rows, row in zip(
            BANDS, blocks(batch, PAPER, target.device, skip_below=skip_below), strict=True
        ):
            for columns, block in zip(BANDS, row, strict=True):
                saved = module.save(block, *statistics[:2, rows])
                of_columns = None if block.self_mode else statistics[:, columns]
                passed = Passed(saved, *statistics[2:, rows], of_columns)
                ours[rows] += module.backward(block, passed, ROWS)[0].cpu()
        assert torch.equal(ours.isnan().any(1), expected.isnan().any(1).cpu())


@for_every_target
def test_skip_below_drops_no_pair_that_its_column_needs(target: Target) -> None:
    """Rows without gradients of their own, in tiles of negatives, which are dropped as a whole."""
    skip_below = 1e-3
    for dtype in target.dtypes:
        batch = whole("sorted_labels", PAPER, dtype)
        rows, columns = BANDS[2], BANDS[1]
        lse = [each.truth.to(batch.upstream.dtype) for each in batch.lse]
        of_columns = torch.stack([*lse, *batch.upstream])[:, columns].to(target.device)
        upstream = torch.zeros(2, 30, dtype=batch.upstream.dtype, device=target.device)
        gradients = []
        for share in (0.0, skip_below):
            problem = blocks(batch, PAPER, target.device, skip_below=share)[2][1]
            module = serving(problem, target.backend)
            saved = saved_or_nothing(module.forward(problem)[2])
            passed = Passed(saved, *upstream, of_columns)
            gradients.append(module.backward(problem, passed, ROWS)[0].cpu().double())
        exact, ours = gradients
        # No slope is steeper than 2.5 gamma, and no upstream gradient larger than 0.7.
        norms = batch.embeddings[rows].double().norm(dim=1, keepdim=True)
        allowed = skip_below * 0.7 * 2.5 * PAPER.gamma / norms
        assert exact.abs().max() > 5 * allowed.max()  # or this shows nothing
        allowed = allowed + 2 * torch.finfo(dtype).eps * exact.abs()
        assert ((ours - exact).abs() <= allowed).all()
