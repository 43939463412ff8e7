"""SupCon and NT-Xent of a batch that processes share: the value and the gradient of one process."""

from __future__ import annotations

import pytest
import torch

from circle_kernels import circle_loss
from circle_kernels.losses import multi_similarity_loss, ntxent_loss, supcon_loss
from tests.distributed.one_process import Case, compare
from tests.distributed.processes import run_processes

SIZES = {2: ((5, 9), (0, 8), (1, 1), (0, 0)), 3: ((5, 3, 0), (4, 4, 4))}
OPTIONS = (
    {},
    {"reduction": "sum", "grad_reduction": "sum"},
    {"reduction": "none"},
    {"reduction": "mean_all", "backend": "tiled"},
    {"normalize": False, "temperature": 5.0},
    {"ignore_label": 1},
)


@pytest.mark.parametrize("function", [supcon_loss, ntxent_loss], ids=lambda each: each.__name__)
@pytest.mark.parametrize("world_size", SIZES)
def test_value_and_gradient_are_those_of_one_process(world_size: int, function: object) -> None:
    cases = [
        Case(sizes, references, options, function, classes=classes)
        for sizes in SIZES[world_size]
        for options in OPTIONS
        for references in (None, sizes[::-1])
        for classes in (4, 50)
    ]
    run_processes(world_size, compare, cases)


def test_equal_batches_need_no_header() -> None:
    cases = [
        Case((4, 4), None, {"same_sizes": True, "exchange": exchange}, function)
        for function in (supcon_loss, ntxent_loss, multi_similarity_loss)
        for exchange in ("gather", "ring")
    ]
    run_processes(2, compare, cases)


def _ignore(rank: int) -> None:
    for function in (circle_loss, supcon_loss):
        for label in (rank, None if rank else 0):
            with pytest.raises(ValueError, match="ignore_label must be the same in all processes"):
                function(torch.randn(6, 4), torch.arange(6) % 3, group="world", ignore_label=label)


def test_labels_that_are_ignored_have_to_be_alike() -> None:
    run_processes(2, _ignore)
