"""Formulas of functions: one for all backends, that compares, travels and compiles."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, PairFormula, UnifiedFormula, pair_logsumexp
from circle_kernels.formula import formula_from_parameters
from circle_kernels.operation.batch import Operation
from circle_kernels.pointwise.formula import FunctionFormula
from tests.support.batches import batch, batch_with_references, leaves_of
from tests.support.formulas import FUNCTIONS
from tests.support.targets import Target, for_every_backend

F64 = torch.float64
SIMILARITY = torch.linspace(-1, 1, 81, dtype=F64)
for_every_formula = pytest.mark.parametrize("name", FUNCTIONS)

Function = Callable[[Tensor], Tensor]
# What the formulas of tests/support/formulas.py are made of, over gamma.
PAIRS: dict[str, tuple[Function, Function, float]] = {
    "circle": (
        lambda s: -torch.relu(1.25 - s).detach() * (s - 0.75),
        lambda s: torch.relu(s + 0.25).detach() * (s - 0.25),
        64.0,
    ),
    "circle undetached": (
        lambda s: -torch.relu(1.25 - s) * (s - 0.75),
        lambda s: torch.relu(s + 0.25) * (s - 0.25),
        64.0,
    ),
    "multi-similarity": (lambda s: -2 * (s - 0.5), lambda s: 50 * (s - 0.5), 1.0),
    "lifted structure": (lambda s: 1 - s, lambda s: s, 8.0),
    "with where": (
        lambda s: torch.where(s < 0.6, 20 * (0.6 - s) ** 2, 3 * (0.6 - s)),
        lambda s: torch.where((s > 0.1) & (s < 0.9), torch.exp(3 * s), s.abs() * 10),
        1.0,
    ),
}
SAME = {
    "circle": CircleFormula(m=0.25, gamma=64.0),
    "circle undetached": CircleFormula(m=0.25, gamma=64.0, detach_weights=False),
    "multi-similarity": UnifiedFormula(
        gamma_pos=2.0, gamma_neg=50.0, margin_pos=0.5, margin_neg=0.5
    ),
}


def formula_of(name: str) -> PairFormula:
    positive, negative, gamma = PAIRS[name]
    return PairFormula.from_functions(positive, negative, gamma=gamma)


def by_autograd(name: str, tensors: list[Tensor]) -> list[Tensor]:
    """Log-sum-exps and gradients of the functions themselves over the whole matrix."""
    positive, negative, gamma = PAIRS[name]
    x, y, *references = tensors
    sides = [torch.nn.functional.normalize(each) for each in (x, *references[:1])]
    s = sides[0] @ sides[-1].T
    same = y[:, None] == (references[1] if references else y)
    other = ~same
    if not references:
        same = same.fill_diagonal_(False)
    sums = [
        (gamma * function(s)).masked_fill(~kind, -1e30).logsumexp(1)
        for function, kind in ((positive, same), (negative, other))
    ]
    upstream = torch.linspace(0.5, 1.5, len(x), dtype=F64)
    gradients = torch.autograd.grad(sums, leaves_of(tensors), (upstream, 1 - upstream))
    return [*(each.detach() for each in sums), *gradients]


def by_formula(formula: PairFormula, tensors: list[Tensor], **options) -> list[Tensor]:
    sums = pair_logsumexp(*tensors, formula=formula, **options)
    upstream = torch.linspace(0.5, 1.5, len(tensors[0]), dtype=F64).to(sums[0])
    gradients = torch.autograd.grad(sums, leaves_of(tensors), (upstream, 1 - upstream))
    return [*(each.detach() for each in sums), *gradients]


def assert_near(ours: list[Tensor], truth: list[Tensor], digits: float) -> None:
    for value, expected in zip(ours, truth, strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=digits * scale)


@pytest.mark.backends
@for_every_backend
@pytest.mark.parametrize("name", PAIRS)
def test_every_backend_is_autograd_through_the_functions(target: Target, name: str) -> None:
    """Every row has both kinds of pair, so that the truth has no empty sets."""
    formula = formula_of(name)
    for dtype in target.few_dtypes:
        for references in (None, 60):
            tensors = batch_with_references(
                70, 16, references=references, classes=7, dtype=dtype, device=target.device
            )
            wide = [
                each.detach().cpu().double().requires_grad_() if each.is_floating_point() else each
                for each in (value.cpu() for value in tensors)
            ]
            truth = by_autograd(name, wide)
            ours = [each.cpu() for each in by_formula(formula, tensors, backend=target.backend)]
            eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
            digits = 1e-12 if dtype == F64 else 200 * eps
            assert_near(ours[:2], truth[:2], digits)
            assert_near(ours[2:], truth[2:], max(digits, 4 * torch.finfo(dtype).eps))


@pytest.mark.parametrize("name", PAIRS)
def test_reference_is_autograd_through_the_functions(name: str) -> None:
    for references in (None, 9):
        tensors = batch_with_references(references=references, dtype=F64)
        ours = by_formula(formula_of(name), tensors, backend="reference")
        assert_near(ours, by_autograd(name, tensors), 1e-12)


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
def test_functions_of_a_known_formula_are_that_formula(name: str, backend: str) -> None:
    """Also where rows have no positive or no negative."""
    for options in ({"random_labels": True, "classes": 9}, {"classes": 1}, {"classes": 12}):
        tensors = batch(dtype=F64, **options)
        results = [
            by_formula(formula, tensors, backend=backend)
            for formula in (formula_of(name), SAME[name])
        ]
        for ours, truth in zip(*results, strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in PAIRS), ("circle", torch.float16)],
    ids=str,
)
def test_compiled_as_one_graph_is_the_same(name: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    formula = formula_of(name)

    def sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return pair_logsumexp(x, y, formula=formula)

    step = torch.compile(sums, fullgraph=True, backend="aot_eager")
    x, y = batch(dtype=dtype)
    upstream = (torch.ones(12), torch.ones(12))
    results = [
        [*(each.detach() for each in made), *torch.autograd.grad(made, x, upstream)]
        for made in (step(x, y), sums(x, y))
    ]
    assert all(map(torch.equal, *results))


def test_logits_and_slopes_are_gamma_times_the_functions() -> None:
    for name, (positive, negative, gamma) in PAIRS.items():
        formula = formula_of(name)
        for logits, slopes, function in (
            (formula.positive_logits, formula.positive_slopes, positive),
            (formula.negative_logits, formula.negative_slopes, negative),
        ):
            s = SIMILARITY.clone().requires_grad_()
            expected = gamma * function(s)
            (derivative,) = torch.autograd.grad(expected.sum(), s)
            torch.testing.assert_close(logits(SIMILARITY), expected.detach(), rtol=1e-13, atol=0)
            torch.testing.assert_close(slopes(SIMILARITY), derivative, rtol=1e-13, atol=1e-13)


@for_every_formula
def test_max_slope_bounds_every_slope(name: str) -> None:
    formula = FUNCTIONS[name]
    for largest in (0.3, 1.0, 1.01):
        s = torch.linspace(-largest, largest, 20_001, dtype=F64)
        slopes = torch.stack((formula.positive_slopes(s), formula.negative_slopes(s))).abs()
        assert slopes.max().item() <= formula.max_slope(largest)
    assert formula.gamma <= formula.max_slope() < 1e4


def test_max_slope_where_a_slope_has_no_bound_is_finite() -> None:
    formula = PairFormula.from_functions(lambda s: torch.sqrt(1 + s), lambda s: torch.log(1 + s))
    assert 0 < formula.max_slope() < float("inf")


@for_every_formula
def test_formulas_can_be_copied_pickled_and_rebuilt_from_their_names(name: str) -> None:
    formula = FUNCTIONS[name]
    rebuilt = formula_from_parameters(formula.name, formula.parameters(), formula.detach_weights)
    for other in (pickle.loads(pickle.dumps(formula)), copy.deepcopy(formula), rebuilt):
        assert other == formula
        assert hash(other) == hash(formula)
        assert torch.equal(other.positive_logits(SIMILARITY), formula.positive_logits(SIMILARITY))
        assert torch.equal(other.negative_slopes(SIMILARITY), formula.negative_slopes(SIMILARITY))


def test_formulas_are_equal_where_their_functions_compute_the_same_in_the_same_way() -> None:
    def make(number: float, gamma: float = 1.0) -> PairFormula:
        return PairFormula.from_functions(lambda s: -s, lambda s: number * s, gamma=gamma)

    assert make(2.0) == make(2.0)
    assert hash(make(2.0)) == hash(make(2.0))
    assert make(2.0) == make(2)
    different = [make(2.0), make(3.0), make(2.0, gamma=2.0), CircleFormula(), formula_of("circle")]
    assert len(set(different)) == 5
    swapped = PairFormula.from_functions(lambda s: 2.0 * s, lambda s: -s)
    assert swapped != make(2.0)
    of_place = PairFormula.from_functions(lambda s: -s, lambda s: s.exp() + s.exp().sin())
    of_constant = PairFormula.from_functions(lambda s: -s, lambda s: s.exp() + 2.0)
    assert of_place != of_constant
    assert formula_of("circle") != formula_of("circle undetached")


def test_formulas_are_frozen_and_shown() -> None:
    formula = formula_of("lifted structure")
    with pytest.raises(AttributeError):
        formula.gamma = 3.0
    assert "subtract 1.0 0" in repr(formula)
    assert "gamma=8.0" in repr(formula)
    assert isinstance(formula, FunctionFormula)
    assert formula.gammas == (8.0, 8.0)


def test_unknown_names_and_types_are_told() -> None:
    with pytest.raises(ValueError, match="there is no formula 'triplet'"):
        formula_from_parameters("triplet", [1.0], True)
    with pytest.raises(ValueError, match=r"there is no formula 'functions \| copy 0'"):
        formula_from_parameters("functions | copy 0", [1.0], True)
    with pytest.raises(TypeError, match=r"or of PairFormula\.from_functions, got function"):
        Operation(lambda s: s)


def test_formulas_compute_without_normalisation_and_on_empty_batches() -> None:
    formula = formula_of("with where")
    x, y = batch(dtype=F64)
    short = (x.detach() / 5).requires_grad_()
    ours, truth = (
        by_formula(formula, [short, y], normalize=False, backend=backend)
        for backend in ("tiled", "reference")
    )
    assert_near(ours, truth, 1e-12)
    lse_pos, lse_neg = pair_logsumexp(x[:0], y[:0], formula=formula)
    assert lse_pos.shape == lse_neg.shape == (0,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_reaches_every_sum_that_saw_it(bad: float) -> None:
    x, y = batch(requires_grad=False)
    x[4] = bad
    clean, ref_labels = batch(9, seed=5, requires_grad=False)
    for name in PAIRS:
        for sums in pair_logsumexp(x, y, clean, ref_labels, formula=formula_of(name)):
            assert torch.equal(sums.isnan(), torch.arange(12) == 4), name


def distance(s: Tensor) -> Tensor:
    return (2 - 2 * s).clamp_min(0).sqrt()


@pytest.mark.backends
@for_every_backend
def test_slopes_without_a_bound_stay_out_of_pairs_that_do_not_count(target: Target) -> None:
    """A distance's, infinite at similarity 1, where each row meets itself or its own copy."""
    formula = PairFormula.from_functions(distance, lambda s: -distance(s), gamma=2.0)
    axes = torch.eye(6, device=target.device).requires_grad_()  # of which each has length 1
    x = axes.detach().double().cpu().requires_grad_()
    y = torch.arange(6) // 2
    same, other = y[:, None] == y, y[:, None] != y
    apart = ~torch.eye(6, dtype=torch.bool)
    s = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    s = torch.where(apart, s, 0.0)
    sums = [
        (sign * 2 * distance(s)).masked_fill(~kind, -1e30).logsumexp(1)
        for sign, kind in ((1, same & apart), (-1, other))
    ]
    (truth,) = torch.autograd.grad(sums[0].sum() + 2 * sums[1].sum(), x)
    kinds = (same & apart).to(torch.int8) - other.to(torch.int8)
    itself, labels = torch.arange(6, device=axes.device), y.to(axes.device)
    for tensors, options in (
        ((axes, labels), {}),
        ((axes, labels, axes, labels), {"self_index": itself}),
        ((axes, None), {"pair_mask": kinds.to(axes.device)}),
        ((axes, None, axes), {"pair_mask": kinds.to(axes.device)}),
    ):
        lse_pos, lse_neg = pair_logsumexp(
            *tensors, formula=formula, backend=target.backend, **options
        )
        (ours,) = torch.autograd.grad(lse_pos.sum() + 2 * lse_neg.sum(), axes)
        torch.testing.assert_close(ours.double().cpu(), truth, rtol=1e-5, atol=1e-5)
