"""The formulas: the paper's values, slopes that are the derivatives, one mathematics everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula
from circle_kernels.formula import PairFormula, formula_from_parameters
from tests.support.formulas import OTHER_FORMULAS, steepness
from tests.support.targets import INTERPRETED

FORMULAS = [
    CircleFormula(),
    CircleFormula(m=-0.1, gamma=3.0),
    CircleFormula(detach_weights=False),
    CircleFormula(gamma=32.0, optimum_pos=0.9, optimum_neg=0.1, margin_pos=0.6, margin_neg=0.2),
    CircleFormula(
        gamma=8.0,
        optimum_pos=0.9,
        optimum_neg=0.1,
        margin_pos=0.6,
        margin_neg=0.2,
        detach_weights=False,
    ),
    UnifiedFormula(m=0.35, gamma=64.0),
]
for_every_formula = pytest.mark.parametrize("formula", FORMULAS, ids=repr)


def _words(formula: PairFormula) -> str:
    return next((name for name, f in OTHER_FORMULAS.items() if f is formula), repr(formula))


SIMILARITY = torch.linspace(-1.3, 1.3, 101, dtype=torch.float64)


def test_circle_logits_are_those_of_the_paper() -> None:
    formula = CircleFormula(m=0.25, gamma=256)
    for s in (-1.0, -0.3, 0.0, 0.25, 0.9, 1.0):
        similarity = torch.tensor(s, dtype=torch.float64)
        z_p = -256 * max(1.25 - s, 0) * (s - 0.75)
        z_n = 256 * max(s + 0.25, 0) * (s - 0.25)
        assert formula.positive_logits(similarity).item() == pytest.approx(z_p, abs=1e-12)
        assert formula.negative_logits(similarity).item() == pytest.approx(z_n, abs=1e-12)


def test_unified_logits_are_those_of_the_paper() -> None:
    formula = UnifiedFormula(m=0.35, gamma=64)
    similarity = torch.tensor(0.3, dtype=torch.float64)
    assert formula.positive_logits(similarity).item() == pytest.approx(-64 * 0.3)
    assert formula.negative_logits(similarity).item() == pytest.approx(64 * 0.65)


@for_every_formula
def test_slopes_are_what_autograd_makes_of_the_logits(formula: PairFormula) -> None:
    for logits, slopes in (
        (formula.positive_logits, formula.positive_slopes),
        (formula.negative_logits, formula.negative_slopes),
    ):
        similarity = SIMILARITY.clone().requires_grad_()
        (derivative,) = torch.autograd.grad(logits(similarity).sum(), similarity)
        torch.testing.assert_close(slopes(SIMILARITY), derivative)


@for_every_formula
def test_max_slope_bounds_every_slope(formula: PairFormula) -> None:
    similarity = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    largest = torch.stack(
        (formula.positive_slopes(similarity), formula.negative_slopes(similarity))
    ).abs()
    assert largest.max().item() <= formula.max_slope() * (1 + 1e-12)


@for_every_formula
def test_parameters_rebuild_the_formula(formula: PairFormula) -> None:
    rebuilt = formula_from_parameters(formula.name, formula.parameters(), formula.detach_weights)
    assert rebuilt.constants == formula.constants
    assert rebuilt.gamma == formula.gamma
    assert torch.equal(rebuilt.negative_logits(SIMILARITY), formula.negative_logits(SIMILARITY))


@pytest.mark.parametrize("formula", [CircleFormula, UnifiedFormula])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gamma": 0.0}, ValueError, "gamma must be greater than 0, got 0.0"),
        ({"gamma": -1}, ValueError, "gamma must be greater than 0"),
        ({"gamma": math.inf}, ValueError, "gamma must be finite"),
        ({"m": math.nan}, ValueError, "m must be finite"),
        ({"m": "0.4"}, TypeError, "m must be a real number, got str"),
        ({"gamma": torch.tensor(80.0)}, TypeError, "gamma must be a real number, got Tensor"),
    ],
)
def test_bad_hyper_parameters_are_named(
    formula: type, arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        formula(**arguments)


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("formula", [*FORMULAS, *OTHER_FORMULAS.values()], ids=_words)
@pytest.mark.parametrize("positive", [True, False])
def test_triton_formula_is_the_torch_formula(formula: PairFormula, positive: bool) -> None:
    from tests.losses.triton_formula import evaluate

    logits, slopes = evaluate(formula, SIMILARITY.float(), positive)
    similarity = SIMILARITY.float().double()
    if positive:
        expected = formula.positive_logits(similarity), formula.positive_slopes(similarity)
    else:
        expected = formula.negative_logits(similarity), formula.negative_slopes(similarity)
    for ours, truth in zip((logits, slopes), expected, strict=True):
        _assert_within_rounding(ours, truth, steepness(formula))


def _assert_within_rounding(ours: Tensor, truth: Tensor, gamma: float) -> None:
    largest = 10 * gamma  # of any term that the formulas add up over these similarities
    torch.testing.assert_close(
        ours.double(), truth, rtol=0, atol=4 * torch.finfo(torch.float32).eps * largest
    )
