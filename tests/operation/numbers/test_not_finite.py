"""NaN and infinity, in embeddings and in upstream gradients, reach whom they concern."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula, circle_loss, pair_logsumexp, unified_loss
from tests.support.batches import batch
from tests.support.cases import Case
from tests.support.random_problems import (
    PROBLEMS,
    SEEDS,
    Problem,
    draw_problem,
    in_its_layout,
    logsumexps,
)
from tests.support.targets import INTERPRETED, Target, for_every_backend

pytestmark = pytest.mark.backends


CIRCLE, UNIFIED = CircleFormula(), UnifiedFormula(m=0.2)
BAD_NUMBERS = [
    (CIRCLE, math.inf, True),
    (CIRCLE, math.nan, False),
    (UNIFIED, -math.inf, True),
    (UNIFIED, math.inf, False),
]
if not INTERPRETED:
    BAD_NUMBERS = [
        (formula, bad, normalize)
        for formula in (CIRCLE, UNIFIED)
        for bad in (math.nan, math.inf, -math.inf)
        for normalize in (True, False)
    ]


@for_every_backend
@pytest.mark.parametrize(
    ("formula", "bad", "normalize"), BAD_NUMBERS, ids=lambda value: getattr(value, "name", None)
)
def test_bad_numbers_make_every_loss_that_saw_them_nan(
    target: Target, bad: float, normalize: bool, formula: CircleFormula | UnifiedFormula
) -> None:
    loss = circle_loss if formula.name == "circle" else unified_loss
    for dtype in target.dtypes:
        # A width of 1 leaves an infinity no second coordinate to become NaN with.
        for width in (1, 5):
            embeddings, labels = batch(depth=width, dtype=dtype, device=target.device)
            embeddings = embeddings.detach().clone()
            embeddings[4, 0] = bad
            options = {
                "m": formula.m,
                "gamma": formula.gamma,
                "normalize": normalize,
                "reduction": "none",
                "backend": target.backend,
            }
            assert loss(embeddings, labels, **options).isnan().all()
            clean, ref_labels = batch(9, depth=width, dtype=dtype, device=target.device)
            rows = loss(embeddings, labels, clean.detach(), ref_labels, **options)
            assert rows[4].isnan()
            assert rows[torch.arange(12) != 4].isfinite().all()
            assert loss(clean.detach(), ref_labels, embeddings, labels, **options).isnan().all()


@for_every_backend
def test_product_beyond_the_dtype_is_no_finite_loss(target: Target) -> None:
    """Its sign may be that of a partial sum: clamped it would pass as a good pair."""
    for dtype in target.dtypes:
        if dtype == torch.float16:
            continue
        half = 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] - 1)
        embeddings = torch.tensor([[half, -half, -half, -half]], dtype=dtype, device=target.device)
        for sign in (1, -1):
            references = torch.tensor([[2, 1, 1.5, 1], [0, 0, 1, 0]], dtype=dtype)
            losses = circle_loss(
                embeddings * sign,
                torch.zeros(1, dtype=torch.int64, device=target.device),
                references.to(target.device),
                torch.tensor([0 if sign == 1 else 1, 1 if sign == 1 else 0], device=target.device),
                normalize=False,
                reduction="none",
                backend=target.backend,
            )
            assert not losses.isfinite().any()


@for_every_backend
@pytest.mark.parametrize("skip_below", [0.0] if INTERPRETED else [0.0, 0.5])
@pytest.mark.parametrize("m", [None, 40])
@pytest.mark.parametrize("bad", [math.inf, math.nan, *([] if INTERPRETED else [-math.inf])])
def test_upstream_gradients_that_are_not_finite_reach_whoever_they_reach_in_eager(
    target: Target, bad: float, m: int | None, skip_below: float
) -> None:
    formula, rows = CircleFormula(m=0.25, gamma=256), 70 if INTERPRETED else 130
    for dtype in target.dtypes:
        for kind in (0, 1):
            broken = []
            for backend, skipped in (("reference", 0.0), (target.backend, skip_below)):
                inputs = Case("random", n=rows, m=m, d=12).tensors(dtype, target.device)
                statistics = pair_logsumexp(
                    *inputs, formula=formula, skip_below=skipped, backend=backend
                )
                upstream = torch.ones(2, rows, dtype=statistics[0].dtype, device=target.device)
                row = int((statistics[0] + statistics[1]).isfinite().nonzero()[0])
                upstream[kind, row] = bad
                wanted = [value for value in inputs[::2] if value is not None]
                grads = torch.autograd.grad(statistics, wanted, tuple(upstream))
                broken.append([~grad.isfinite().all(1) for grad in grads])
            for ours, eager in zip(broken[1], broken[0], strict=True):
                assert eager.any()
                assert torch.equal(ours, eager)


def poison(problem: Problem, chosen: random.Random) -> tuple[Tensor, Tensor]:
    """Put NaNs and infinities into some rows of both sides, in place; which rows they are."""
    marked = []
    for name in ("embeddings", "references"):
        values = getattr(problem, name)
        bad = torch.zeros(0 if values is None else len(values), dtype=torch.bool)
        marked.append(bad)
        if values is None or chosen.random() < 0.3:
            continue
        for _ in range(chosen.choice([1, 1, 2, 5])):
            row, column = chosen.randrange(len(values)), chosen.randrange(values.shape[1])
            values[row, column] = chosen.choice([math.nan, math.inf, -math.inf])
            bad[row] = True
    return marked[0], marked[1]


@pytest.mark.backends
@pytest.mark.sanitized
@for_every_backend
@pytest.mark.parametrize("seed", SEEDS)
def test_nan_shows_in_the_losses_that_saw_it_and_in_no_other(target: Target, seed: int) -> None:
    """Every other row is what it is where the bad rows have other numbers."""
    for index in range(PROBLEMS // len(SEEDS)):
        number = 31_000 + 1000 * seed + index
        problem = draw_problem(number, target.dtypes, ["self", "references", "classes"])
        expected = logsumexps(problem, in_its_layout(problem, target.device), target.backend)
        bad_rows, bad_columns = poison(problem, random.Random(number))
        ours = logsumexps(problem, in_its_layout(problem, target.device), target.backend)
        if problem.references is None:
            bad_columns = bad_rows
        kept = ~bad_rows
        for results in zip(ours, expected, problem.kinds, strict=True):
            rows, value, kind = (each.detach().cpu() for each in results)
            # A set that holds a bad pair is NaN; so are all non-empty ones of a bad row.
            saw = (kind & (bad_columns[None, :] | bad_rows[:, None])).any(1)
            assert rows[saw].isnan().all(), str(problem)
            assert rows[~kind.any(1)].isneginf().all(), str(problem)
            assert not rows[~saw & kept].isnan().any(), str(problem)
            if not bad_columns.any():
                eps = torch.finfo(rows.dtype).eps * (16 + 2 * problem.formula.gamma)
                exact = target.backend == "tiled"  # others round a tile with a NaN another way
                torch.testing.assert_close(
                    rows[~saw & kept],
                    value[~saw & kept],
                    rtol=0 if exact else eps,
                    atol=0 if exact else eps,
                    msg=lambda words, problem=problem: f"{problem}: {words}",
                )
