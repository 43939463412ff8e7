"""Exact similarities and counts of the C++ kernel against the definition by torch in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from circle_kernels.backends import cpu, cpu_counts
from circle_kernels.backends.cpu_counts import count_above, exact_similarities
from circle_kernels.evaluation.counting import Tiled

pytestmark = [
    pytest.mark.sanitized,
    pytest.mark.skipif(not cpu.supported_levels(), reason="the C++ kernel is not built"),
]

DIMENSIONS = (1, 3, 64, 100, 128, 513)
SIZES = {"1 column": (5, 1), "wide": (7, 300), "square": (200, 200), "tall": (230, 97)}


# The others have these instruction sets' kernels.
LEVELS = [each for each in cpu.supported_levels() if each in ("baseline", "avx2", "avx512")]


@pytest.fixture(params=LEVELS, autouse=True)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything at every instruction set of this machine."""
    monkeypatch.setenv(cpu.LEVEL_VARIABLE, request.param)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _embeddings(kind: str, count: int, depth: int) -> Tensor:  # (count, depth) on the grid
    generator = torch.Generator().manual_seed(count * depth)
    noise = torch.randn(count, depth, generator=generator, dtype=torch.float64)
    places = torch.arange(count)
    rows = {
        "random": noise,
        "clustered": noise[places % min(5, count)] + 0.01 * noise,
        "duplicates": noise[places % min(7, count)],
        "permuted": torch.stack([noise[0].roll(place) for place in places.tolist()]),
        "collapsed": noise[:1] * (1 + 1e-9 * noise),
        "zeros": noise * (places % 2)[:, None],
    }[kind]
    step = 2.0 ** (52 - math.ceil(math.log2(depth) / 2))
    return torch.nn.functional.normalize(rows, dim=1).mul(step).round().div(step)


KINDS = ("random", "clustered", "duplicates", "permuted", "collapsed", "zeros")


def _similarities(rows: Tensor, columns: Tensor) -> Tensor:  # (R, M)
    to_high = 1.5 * 2.0**26
    high, high_too = ((side + to_high) - to_high for side in (rows, columns))
    low, low_too = rows - high, columns - high_too
    return high @ high_too.T + (high @ low_too.T + low @ high_too.T)


def _sides(kind: str, size: str, depth: int) -> tuple[Tensor, Tensor]:
    """The columns are the rows where there are as many."""
    num_rows, num_columns = SIZES[size]
    all_rows = _embeddings(kind, max(num_rows, num_columns), depth)
    if num_rows == num_columns:
        return all_rows, all_rows
    return all_rows[:num_rows], all_rows.flip(0)[:num_columns]


