"""Most similar classes and accuracy of class shards in real processes: those of one process."""

from __future__ import annotations

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tests.distributed.processes import run_processes
from tests.distributed.test_sharded import ALL_SIZES, one_process, own_rows, problem, sharded


def _predict(rank: int, sizes: tuple[int, ...], classes: int) -> None:
    embeddings, labels, weight = problem(sum(sizes), classes)
    rows = own_rows(rank, sizes)
    for dtype, normalize in ((torch.float64, True), (torch.bfloat16, True), (torch.float32, False)):
        x, w = embeddings, weight
        if not normalize:  # small integers, of whose products many are equal
            x, w = (each.round().clamp(-1, 1) for each in (x, w))
        heads = [
            make("circle", w.to(dtype), normalize=normalize) for make in (sharded, one_process)
        ]
        x = x.to(dtype)
        for k in {1, min(3, classes), classes}:
            ours, expected = heads[0].predict(x[rows], k), heads[1].predict(x, k)
            torch.testing.assert_close(
                ours.similarities, expected.similarities[rows], rtol=0, atol=1e-6
            )
            assert torch.equal(ours.classes, expected.classes[rows])
        nearest = expected.classes[:, 0]
        mixed = torch.where(torch.arange(len(labels)) % 2 == 0, nearest, labels)
        mixed[1::5] = -100
        ours, expected = heads[0].accuracy(x[rows], mixed[rows]), heads[1].accuracy(x, mixed)
        assert torch.equal(ours, expected) or (ours.isnan() and expected.isnan())


def _predict_each(rank: int, cases: list[tuple[tuple[int, ...], int]]) -> None:
    for sizes, classes in cases:
        try:
            _predict(rank, sizes, classes)
        except AssertionError as error:
            raise AssertionError(f"{sizes}, {classes} classes") from error


@pytest.mark.parametrize("world_size", ALL_SIZES)
def test_prediction_and_accuracy_are_those_of_one_process(world_size: int) -> None:
    cases = [(sizes, classes) for sizes in ALL_SIZES[world_size] for classes in (11, 3, 1, 24)]
    run_processes(world_size, _predict_each, cases)


def _not_finite(rank: int) -> None:
    embeddings, _, weight = problem(9, 11)
    rows = own_rows(rank, (4, 5))
    labels = one_process("circle", weight).predict(embeddings).classes[:, 0]
    for change in ("embedding", "class"):
        x, w = embeddings.clone(), weight.clone()
        (x if change == "embedding" else w)[7, 2] = math.nan
        ours, alone = sharded("circle", w), one_process("circle", w)
        expected = alone.predict(x, 2)
        top = ours.predict(x[rows], 2)
        assert torch.equal(top.classes, expected.classes[rows])
        assert torch.equal(top.similarities.isnan(), expected.similarities[rows].isnan())
        assert ours.accuracy(x[rows], labels[rows]) == alone.accuracy(x, labels)


def test_numbers_that_are_not_finite() -> None:
    run_processes(2, _not_finite)


def _wrong(rank: int) -> None:
    """Both processes raise, and are ready for the next call."""
    embeddings, labels, weight = problem(8, 11)
    head = sharded("circle", weight)
    expected = head.predict(embeddings, 3)
    for call, message in (
        (lambda: head.predict(embeddings, 1 + rank), "^k must be the same .* 1 on rank 0, 2 on"),
        (lambda: head.predict(embeddings, 2 + 10 * rank), "k must be at most the 11 classes"),
        (lambda: head.predict(embeddings[:, rank:]), "weight must have as many columns"),
        (lambda: head.accuracy(embeddings, labels[rank:]), "labels must have one entry per row"),
        (lambda: head.accuracy(embeddings, labels + 11 * rank), r"labels must be in \[0, 11\)"),
        (
            lambda: head.accuracy(embeddings, labels) if rank else head.predict(embeddings),
            "^the function .*ShardedClassCircleLoss.predict on rank 0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(RuntimeError, match=r"^ShardedClassCircleLoss\.predict waits for the other"):
        make_fx(lambda x: head.predict(x), tracing_mode="fake")(embeddings)
    assert torch.equal(head.predict(embeddings, 3).classes, expected.classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circle_kernels.classes.arguments.host_may_look", lambda tensor: False)
        assert head.accuracy(embeddings, labels + 11 * rank).isnan()


def test_where_one_process_is_wrong_all_of_them_raise() -> None:
    run_processes(2, _wrong)
