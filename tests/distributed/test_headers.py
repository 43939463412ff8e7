"""Where processes differ, all of them say so before data moves, and are ready for the next call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from circle_kernels import CircleFormula, circle_loss, pair_logsumexp, unified_loss
from circle_kernels.backends import cpu
from tests.distributed.processes import batch, run_processes

EXCHANGES = ("gather", "ring")


def _differ(rank: int, exchange: str) -> None:
    """Rank 1 has something else."""
    embeddings, labels = batch(4)
    usual: dict[str, Any] = {"group": "world", "exchange": exchange}
    alone = (embeddings, labels)
    options: list[dict[str, Any]] = [
        {"m": 0.3}, {"gamma": 64.0}, {"scope": "batch"}, {"reduction": "sum"}, {"normalize": False},
        {"detach_weights": False}, {"skip_below": 0.25}, {"grad_reduction": "sum"},
    ]  # fmt: skip
    words = r"^{} must be the same in all processes of the group; got {} on rank 0, {} on rank 1$"
    kind = "the dtype and the columns of embeddings"
    six = r"torch\.float64 of 6 columns"
    cases = [
        ((embeddings[:, :5], labels), {}, words.format(kind, six, ".* of 5 columns")),
        ((embeddings.float(), labels), {}, words.format(kind, six, r"torch\.float32 .*")),
        ((*alone, *alone), {}, words.format("the dtype of ref_emb.*", "None", r"torch\.float64")),
        (
            (embeddings.clone().requires_grad_(), labels),
            {},
            words.format("whether embeddings need a gradient .*", "False", "True"),
        ),
    ]
    for option in options:
        ((name, value),) = option.items()
        cases.append((alone, option, words.format(name, ".*", str(value))))
    for arguments, option, message in cases:
        mine = (arguments, {**usual, **option}) if rank == 1 else (alone, usual)
        with pytest.raises(ValueError, match=message):
            circle_loss(*mine[0], **mine[1])
    functions = (
        lambda: circle_loss(*alone, **usual),
        lambda: unified_loss(*alone, m=0.4, gamma=80.0, **usual),
        lambda: pair_logsumexp(*alone, formula=CircleFormula(), **usual),
    )
    for first, second in ((0, 1), (1, 2), (2, 0)):
        message = r"^the function that is called must .* got .*circle_loss|unified_loss"
        with pytest.raises(ValueError, match=message):
            functions[(first, second)[rank]]()
    if exchange == "gather":
        with pytest.raises(ValueError, match=words.format("exchange", "gather", "ring")):
            circle_loss(*alone, group="world", exchange=EXCHANGES[rank])
    whole = torch.cat([embeddings, embeddings]), torch.cat([labels, labels])
    torch.testing.assert_close(circle_loss(*alone, **usual), circle_loss(*whole))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_all_processes_raise_the_same_error(exchange: str) -> None:
    run_processes(2, _differ, exchange)


def _lose_the_kernel(rank: int, call: Callable[[], Any]) -> None:
    """The package is installed without its kernel on rank 1."""
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(cpu, "_extension", lambda: "there is none")
        call()


def _fail_alone(rank: int) -> None:
    embeddings, labels = batch(4)
    served = {"group": "world", "backend": "cpu"}
    formula = CircleFormula()
    for call in (
        lambda: circle_loss(embeddings, labels[: 4 - rank], group="world"),
        lambda: circle_loss(embeddings, labels, m=0.4 + rank, group="world"),
        lambda: pair_logsumexp(embeddings[: 4 - rank], labels, formula=formula, group="world"),
        lambda: _lose_the_kernel(rank, lambda: circle_loss(embeddings, labels, **served)),
    ):
        wrong = "labels must have|m must be greater|backend='cpu' cannot serve"
        told = r"^\w+ raised in another process of the group, so that all raise; rank 1: \w+"
        expected = wrong if rank == 1 else f"{told}: ({wrong})"
        with pytest.raises((ValueError, RuntimeError), match=expected):
            call()
    assert torch.isfinite(circle_loss(embeddings, labels, group="world"))


def test_a_process_that_refuses_its_arguments_tells_the_others() -> None:
    run_processes(2, _fail_alone)


def _differ_untold(rank: int) -> None:
    embeddings, labels = batch(4)
    options = {"group": "world", "same_sizes": True}
    for exchange in EXCHANGES:
        loss = circle_loss(embeddings, labels, gamma=64.0 + rank, exchange=exchange, **options)
        assert loss.isnan()
        assert circle_loss(embeddings, labels, exchange=exchange, **options).isfinite()


def test_without_headers_the_loss_of_processes_that_differ_is_nan() -> None:
    run_processes(2, _differ_untold)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exchange": "tree", "group": "world"}, "exchange must be one of 'gather', 'ring'"),
        ({"grad_reduction": "none", "group": "world"}, "grad_reduction must be one of 'mean'"),
        ({"same_sizes": "no", "group": "world"}, "same_sizes must be True or False"),
        ({"exchange": "ring"}, "exchange='ring' needs group, which is None"),
        ({"same_sizes": True}, "same_sizes=True needs group, which is None"),
        ({"grad_reduction": "sum"}, "grad_reduction='sum' needs group, which is None"),
    ],
)  # fmt: skip
def test_options_of_processes_are_checked_where_there_is_one(
    options: dict[str, Any], message: str
) -> None:
    from circle_kernels import CircleLoss

    with pytest.raises((TypeError, ValueError), match=message):
        CircleLoss(**options)
    if "group" not in options:
        with pytest.raises(ValueError, match=message):
            circle_loss(*batch(4), **options)
