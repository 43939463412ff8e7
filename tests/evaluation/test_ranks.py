"""Ranks of positives: as brute force finds them, whatever counts them, with ties against us."""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels.backends import cpu
from circle_kernels.evaluation import nearest, positive_ranks, ranks
from circle_kernels.evaluation.exact import exact_similarities, exact_tile, on_grid
from tests.evaluation.brute_force import Problem

BACKENDS = ("cpu", "tiled")


def _drawn(seed: int, n: int, dim: int, classes: int = 9, **options: Any) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def side(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        embeddings = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
        labels = torch.randint(-1, classes, (rows,), generator=generator)
        return embeddings, labels, torch.randint(3, (rows,), generator=generator)

    embeddings, labels, cameras = side(n)
    given: dict[str, Any] = {}
    if options.get("m"):
        given["ref_emb"], given["ref_labels"], given["ref_cameras"] = side(options["m"])
    if options.get("with_cameras"):
        given["cameras"] = cameras
    elif options.get("m"):
        del given["ref_cameras"]
    if options.get("ignored"):
        given["ignore_label"] = -1
    return Problem(embeddings, labels, **given)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "self": lambda: _drawn(0, 130, 8),
    "one dimension": lambda: _drawn(1, 60, 1),
    "gallery": lambda: _drawn(2, 70, 12, m=110),
    "cameras": lambda: _drawn(3, 90, 12, m=150, with_cameras=True),
    "cameras of one side": lambda: _drawn(4, 120, 5, with_cameras=True),
    "junk": lambda: _drawn(5, 90, 7, m=80, with_cameras=True, ignored=True),
    "junk in self mode": lambda: _drawn(6, 100, 7, ignored=True),
    "few classes": lambda: _drawn(7, 140, 20, classes=2),
    "many dimensions": lambda: _drawn(8, 50, 700, m=60),
}


