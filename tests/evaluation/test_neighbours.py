"""Nearest neighbours: the beginning of the whole order, whatever the sizes of chunks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from circle_kernels.evaluation import neighbours
from circle_kernels.evaluation.exact import on_grid
from circle_kernels.evaluation.neighbours import nearest
from circle_kernels.evaluation.similarities import Similarities

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of rows and chunks of references, the last of them shorter."""
    monkeypatch.setattr(neighbours, "_ENTRIES_AT_ONCE", 100)
    monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", 15)


def _rows(seed: int, n: int, dim: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64)


def _ordered(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The definition: all in order, of equal ones the lower index first."""
    values, indices = similarity.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [1, 4, 22])
@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_are_the_beginning_of_the_order(
    dtype: torch.dtype, k: int, normalize: bool
) -> None:
    queries, references = _rows(0, 40).to(dtype), (_rows(1, 23) * 3).to(dtype)
    wide = [queries.double(), references.double()]
    if normalize:
        wide = [F.normalize(each) for each in wide]
    found = nearest(queries, references, k, normalize=normalize)
    values, indices = _ordered(wide[0] @ wide[1].T, k)
    assert torch.equal(found.indices, indices)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6 if normalize else 3e-6
    torch.testing.assert_close(found.similarities.double(), values, rtol=0, atol=tolerance)
    assert found.similarities.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("n", [2, 15, 16, 50])
def test_without_references_own_copies_are_left_out(n: int) -> None:
    embeddings = _rows(2, n)
    embeddings[1] = embeddings[0]  # another row with the same numbers stays
    similarity = F.normalize(embeddings) @ F.normalize(embeddings).T
    similarity.fill_diagonal_(-math.inf)
    for k in (1, n - 1):
        found = nearest(embeddings, k=k)
        assert torch.equal(found.indices, _ordered(similarity, k)[1])
    assert found.indices[:2, 0].tolist() == [1, 0]
    assert found.similarities[0, 0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 3, 17, 39])
def test_of_equally_similar_ones_the_lower_index_comes_first(k: int, dtype: torch.dtype) -> None:
    """Copies, scaled by powers of two, which every dtype holds, and coordinates in other orders."""
    few = _rows(3, 4, 24).to(dtype)
    references = few[torch.arange(40) % 4] * 2.0 ** (torch.arange(40) % 3)[:, None].to(dtype)
    found = nearest(few, references, k)
    for row in range(4):
        # All ten copies of a row, then of another.
        copies = torch.arange(row, 40, 4)[:k]
        assert torch.equal(found.indices[row, : len(copies)], copies)
        for start in range(0, k, 10):
            group = found.indices[row, start : start + 10]
            assert (group.diff() == 4).all()
    ones = torch.ones(1, 24, dtype=dtype)
    orders = torch.stack([few[0].roll(place) for place in range(40)])
    assert nearest(ones, orders, k).indices.tolist() == [list(range(k))]


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_inner_products_of_rows_of_any_size(scale: float) -> None:
    queries, references = _rows(4, 20), _rows(5, 30)
    queries[3], references[7] = 0, 0
    expected = nearest(queries, references, 5, normalize=False)
    for left, right in ((scale, 1.0), (1.0, scale), (scale, 1 / scale)):
        found = nearest(queries * left, references * right, 5, normalize=False)
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close(
            found.similarities, expected.similarities * (left * right), rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_very_different_sizes_are_compared_as_exactly(dtype: torch.dtype) -> None:
    sizes = 10.0 ** torch.arange(-15, 15, dtype=torch.float64)[:, None]
    queries, references = (_rows(6, 30) * sizes).to(dtype), (_rows(7, 30) * sizes.flip(0)).to(dtype)
    inner = queries.double() @ references.double().T
    found = nearest(queries, references, 30, normalize=False)
    assert torch.equal(found.indices, _ordered(inner, 30)[1])
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    norms = queries.double().norm(dim=1)[:, None] * references.double().norm(dim=1)[found.indices]
    error = (found.similarities - inner.gather(1, found.indices)).abs()
    assert (error <= tolerance * norms).all()


def test_similarities_of_narrow_dtypes_are_exact_sums() -> None:
    """As integers have them: high parts are whole multiples of a power of two."""
    similarities = Similarities.of(torch.float32, unit=True)
    rows = similarities.operand(on_grid(_rows(13, 20, 300), True, alike=True))
    whole = (rows * 2.0**26).long()
    assert torch.equal(whole.double() * 2.0**-26, rows)
    sums = (whole[:, None] * whole).sum(2)
    assert torch.equal(similarities.tile(rows, rows) * 2.0**52, sums.double())


def test_number_of_threads_and_sizes_of_chunks_make_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Close rows, whose order sums in another order would leave to chance."""
    generator = torch.Generator().manual_seed(7)
    embeddings = 1 + 1e-4 * torch.randn(80, 100, generator=generator)
    expected = nearest(embeddings, k=79)
    threads = torch.get_num_threads()
    for number, entries, rows in itertools.product((1, 2), (1, 1000, 10**6), (1, 64)):
        monkeypatch.setattr(neighbours, "_ENTRIES_AT_ONCE", entries)
        monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", rows)
        torch.set_num_threads(number)
        try:
            found = nearest(embeddings, k=79)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.similarities, expected.similarities)


