"""Adding a backend, as CONTRIBUTING says: a module, and its place in the table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from circle_kernels import (
    CircleFormula,
    CircleLoss,
    UnifiedFormula,
    available_backends,
    circle_loss,
    class_circle_loss,
)
from circle_kernels.backends import choice
from circle_kernels.backends.problem import PairProblem
from circle_kernels.operation.batch import operation_of
from circle_kernels.operation.listed_pairs import PairIndices, pair_matrix
from tests.operation.numbers.test_oracle import (
    test_logsumexps_and_gradients_are_as_exact_as_eager as hold_to_the_oracle,
)
from tests.support.batches import batch, batch_with_references, class_batch
from tests.support.cases import Case
from tests.support.targets import Target
from tests.support.toys import backend as toy_backend

TOY = Target("toy", "cpu", (torch.float64, torch.float32, torch.bfloat16))


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    backend = choice.Backend(
        "tests.support.toys.backend", lacks=("listed", "own_columns", "both_sides")
    )
    monkeypatch.setitem(choice.BACKENDS, "toy", backend)
    toy_backend.calls.clear()
    yield
    operation_of.cache_clear()  # which has seen that there is such a backend


@pytest.mark.parametrize("m", [None, 41])
@pytest.mark.parametrize("regime", ["random", "clusters", "mixed_empty_rows", "one_class"])
@pytest.mark.parametrize(
    "formula",
    [CircleFormula(), CircleFormula(detach_weights=False), UnifiedFormula(m=0.35, gamma=64.0)],
    ids=lambda formula: f"{formula.name}-{formula.detach_weights}",
)
def test_added_backend_is_held_to_the_oracle(
    regime: str, m: int | None, formula: CircleFormula
) -> None:
    hold_to_the_oracle(TOY, Case(regime, m=m, formula=formula))


def test_added_backend_serves_the_losses_and_the_losses_of_rows() -> None:
    for loss, tensors in (
        (circle_loss, batch()),
        (circle_loss, batch_with_references()),
        (class_circle_loss, class_batch()),
    ):
        toy_backend.calls.clear()
        served, expected = (loss(*tensors, backend=name) for name in ("toy", "reference"))
        torch.testing.assert_close(served, expected)
        served.backward()
        assert toy_backend.calls == ["forward", "row_losses", "backward"]


def test_added_backend_is_compiled_and_used_by_modules() -> None:
    embeddings, labels = batch()
    loss = CircleLoss(backend="toy")
    torch.testing.assert_close(
        torch.compile(loss, backend="aot_eager", fullgraph=True)(embeddings, labels),
        CircleLoss(backend="tiled")(embeddings, labels),
    )
    assert "forward" in toy_backend.calls


def test_added_backend_is_listed_and_says_what_it_cannot() -> None:
    assert available_backends()["toy"] == "usable: to show how"
    with pytest.raises(ValueError, match="'reference', 'toy'; got 'toi'"):
        CircleLoss(backend="toi")
    with pytest.raises(RuntimeError, match=r"backend=.toy. cannot serve .* not for toys"):
        circle_loss(*batch(dtype=torch.float16), backend="toy")


def test_pairs_that_it_has_no_code_for_go_to_tiled() -> None:
    embeddings, labels = batch(requires_grad=False)
    rows, columns = torch.triu_indices(len(labels), len(labels), offset=1)
    same = labels[rows] == labels[columns]
    indices = PairIndices(rows[same], columns[same], rows[~same], columns[~same])
    kinds = pair_matrix(indices, len(labels), len(labels))
    problem = PairProblem(
        embeddings, labels, None, None, CircleFormula(), normalize=True, listed=kinds
    )
    assert choice.serving(problem, "toy").__name__ == "circle_kernels.backends.tiled"
