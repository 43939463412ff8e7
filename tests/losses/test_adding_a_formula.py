"""Adding a formula, as CONTRIBUTING says: a class, and its place among FORMULAS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from circle_kernels import pair_logsumexp
from circle_kernels.backends.choice import _warn_once
from circle_kernels.formula import FORMULAS
from circle_kernels.operation.batch import Operation, check_batch
from circle_kernels.operation.row_losses import reduced_row_losses
from tests.operation.numbers.test_oracle import (
    test_logsumexps_and_gradients_are_as_exact_as_eager as hold_to_the_oracle,
)
from tests.support.batches import batch
from tests.support.cases import Case
from tests.support.targets import Target
from tests.support.toys.formula import SquaredFormula

EVERY = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(FORMULAS, SquaredFormula.name, SquaredFormula)
    _warn_once.cache_clear()
    yield
    _warn_once.cache_clear()


@pytest.mark.parametrize("m", [None, 41])
@pytest.mark.parametrize("regime", ["random", "clusters", "one_class"])
@pytest.mark.parametrize("detach_weights", [True, False])
def test_added_formula_is_held_to_the_oracle(
    regime: str, m: int | None, detach_weights: bool
) -> None:
    formula = SquaredFormula(detach_weights=detach_weights)
    hold_to_the_oracle(Target("tiled", "cpu", EVERY), Case(regime, m=m, formula=formula))


def test_kernels_without_code_for_it_say_so_and_auto_warns_once() -> None:
    embeddings, labels = batch()
    formula = SquaredFormula()
    with pytest.raises(RuntimeError, match="has no code for SquaredFormula"):
        pair_logsumexp(embeddings, labels, formula=formula, backend="cpu")
    with pytest.warns(UserWarning, match="tiled .* no code for SquaredFormula"):
        served = pair_logsumexp(embeddings, labels, formula=formula)
    expected = pair_logsumexp(embeddings, labels, formula=formula, backend="reference")
    torch.testing.assert_close(served, expected)


def test_added_formula_is_compiled() -> None:
    embeddings, labels = batch()

    def loss(embeddings: torch.Tensor) -> torch.Tensor:
        operation = Operation(SquaredFormula(), backend="tiled")
        return reduced_row_losses(check_batch(embeddings, labels, None, None), operation, "mean")

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(embeddings), loss(embeddings))


def test_formula_that_is_not_listed_is_refused() -> None:
    del FORMULAS[SquaredFormula.name]
    with pytest.raises(TypeError, match="formula must be a CircleFormula or UnifiedFormula, or of"):
        pair_logsumexp(*batch(), formula=SquaredFormula())