def test_similarities_are_never_all_in_memory() -> None:
    queries, references = _rows(8, 200), _rows(9, 300)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and not result._is_view():
                largest = max(largest, result.numel())
            return result

    with Watch():
        nearest(queries, references, 2)
    assert 0 < largest <= 300 * 6


def test_no_queries_have_no_neighbours() -> None:
    found = nearest(torch.zeros(0, 3), torch.eye(3), 2)
    assert [each.shape for each in found] == [(0, 2), (0, 2)]
    assert [each.dtype for each in found] == [torch.float32, torch.int64]


def test_of_two_dtypes_the_wider_one_counts() -> None:
    queries, references = _rows(10, 5), _rows(11, 20)
    found = nearest(queries.half(), references, 3)
    expected = nearest(queries.half().double(), references, 3)
    assert torch.equal(found.similarities, expected.similarities)
    assert torch.equal(found.indices, expected.indices)


def test_gradients_are_left_alone() -> None:
    assert not nearest(_rows(12, 5).requires_grad_(), k=2).similarities.requires_grad


X = torch.eye(4)
WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "k of zero": ((X,), {"k": 0}, ValueError, "k must be at least 1, got 0"),
    "float k": ((X,), {"k": 1.0}, TypeError, "k must be an integer, got float 1.0"),
    "usual k": ((X,), {}, ValueError, "k must be at most the 3 other embeddings, got 10"),
    "large k": ((X, X), {"k": 5}, ValueError, "k must be at most the 4 references, got 5"),
    "no others": ((X[:0],), {"k": 1}, ValueError, "k must be at most the 0 other embeddings"),
    "no references": ((X, X[:0]), {"k": 1}, ValueError, "k must be at most the 0 references"),
    "list": (([1.0],), {}, TypeError, "embeddings must be a tensor"),
    "integers": ((X.long(),), {}, TypeError, "embeddings must be float16"),
    "columns": ((X, X[:, :2]), {}, ValueError, "ref_emb must have as many columns"),
    "NaN": ((X, X * math.nan), {}, ValueError, "ref_emb must be finite.*row 0"),
    "infinity": ((X / 0,), {}, ValueError, "embeddings must be finite.*row 0"),
    "normalize": ((X,), {"normalize": 1}, TypeError, "normalize must be"),
    "progress": ((X,), {"progress": 1}, TypeError, "progress must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str) -> None:
    given, options, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        nearest(*given, **options)


def test_progress_is_shown_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    nearest(X, k=1, progress=True)
    assert "4.00/4.00" in capfd.readouterr().err