def _ranks(problem: Problem, **options: Any) -> list[list[float]]:
    found = positive_ranks(problem.embeddings, problem.labels, **problem.given, **options)
    return [each.tolist() for each in found.ranks.split(found.counts.tolist())]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_ranks_are_those_of_brute_force(name: str, backend: str) -> None:
    problem = PROBLEMS[name]()
    for ties in ("pessimistic", "optimistic", "mean"):
        for normalize in (True, False):
            options = {"ties": ties, "normalize": normalize}
            assert _ranks(problem, backend=backend, **options) == problem.ranks(**options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_of_queries_make_no_difference(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = PROBLEMS["junk"]()
    whole = _ranks(problem, backend=backend)
    for pairs in (1, 50, 1000):
        monkeypatch.setattr(ranks, "_PAIRS_AT_ONCE", pairs)
        assert _ranks(problem, backend=backend) == whole


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_collapsed_network_finds_nothing(dtype: torch.dtype, backend: str) -> None:
    embeddings = torch.full((40, 24), 0.37, dtype=dtype)
    labels = torch.arange(40) // 4
    found = positive_ranks(embeddings, labels, backend=backend)
    assert found.ranks.view(40, 3).tolist() == [[37, 38, 39]] * 40
    found = positive_ranks(embeddings, labels, backend=backend, ties="optimistic")
    assert found.ranks.view(40, 3).tolist() == [[1, 2, 3]] * 40


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_equal_or_permuted_or_scaled_tie(backend: str) -> None:
    """What ties in mathematics ties here, as floating-point sums in some order would not."""
    generator = torch.Generator().manual_seed(9)
    query = torch.ones(1, 96)
    row = torch.randn(96, generator=generator)
    gallery = torch.stack([row[torch.randperm(96, generator=generator)] for _ in range(64)])
    gallery[::3] *= 4.0
    labels = torch.zeros(64, dtype=torch.int64)
    labels[7] = 1
    given = (query, torch.tensor([1]), gallery, labels)
    assert positive_ranks(*given, backend=backend).ranks.tolist() == [64]
    assert positive_ranks(*given, backend=backend, ties="optimistic").ranks.tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_backend_and_number_of_threads_counts_the_same(dtype: torch.dtype) -> None:
    """Close rows, whose order float32 products would leave to chance."""
    generator = torch.Generator().manual_seed(11)
    centre = torch.randn(1, 100, generator=generator)
    embeddings = (centre + 1e-4 * torch.randn(300, 100, generator=generator)).to(dtype)
    labels = torch.randint(20, (300,), generator=generator)
    problem = Problem(embeddings, labels)
    threads = torch.get_num_threads()
    found = []
    for backend in BACKENDS:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            try:
                found.append(_ranks(problem, backend=backend))
            finally:
                torch.set_num_threads(threads)
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("depth", [1, 37, 1024])
def test_similarities_are_exact_sums(depth: int) -> None:
    """As fractions of integers have them, rounded once: products of two low parts are left out."""
    embeddings = torch.randn(4, depth, generator=torch.Generator().manual_seed(3))
    rows = on_grid(embeddings, True, alike=True)
    tile = exact_tile(rows, rows)
    fractions = [[Fraction(each) for each in row] for row in rows.tolist()]
    low = [[each - Fraction(round(each * 2**26), 2**26) for each in row] for row in fractions]
    for i in range(4):
        pairs = torch.full((4,), i), torch.arange(4)
        assert torch.equal(exact_similarities(rows, rows, *pairs), tile[i])
        for j in range(4):
            whole = sum(map(operator.mul, fractions[i], fractions[j]))
            assert float(tile[i, j]) == float(whole - sum(map(operator.mul, low[i], low[j])))
    unit = F.normalize(embeddings.double())
    assert (tile - unit @ unit.T).abs().max() < 2.0**-50 + 2 * depth * 2.0**-54


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_rows_of_any_size_are_ranked(scale: float) -> None:
    problem = _drawn(12, 80, 16)
    scaled = Problem(problem.embeddings * scale, problem.labels)
    assert _ranks(scaled, normalize=False) == _ranks(problem, normalize=False)
    if 1e-12 < scale < 1e200:
        assert _ranks(scaled) == _ranks(problem)


def test_rows_of_zeros_are_as_similar_to_all() -> None:
    embeddings = torch.cat([torch.zeros(2, 3), torch.eye(3)])
    found = positive_ranks(embeddings, torch.tensor([0, 0, 1, 1, 2]))
    assert found.ranks.tolist() == [4, 4, 4, 4]
    problem = _drawn(13, 40, 6)
    small = torch.cat([1e-30 * problem.embeddings, torch.zeros(1, 6)])
    problem = Problem(small, torch.cat([problem.labels, torch.tensor([99])]))
    assert _ranks(problem, normalize=False) == problem.ranks(normalize=False)


def test_empty_sides_have_no_ranks() -> None:
    nothing, none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    some, labels = torch.randn(3, 4), torch.tensor([0, 0, 1])
    for given in ((nothing, none), (nothing, none, some, labels), (some, labels, nothing, none)):
        found = positive_ranks(*given)
        assert torch.equal(found.offsets, positive_ranks(*given, normalize=False).offsets)
        assert found.ranks.tolist() == []
        assert found.counts.tolist() == [0] * len(given[0])


X, Y = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "ties": ({"ties": "worst"}, ValueError, "ties must be one of"),
    "backend": ({"backend": "numpy"}, ValueError, "backend must be one of"),
    "unknown": ({"tie": "mean"}, TypeError, "unexpected keyword argument 'tie'"),
    "ignore_label": ({"ignore_label": 0.5}, TypeError, "ignore_label must be an integer"),
    "normalize": ({"normalize": 1}, TypeError, "normalize must be"),
    "cameras": ({"cameras": Y[:2]}, ValueError, "cameras must have one"),
    "camera alone": (
        {"cameras": Y, "ref_emb": X, "ref_labels": Y},
        ValueError,
        "cameras was given without ref_cameras",
    ),
    "ref_cameras alone": (
        {"ref_cameras": Y, "ref_emb": X, "ref_labels": Y},
        ValueError,
        "ref_cameras was given without cameras",
    ),
    "no references": ({"ref_cameras": Y}, ValueError, "ref_cameras was given without ref_emb"),
    "depth": ({"ref_emb": X[:, :2], "ref_labels": Y}, ValueError, "ref_emb must have as many"),
    "NaN": (
        {"ref_emb": torch.tensor([[1.0, 2, 3], [1, float("nan"), 0]]), "ref_labels": Y[:2]},
        ValueError,
        "ref_emb must be finite.*row 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str) -> None:
    given, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        positive_ranks(X, Y, **given)


def test_infinite_rows_are_named() -> None:
    embeddings = X.clone()
    embeddings[2, 1] = float("-inf")
    with pytest.raises(ValueError, match=r"embeddings must be finite.*row 2"):
        positive_ranks(embeddings, Y)


def test_without_the_extension_pytorch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = positive_ranks(X, Y)
    monkeypatch.setattr(cpu, "status", lambda: "not usable: it was not built")
    with pytest.warns(UserWarning, match="since cpu is not usable: it was not built"):
        assert torch.equal(positive_ranks(X, Y).ranks, expected.ranks)
    with pytest.raises(RuntimeError, match="backend='cpu' cannot count: not usable: it was not"):
        positive_ranks(X, Y, backend="cpu")


def test_progress_is_shown_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    positive_ranks(X, Y, progress=True)
    assert "16.0/16.0" in capfd.readouterr().err


def test_progress_without_tqdm_is_refused_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call in (lambda **on: positive_ranks(X, Y, **on), lambda **on: nearest(X, k=1, **on)):
        call()
        with pytest.raises(ImportError, match="progress=True needs tqdm"):
            call(progress=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_normalize_a_short_query_keeps_its_direction(backend: str) -> None:
    """Queries have a power of two each, which references among themselves cannot have."""
    rows = torch.tensor([[1e-30, 2e-30], [1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 0])
    assert positive_ranks(rows, labels, normalize=False, backend=backend).ranks[0] == 1
