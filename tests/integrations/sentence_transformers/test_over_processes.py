"""Ranking losses of sentences that several processes share, in DDP as the trainer has them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.processes import run_processes
from tests.support.targets import INTERPRETED

if INTERPRETED:
    pytest.skip(
        "nothing of Triton is tested, and the import takes seconds", allow_module_level=True
    )
pytest.importorskip("sentence_transformers")

BOTH_WAYS = ("query_to_doc", "doc_to_query")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"directions": BOTH_WAYS, "partition_mode": "per_direction"},
    {"directions": (*BOTH_WAYS, "query_to_query", "doc_to_doc")},
    {"hardness_mode": "in_batch_negatives", "hardness_strength": 4.0},
    {"hardness_mode": "all_negatives", "hardness_strength": 4.0},
]


def parts_of(features: list[dict[str, Any]], sizes: list[int], rank: int) -> list[dict[str, Any]]:
    return [
        {
            name: value.split(sizes)[rank] if isinstance(value, Tensor) else value
            for name, value in each.items()
        }
        for each in features
    ]


def trained(kind: Any, model: Any, features: list[dict[str, Any]], **options: Any) -> Any:
    """The loss with the model in DDP, where there is one, and the model's gradients."""
    loss = kind(model, **options)
    own = copy.deepcopy(model)
    loss.model = DistributedDataParallel(own) if options.get("gather_across_devices") else own
    value = loss([dict(each) for each in features], None)
    value.backward()
    return value.detach(), [each.grad for each in own.parameters()]


def _compare(rank: int, sizes: list[int]) -> None:
    from sentence_transformers.sentence_transformer import losses

    from circle_kernels.integrations.sentence_transformers import MultipleNegativesRankingLoss
    from tests.integrations.sentence_transformers.models import columns, word_model

    model = word_model().double()
    features = [dict(model.preprocess(each)) for each in columns(3, sum(sizes))]
    own = parts_of(features, sizes, rank)
    for options in OPTIONS:
        expected, wanted = trained(losses.MultipleNegativesRankingLoss, model, features, **options)
        if len(set(sizes)) == 1:  # as the library needs it
            theirs, average = trained(
                losses.MultipleNegativesRankingLoss,
                model,
                own,
                gather_across_devices=True,
                **options,
            )
            dist.all_reduce(theirs)
            torch.testing.assert_close(theirs / len(sizes), expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(average, wanted, rtol=1e-11, atol=1e-12)
        for mini_batch_size in (None, 4):
            found, ours = trained(
                MultipleNegativesRankingLoss,
                model,
                own,
                gather_across_devices=True,
                mini_batch_size=mini_batch_size,
                **options,
            )
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sizes", [[6, 6], [3, 9]], ids=["equal", "unequal"])
def test_loss_and_gradient_are_those_of_one_process_with_all(sizes: list[int]) -> None:
    run_processes(2, _compare, sizes)


def test_one_process_gathers_nothing() -> None:
    from circle_kernels.integrations.sentence_transformers import MultipleNegativesRankingLoss
    from tests.integrations.sentence_transformers.models import columns, word_model

    model = word_model()
    features = [dict(model.preprocess(each)) for each in columns(2)]
    gathering = MultipleNegativesRankingLoss(model, gather_across_devices=True)
    alone = MultipleNegativesRankingLoss(model)
    assert torch.equal(gathering(copy.copy(features)), alone(copy.copy(features)))
