"""The Triton forward pass' ways over the tiles: sorted, in a triangle, in bands; all are exact."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from circle_kernels import CircleFormula, UnifiedFormula, pair_logsumexp
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.eager import logsumexps
from tests.support.cases import CASES as oracle_cases
from tests.support.cases import Case
from tests.support.formulas import TWO_SCALES
from tests.support.regimes import REGIMES
from tests.support.targets import INTERPRETED
from tests.support.yardstick import gradients, yardsticks

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.triton.conditions import Limits, assuming
from circle_kernels.backends.triton.settings_table import INTERPRETER, load_table
from circle_kernels.formula import PairFormula

interpreted = [
    pytest.mark.backends,
    pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]
SORTED = Limits(sorted_tiles=0)
UNSORTED = Limits(small_rows=0)
IN_BANDS = Limits(sorted_tiles=0, partial_bytes=0, smallest_band=2)
# Three blocks and a bit, so that there are whole tiles beside the diagonal, and edges.
CASES = [Case(regime, n=200, m=m) for regime in REGIMES for m in (None, 150)]
CASES += [
    Case(regime, n=200, m=m, formula=formula)
    for regime in ("random", "duplicates_and_antipodes")
    for m in (None, 150)
    for formula in (
        CircleFormula(m=0.25, gamma=256.0),
        CircleFormula(m=-0.1, gamma=1024.0),
        CircleFormula(m=0.25, gamma=1.0),
        UnifiedFormula(m=0.35, gamma=64.0),
        *TWO_SCALES.values(),
    )
]


def _logsumexps(case: Case, dtype: torch.dtype) -> list[torch.Tensor]:
    inputs = case.tensors(dtype)
    statistics = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
    return [statistic.detach() for statistic in statistics]


class TestInterpreted:
    pytestmark = interpreted

    @pytest.mark.parametrize("case", CASES, ids=str)
    @assuming(limits=SORTED)
    def test_sorted_walks_are_as_exact_as_eager(self, case: Case) -> None:
        inputs = case.tensors(torch.float32)
        statistics = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
        results = [*statistics, *gradients(*statistics, inputs)]
        expected = [yardstick for kind in yardsticks(case, torch.float32) for yardstick in kind]
        for ours, yardstick in zip(results, expected, strict=True):
            yardstick.assert_close(ours, torch.finfo(torch.float32).eps, case.formula.gamma)

    @pytest.mark.parametrize("case", [*CASES[:4], *CASES[-4:]], ids=str)
    @assuming(limits=IN_BANDS)
    def test_bands_change_nothing_but_rounding(self, case: Case) -> None:
        expected, _ = yardsticks(case, torch.float32)
        for ours, yardstick in zip(_logsumexps(case, torch.float32), expected, strict=True):
            yardstick.assert_close(ours, torch.finfo(torch.float32).eps, case.formula.gamma)

    @pytest.mark.parametrize("m", [None, 200])
    def test_order_of_rows_changes_nothing_but_rounding(self, m: int | None) -> None:
        case = Case("random", n=270, m=m)
        with assuming(limits=UNSORTED):
            unsorted = _logsumexps(case, torch.float16)
        with assuming(limits=SORTED):
            in_order = _logsumexps(case, torch.float16)
        for ours, theirs in zip(in_order, unsorted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)

    # Only without references is a batch ever a small one.
    @pytest.mark.parametrize(
        ("m", "limits"),
        [(None, Limits()), *itertools.product((None, 150), (SORTED, UNSORTED))],
    )
    @pytest.mark.parametrize(
        "formula",
        [
            CircleFormula(),
            CircleFormula(m=0.25, gamma=256.0),
            CircleFormula(detach_weights=False),
            UnifiedFormula(m=0.35, gamma=64.0),
        ],
        ids=lambda formula: f"{formula.name}-g{formula.gamma:g}-{formula.detach_weights}",
    )
    def test_weights_in_the_workspace_are_as_exact_as_eager(
        self, formula: PairFormula, m: int | None, limits: Limits
    ) -> None:
        case = Case("random", n=200, m=m, d=72, formula=formula)
        inputs = case.tensors(torch.float32)
        with assuming(limits=limits):
            statistics = pair_logsumexp(*inputs, formula=formula, backend="triton")
            found = gradients(*statistics, inputs)
        _, expected = yardsticks(case, torch.float32)
        for ours, yardstick in zip(found, expected, strict=True):
            yardstick.assert_close(ours, torch.finfo(torch.float32).eps, formula.gamma)

    def test_rows_without_gradient_may_hold_any_exponent(self) -> None:
        """Their factors are 0, which an exponential beyond float32 would make NaN."""
        case = Case("distinct_classes", n=270, d=272, formula=CircleFormula(m=0.25, gamma=256.0))
        embeddings, labels, *_ = case.tensors(torch.float32)
        references = embeddings.detach().flip(0)[:200].contiguous()
        references[70] = embeddings.detach()[3]  # another class
        statistics = pair_logsumexp(
            embeddings,
            labels,
            references,
            torch.arange(1000, 1200),
            formula=case.formula,
            backend="triton",
        )
        assert statistics[1][3] > 230
        upstream = torch.ones(270)
        upstream[statistics[1] > 100] = 0
        statistics[1].backward(upstream)
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all()
        assert (embeddings.grad[3] == 0).all()

    @pytest.mark.parametrize("gamma", [80.0, 256.0])
    def test_a_bad_row_shows_in_the_losses_that_saw_it_and_no_others(self, gamma: float) -> None:
        case = Case("distinct_classes", n=270, formula=CircleFormula(m=0.25, gamma=gamma))
        embeddings, labels, *_ = case.tensors(torch.float32)
        labels[100] = labels[101]
        embeddings = embeddings.detach()
        embeddings[100, 3] = float("nan")
        results = []
        for limits in (Limits(), UNSORTED, SORTED):
            with assuming(limits=limits):
                results.append(
                    pair_logsumexp(embeddings, labels, formula=case.formula, backend="triton")
                )
        for ours, *others in zip(*results, strict=True):
            assert all(torch.equal(ours.isnan(), theirs.isnan()) for theirs in others)
        lse_pos, lse_neg = results[1]
        assert lse_pos.isnan().nonzero().flatten().tolist() == [100, 101]
        assert lse_neg.isnan().sum() == 269  # all but the bad row's only positive

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @assuming(limits=SORTED)
    def test_last_row_alone_in_its_class_has_no_positives_even_if_it_is_bad(
        self, bad: float
    ) -> None:
        """Tiles are padded with it: in label order, too."""
        embeddings, *_ = Case("random", n=270).tensors(torch.float32)
        embeddings = embeddings.detach()
        embeddings[-1, 3] = bad
        labels = torch.arange(270) // 4
        labels[-1] = 1000
        lse_pos, _ = pair_logsumexp(embeddings, labels, formula=CircleFormula(), backend="triton")
        assert lse_pos[-1] == -torch.inf
        assert lse_pos[:-2].isfinite().all()

    @pytest.mark.parametrize("limits", [SORTED, UNSORTED, Limits()])
    @pytest.mark.parametrize("gamma", [128.0, 256.0])
    def test_sums_far_below_1_are_not_lost(self, gamma: float, limits: Limits) -> None:
        """Of a formula whose exponents have no lower bound: no fixed shift holds them."""
        embeddings = torch.tensor([[1.0, 0.0]]).repeat(150, 1)
        labels = torch.arange(150) % 2
        embeddings[labels == 1] *= -1
        embeddings.requires_grad_()
        formula = UnifiedFormula(m=0.25, gamma=gamma)
        with assuming(limits=limits):
            lse_pos, lse_neg = pair_logsumexp(embeddings, labels, formula=formula, backend="triton")
            (gradient,) = torch.autograd.grad((lse_pos + lse_neg).sum(), embeddings)
        # 75 negatives at a similarity of -1.
        expected = math.log(75) + gamma * (-1 + 0.25)
        torch.testing.assert_close(lse_neg, torch.full((150,), expected))
        assert gradient.isfinite().all()

    @pytest.mark.parametrize("n", [2, 270])
    def test_infinite_product_is_clamped_to_no_finite_logit(self, n: int) -> None:
        """Devices add up in float32, so its sign may be that of a part of the sum."""
        embeddings, *_ = Case("random", n=n, normalize=False).tensors(torch.float32)
        embeddings = embeddings.detach()
        embeddings[:2] = 2.0**65  # products with each other that no float32 holds, and no others
        labels = torch.arange(n) // 2
        lse_pos, _ = pair_logsumexp(
            embeddings, labels, formula=CircleFormula(), normalize=False, backend="triton"
        )
        assert lse_pos[:2].isnan().all()
        assert lse_pos[2:].isfinite().all()

    @pytest.mark.parametrize("m", [None, 200])
    @assuming(limits=SORTED)
    def test_rows_whose_squares_overflow_are_sorted_like_any(self, m: int | None) -> None:
        inputs = Case("random", n=270, m=m).tensors(torch.float32)
        results = []
        for power in (1.0, 2.0**100):
            scaled = [value.detach().clone() if value is not None else None for value in inputs]
            scaled[0][::3] *= power
            scaled[0].requires_grad_()
            statistics = pair_logsumexp(*scaled, formula=CircleFormula(), backend="triton")
            (gradient,) = torch.autograd.grad(sum(statistics).sum(), scaled[0])
            gradient[::3] *= power
            results.append((*statistics, gradient))
        for ours, expected in zip(*results, strict=True):
            assert torch.equal(ours, expected)

    @pytest.mark.parametrize("limits", [SORTED, UNSORTED, Limits()])
    @pytest.mark.parametrize("last", [False, True])
    def test_a_gradient_that_no_fixed_shift_holds_reaches_every_tile(
        self, last: bool, limits: Limits
    ) -> None:
        """Huge for one block of anchors only, which tiles meet as rows or as columns."""
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.randn(512, 256, generator=generator)  # far apart: small log-sum-exps
        labels = torch.arange(512) // 4
        upstream = torch.ones(512)
        upstream[256:] = 1e25
        upstream = upstream if last else upstream.flip(0)
        results = []
        for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
            leaf = embeddings.to(dtype).requires_grad_()
            with assuming(limits=limits):
                lse = pair_logsumexp(leaf, labels, formula=CircleFormula(), backend=backend)
                (found,) = torch.autograd.grad(lse, leaf, 2 * (upstream.to(dtype),))
            results.append(found.double())
        scale = results[1].abs().max().item()
        torch.testing.assert_close(*results, rtol=0, atol=2e-5 * scale)

    # What a user's file may have for some kernels and not for others.
    @pytest.mark.parametrize("limits", [SORTED, UNSORTED])
    @pytest.mark.parametrize("m", [None, 200])
    @pytest.mark.parametrize(
        "blocks",
        [
            {"exact_sums": (128, 128), "exact_weights": (128, 128)},
            {"triangle": (32, 32), "rectangle": (32, 64), "small_rectangle": (64, 16)},
            {"weights": (32, 16), "weights_in_any_order": (32, 16)},
        ],
        ids=lambda blocks: "-".join(blocks),
    )
    def test_blocks_larger_than_the_tiles_that_are_left_are_cut(
        self, blocks: dict[str, tuple[int, int]], m: int | None, limits: Limits
    ) -> None:
        table = dict(load_table())
        for kernel, (rows, columns) in blocks.items():
            key = (kernel, INTERPRETER, 4)
            table[key] = tuple(
                (depth, replace(settings, block_rows=rows, block_columns=columns))
                for depth, settings in table[key]
            )
        # Some tiles are left, and some are not.
        case = Case("clusters", n=270, m=m, formula=CircleFormula(m=0.25, gamma=128.0))
        inputs = case.tensors(torch.float32)
        with assuming(limits=limits, table=table):
            statistics = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
            results = [*statistics, *gradients(*statistics, inputs)]
        expected = [yardstick for kind in yardsticks(case, torch.float32) for yardstick in kind]
        for ours, yardstick in zip(results, expected, strict=True):
            yardstick.assert_close(ours, torch.finfo(torch.float32).eps, case.formula.gamma)

    @pytest.mark.parametrize("limits", [SORTED, UNSORTED, Limits()])
    @pytest.mark.parametrize("optimum", [1.0, 1.5])
    def test_float16_gradients_of_pairs_without_slopes_are_finite(
        self, optimum: float, limits: Limits
    ) -> None:
        """No slope bounds their weights; rounded similarities of duplicates may exceed 1."""
        formula = CircleFormula(gamma=64.0, optimum_pos=-optimum, optimum_neg=optimum)
        embeddings, labels, *_ = Case("duplicates_and_antipodes").tensors(torch.float16)
        with assuming(limits=limits):
            statistics = pair_logsumexp(embeddings, labels, formula=formula, backend="triton")
            upstream = [torch.full((len(labels),), 65536.0) for _ in statistics]
            (found,) = torch.autograd.grad(statistics, embeddings, upstream)
        assert found.abs().max() < 1e-2


@pytest.mark.parametrize("case", [case for case in oracle_cases if case.classes], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_class_weights_without_labels_are_as_exact_as_eager(case: Case, dtype: torch.dtype) -> None:
    embeddings, labels, weight, _ = inputs = case.tensors(dtype)
    batch = Batch(embeddings, labels, weight)
    statistics = logsumexps(batch, Operation(case.formula, backend="triton"))
    results = [*statistics, *gradients(*statistics, inputs)]
    expected = [yardstick for kind in yardsticks(case, dtype) for yardstick in kind]
    for ours, yardstick in zip(results, expected, strict=True):
        yardstick.assert_close(ours, torch.finfo(dtype).eps, case.formula.gamma)