def _runs(similarities: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """So many of a row's similarities as its thresholds; of some rows none, of some beside them."""
    generator = torch.Generator().manual_seed(size)
    places = torch.randint(similarities.shape[1], (len(similarities), size), generator=generator)
    found = similarities.gather(1, places)
    found[3::4] += 1e-7 * torch.randn(found[3::4].shape, generator=generator, dtype=torch.float64)
    counts = torch.full((len(similarities),), size)
    counts[6::7] = 0
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return found.sort(1).values[counts > 0].flatten(), offsets


def _counts(similarities: Tensor, thresholds: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(similarities)).repeat_interleave(offsets.diff())
    pairs = similarities[rows]
    return (pairs >= thresholds[:, None]).sum(1), (pairs > thresholds[:, None]).sum(1)


def _check_counts(rows: Tensor, columns: Tensor, sizes: Iterable[int]) -> None:
    similarities = _similarities(rows, columns)
    for size in sizes:
        runs = _runs(similarities, size)
        expected = _counts(similarities, *runs)
        for found, wanted in zip(count_above(rows, columns, *runs), expected, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("depth", DIMENSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_similarities_have_the_bits_of_the_definition(kind: str, depth: int) -> None:
    rows, columns = _sides(kind, "tall", depth)
    expected = _similarities(rows, columns)
    row_indices = torch.arange(len(rows)).repeat_interleave(len(columns))
    column_indices = torch.arange(len(columns)).repeat(len(rows))
    found = exact_similarities(rows, columns, row_indices, column_indices)
    assert torch.equal(found, expected.flatten())


@pytest.mark.parametrize("depth", DIMENSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_all_similarities(kind: str, depth: int) -> None:
    for size in SIZES:
        _check_counts(*_sides(kind, size, depth), (0, 1, 3, 40, 300))


@pytest.mark.parametrize("kind", ["random", "permuted", "collapsed"])
def test_counts_are_the_same_for_any_number_of_threads(kind: str, threads: int) -> None:
    _check_counts(*_sides(kind, "square", 128), (3, 200))
    _check_counts(*_sides(kind, "wide", 513), (3, 200))
    indices = torch.arange(200)
    rows, _ = _sides(kind, "square", 1500)
    similarities = exact_similarities(rows, rows, indices, indices.flip(0))
    assert torch.equal(similarities, _similarities(rows, rows).flip(1).diagonal())


def test_permuted_coordinates_tie() -> None:
    """Rows with the same products in another order are equally similar."""
    row = _embeddings("random", 1, 128)
    orders = torch.stack([torch.randperm(128) for _ in range(300)])
    columns, ones = row[0][orders], torch.full((1, 128), 128**-0.5, dtype=torch.float64)
    ones = ones.mul(2.0**48).round().div(2.0**48)
    threshold = exact_similarities(ones, columns, torch.tensor([0]), torch.tensor([0]))
    at_least, above = count_above(ones, columns, threshold, torch.tensor([0, 1]))
    assert (at_least.tolist(), above.tolist()) == ([300], [0])


def test_thresholds_that_no_similarity_is_near_count_all_or_none() -> None:
    rows, columns = _sides("random", "tall", 64)
    thresholds = torch.tensor([-math.inf, -3, -1.5, 1.5, 3, math.inf], dtype=torch.float64)
    offsets = torch.arange(len(rows) + 1) * len(thresholds)
    for counts in count_above(rows, columns, thresholds.repeat(len(rows)), offsets):
        expected = torch.tensor([97, 97, 97, 0, 0, 0])
        assert torch.equal(counts.view(-1, 6), expected.expand(len(rows), 6))


def test_columns_that_are_the_rows_count_as_others_do(threads: int) -> None:
    """Products of such sides are computed once for two rows."""
    for count in (97, 1200):
        rows = _embeddings("clustered", count, 20)
        runs = _runs(_similarities(rows, rows), 30)
        for found, expected in zip(
            count_above(rows, rows, *runs), count_above(rows, rows.clone(), *runs), strict=True
        ):
            assert torch.equal(found, expected)


def test_views_are_read_as_they_stand() -> None:
    rows, columns = _sides("random", "square", 100)
    every_other = torch.empty(200, 200, dtype=torch.float64)[:, ::2].copy_(rows)
    similarities = _similarities(rows, columns)
    thresholds, offsets = _runs(similarities, 3)
    spread = torch.stack([thresholds, thresholds], 1)[:, 0]
    for found, expected in zip(
        count_above(every_other, columns, spread, offsets),
        _counts(similarities, thresholds, offsets),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_nothing_is_counted_of_nothing() -> None:
    rows, nothing = _embeddings("random", 4, 8), torch.empty(0, 8, dtype=torch.float64)
    thresholds, offsets = torch.zeros(4, dtype=torch.float64), torch.arange(5)
    assert all(
        counts.tolist() == [0] * 4 for counts in count_above(rows, nothing, thresholds, offsets)
    )
    no_runs = (thresholds[:0], offsets[:1])
    assert all(counts.tolist() == [] for counts in count_above(nothing, rows, *no_runs))
    indices = torch.empty(0, dtype=torch.int64)
    assert exact_similarities(rows, rows, indices, indices).tolist() == []


@pytest.mark.parametrize("columns", ["the rows", "others"])
@pytest.mark.parametrize("count", [cpu_counts.count_above, Tiled.count_above])
def test_progress_is_told_of_all_pairs(count: Callable[..., object], columns: str) -> None:
    rows = _embeddings("random", 1500, 64)
    others = rows if columns == "the rows" else rows.flip(0)[:1100]
    told: list[int] = []
    count(rows, others, rows[:, 0].contiguous(), torch.arange(1501), told.append)
    assert min(told) >= 0
    assert sum(told) == 1500 * len(others)
    told.clear()
    count(rows, others, rows[:0, 0], torch.zeros(1501, dtype=torch.int64), told.append)
    assert sum(told) == 1500 * len(others)


@pytest.mark.parametrize("count", [cpu_counts.count_above, Tiled.count_above])
def test_what_progress_raises_ends_the_count(count: Callable[..., object]) -> None:
    def stop(pairs: int) -> None:
        raise RuntimeError("enough")

    rows = _embeddings("random", 300, 64)
    with pytest.raises(RuntimeError, match="enough"):
        count(rows, rows, rows[:, 0].contiguous(), torch.arange(301), stop)


def test_a_count_that_takes_long_is_told_of_while_it_goes_on() -> None:
    """And can be ended by what is told, on a thread of one's own, too."""
    rows = _embeddings("random", 20_000, 64)
    told: list[int] = []

    def stop(pairs: int) -> None:
        told.append(pairs)
        raise RuntimeError("enough")

    def run() -> None:
        with pytest.raises(RuntimeError, match="enough"):
            count_above(rows, rows, rows[:, 0].contiguous(), torch.arange(20_001), stop)

    for start in (run, lambda: _on_a_thread(run)):
        told.clear()
        start()
        assert len(told) == 1
        assert told[0] < 20_000**2


def _on_a_thread(run: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()
