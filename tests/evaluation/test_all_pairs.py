"""Verification of all pairs, in tiles: as of their list, in one process or several."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from circle_kernels.evaluation import pair_counts
from circle_kernels.evaluation.exact import exact_tile, on_grid
from circle_kernels.evaluation.verification import all_pairs_tar_at_far
from tests.distributed.one_process import own_rows
from tests.distributed.processes import run_processes
from tests.evaluation.test_verification import FARS, by_roc_curve


def _embeddings(n: int, kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    labels = torch.randint(-1, 8, (n,), generator=generator)
    embeddings = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    embeddings += torch.randn(10, 6, generator=generator, dtype=torch.float64)[labels]
    if kind == "integers":  # few different similarities, exact in any dtype
        embeddings = embeddings.round()
    return embeddings, labels


def _listed(embeddings: Tensor, labels: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Every pair once."""
    rows = F.normalize(embeddings) if normalize else embeddings
    first, second = torch.triu_indices(len(labels), len(labels), 1)
    return (rows @ rows.T)[first, second], labels[first] == labels[second]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_counts, "_TILE", 7)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("ignored", [None, -1])
@pytest.mark.parametrize("n", [5, 7, 14, 60])
def test_rates_of_all_pairs_are_those_of_the_list(n: int, ignored: int | None) -> None:
    embeddings, labels = _embeddings(n, "normal")
    kept = labels != ignored if ignored is not None else torch.ones_like(labels, dtype=torch.bool)
    expected = by_roc_curve(*_listed(embeddings[kept], labels[kept], True), FARS)
    for dtype in (torch.float64, torch.float32):
        found = all_pairs_tar_at_far(embeddings.to(dtype), labels, FARS, ignore_label=ignored)
        assert found == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tied_pairs_are_accepted_together(dtype: torch.dtype) -> None:
    embeddings, labels = _embeddings(60, "integers")
    expected = by_roc_curve(*_listed(embeddings, labels, False), FARS)
    found = all_pairs_tar_at_far(embeddings.to(dtype), labels, FARS, normalize=False)
    assert found == pytest.approx(expected, rel=0, abs=1e-12)
    collapsed = torch.full((60, 96), 0.37, dtype=dtype)
    assert all_pairs_tar_at_far(collapsed, labels, (0, 0.5, 1)) == {0.0: 0.0, 0.5: 0.0, 1.0: 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_similarities_are_told_apart_to_the_last_bit(dtype: torch.dtype) -> None:
    """Similarities that differ in that alone, of either sign and around 0."""
    for centre in (0.5, -0.5, 0.0):
        steps = torch.arange(-20, 20, dtype=torch.float64) * 4 * torch.finfo(dtype).eps
        embeddings = torch.cat([steps.new_ones(1), centre + steps]).to(dtype)[:, None]
        labels = torch.tensor([0, *[0, 1] * 20])
        rows = on_grid(embeddings, False, alike=True)
        first, second = torch.triu_indices(len(labels), len(labels), 1)
        similarity = exact_tile(rows, rows)[first, second].to(dtype)
        assert len(similarity.unique()) >= 40
        expected = by_roc_curve(similarity.double(), labels[first] == labels[second], FARS)
        found = all_pairs_tar_at_far(embeddings, labels, FARS, normalize=False)
        assert found == pytest.approx(expected, rel=0, abs=1e-12)


def test_keys_are_in_the_order_of_similarities_and_not_negative() -> None:
    for dtype in (torch.float32, torch.float64):
        least, step = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
        ascending = torch.tensor([least * step, least, 0.5, 1 - step, 1, 2 - step], dtype=dtype)
        ascending = torch.cat([-ascending.flip(0), torch.zeros(1, dtype=dtype), ascending])
        keys = pair_counts._keys(ascending)
        assert (keys.diff() > 0).all()
        assert keys[0] >= 0
        assert int(keys[-1]) < 2 ** (8 * ascending.itemsize - 1)
        assert torch.equal(pair_counts._keys(-torch.zeros(1, dtype=dtype)), keys[6:7])


def test_number_of_threads_and_size_of_tiles_make_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Close rows, whose order sums in another order would leave to chance."""
    generator = torch.Generator().manual_seed(5)
    embeddings = 1 + 1e-4 * torch.randn(150, 100, generator=generator)
    labels = torch.arange(150) % 10
    fars = [place / 50 for place in range(51)]
    expected = all_pairs_tar_at_far(embeddings, labels, fars)
    threads = torch.get_num_threads()
    for number, tile in itertools.product((1, 2), (20, 64)):
        monkeypatch.setattr(pair_counts, "_TILE", tile)
        torch.set_num_threads(number)
        try:
            assert all_pairs_tar_at_far(embeddings, labels, fars) == expected
        finally:
            torch.set_num_threads(threads)


def test_pairs_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_counts, "_TILE", 50)
    monkeypatch.setattr(pair_counts, "_DIGIT_BITS", 8)
    monkeypatch.setattr(pair_counts, "_DIGITS", 2**8)
    embeddings, labels = _embeddings(400, "normal")
    expected = by_roc_curve(*_listed(embeddings, labels, True), (0.01, 0.1))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and not result._is_view():
                largest = max(largest, result.numel())
            return result

    with Watch():
        found = all_pairs_tar_at_far(embeddings, labels, (0.01, 0.1))
    assert found == pytest.approx(expected, rel=0, abs=1e-12)
    assert 0 < largest <= 50 * 50  # (N, D) is 400 * 6


def test_pairs_of_short_rows_are_told_apart_beside_long_ones() -> None:
    embeddings, labels = _embeddings(60, "normal")
    embeddings[10:] *= 1e-4
    embeddings = embeddings.float()
    fars = [place / 100 for place in range(101)]
    expected = by_roc_curve(*_listed(embeddings.double(), labels, False), fars)
    found = all_pairs_tar_at_far(embeddings, labels, fars, normalize=False)
    assert found == pytest.approx(expected, rel=0, abs=1e-12)


SPLITS = ((9, 31), (0, 40), (17, 0, 23), (40, 0, 0), (14, 13, 13))


def _share(rank: int, splits: tuple[tuple[int, ...], ...]) -> None:
    embeddings, labels = _embeddings(40, "normal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_counts, "_TILE", 7)
        for sizes, dtype in itertools.product(splits, (torch.float32, torch.float64)):
            rows = own_rows(sizes, rank)
            for options in ({}, {"normalize": False, "ignore_label": 3}):
                whole = all_pairs_tar_at_far(embeddings.to(dtype), labels, FARS, **options)
                shared = all_pairs_tar_at_far(
                    embeddings[rows].to(dtype), labels[rows], FARS, group="world", **options
                )
                assert shared == whole


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_get_what_one_gets(processes: int) -> None:
    run_processes(processes, _share, tuple(each for each in SPLITS if len(each) == processes))


def _differ(rank: int) -> None:
    embeddings, labels = _embeddings(20, "normal")
    with pytest.raises(ValueError, match=r"^fars must be the same in all processes of the group"):
        all_pairs_tar_at_far(embeddings, labels, (0.1,) * (rank + 1), group="world")
    with pytest.raises(ValueError, match="ignore_label must be the same in all processes"):
        all_pairs_tar_at_far(embeddings, labels, (0.1,), ignore_label=rank, group="world")
    words = ("all_pairs_tar_at_far raised in another process", r"fars\[0\] must be in \[0, 1\]")
    with pytest.raises(ValueError, match=words[rank]):
        all_pairs_tar_at_far(embeddings, labels, (1 + rank,), group="world")
    with pytest.raises(ValueError, match="labels must have pairs of both kinds, got 0 of one"):
        all_pairs_tar_at_far(
            embeddings[:2], torch.arange(2) + 2 * rank, (0.1,), group="world", normalize=False
        )
    found = all_pairs_tar_at_far(embeddings, labels, (0.1,), group="world")
    whole = (torch.cat([embeddings, embeddings]), torch.cat([labels, labels]))
    assert found == all_pairs_tar_at_far(*whole, (0.1,))


def test_processes_that_differ_are_told_and_ready_for_the_next_call() -> None:
    run_processes(2, _differ)


def test_wrong_embeddings_are_named() -> None:
    x, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    for given, options, kind, message in (
        ((x, labels[:3]), {}, ValueError, "labels must have one entry per row"),
        ((x / 0, labels), {}, ValueError, "embeddings must be finite.*row 0"),
        ((x, labels), {"ignore_label": 0.5}, TypeError, "ignore_label must be an integer"),
        ((x, labels), {"normalize": 1}, TypeError, "normalize must be"),
        ((x, labels), {"progress": 1}, TypeError, "progress must be"),
        ((x, labels), {"group": "all"}, ValueError, "group must be 'world'"),
        ((x, labels * 0), {}, ValueError, "labels must .* got 6 of one class and 0 of two"),
        ((x[:0], labels[:0]), {}, ValueError, "labels must .* got 0 of one class and 0 of two"),
    ):
        with pytest.raises(kind, match=message):
            all_pairs_tar_at_far(*given, (0.1,), **options)


def test_progress_is_shown_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    all_pairs_tar_at_far(torch.eye(4), torch.tensor([0, 0, 1, 1]), (0.1,), progress=True)
    assert "2.00/2.00" in capfd.readouterr().err
