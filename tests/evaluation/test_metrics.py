"""Retrieval and re-identification metrics: brute force, libraries and several processes agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score

from circle_kernels.evaluation import (
    bootstrap_intervals,
    positive_ranks,
    reid_metrics,
    retrieval_metrics,
)
from tests.distributed.processes import run_processes
from tests.evaluation.brute_force import Problem, metrics
from tests.evaluation.test_ranks import PROBLEMS

TOPS = (1, 3, 10)


def _metrics(problem: Problem, **options: Any) -> dict[str, Any]:
    return retrieval_metrics(
        problem.embeddings, problem.labels, recall_at=TOPS, **problem.given, **options
    )


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_metrics_are_those_of_brute_force(name: str, backend: str) -> None:
    problem = PROBLEMS[name]()
    for ties in ("pessimistic", "optimistic", "mean"):
        found = _metrics(problem, backend=backend, ties=ties)
        assert found == pytest.approx(metrics(problem.ranks(ties), TOPS), rel=0, abs=1e-12)


def test_means_are_of_queries_with_a_positive() -> None:
    problem = PROBLEMS["junk"]()
    whole, each = _metrics(problem), _metrics(problem, per_query=True)
    ranks = problem.ranks()
    assert 0 < sum(not of_query for of_query in ranks) < len(ranks)
    for name, values in each.items():
        assert values.isnan().tolist() == [not of_query for of_query in ranks]
        assert whole[name] == pytest.approx(float(values.nanmean()), abs=1e-15)


def test_library_agrees_where_it_is_right() -> None:
    """Its ``k=None`` ranks everything; what it calls precision at 1 is recall at 1."""
    problem = PROBLEMS["self"]()
    names = {
        "precision_at_1": "recall@1",
        "r_precision": "r_precision",
        "mean_average_precision_at_r": "map@r",
        "mean_average_precision": "map",
        "mean_reciprocal_rank": "mrr",
    }
    calculator = AccuracyCalculator(
        include=tuple(names),
        k=None,
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    theirs = calculator.get_accuracy(problem.embeddings, problem.labels)
    ours = _metrics(problem)
    for name, own_name in names.items():
        assert ours[own_name] == pytest.approx(theirs[name], abs=1e-7)


def test_average_precision_is_that_of_scikit_learn() -> None:
    problem = PROBLEMS["gallery"]()
    similarity = problem.similarity().numpy()
    relevant = (problem.labels[:, None] == problem.given["ref_labels"]).numpy()
    scores = [
        average_precision_score(each, scores)
        for each, scores in zip(relevant, similarity, strict=True)
        if each.any()
    ]
    assert _metrics(problem)["map"] == pytest.approx(np.mean(scores), abs=1e-12)


def test_reid_leaves_out_the_camera_and_junk_but_no_distractors() -> None:
    problem = PROBLEMS["junk"]()
    ref_labels = problem.given["ref_labels"].clone()
    ref_labels[::7] = 0  # distractors: no query has this identity
    labels = problem.labels.clone()
    labels[labels == 0] = 1
    given = {**problem.given, "ref_labels": ref_labels}
    expected = metrics(Problem(problem.embeddings, labels, **given).ranks(), (1, 5, 10))
    sides = (given["ref_emb"], ref_labels, given["ref_cameras"])
    found = reid_metrics(problem.embeddings, labels, given["cameras"], *sides)
    assert list(found) == ["rank@1", "rank@5", "rank@10", "map", "minp"]
    for name, value in found.items():
        assert value == pytest.approx(expected[name.replace("rank@", "recall@")], abs=1e-12)
    without = [each[ref_labels != 0] for each in sides]
    assert reid_metrics(problem.embeddings, labels, given["cameras"], *without) != found
    each = reid_metrics(problem.embeddings, labels, given["cameras"], *sides, per_query=True)
    assert float(each["rank@1"].nanmean()) == pytest.approx(found["rank@1"], abs=1e-15)


def test_a_collapsed_network_scores_nothing() -> None:
    found = retrieval_metrics(torch.ones(100, 8), torch.arange(100) // 10, recall_at=(1, 10, 100))
    assert found["recall@1"] == found["recall@10"] == found["map@r"] == 0
    assert found["recall@100"] == 1


def test_bootstrap_holds_the_mean_and_narrows_with_queries() -> None:
    widths = []
    for number in (50, 5000):
        values = (torch.arange(number) % 5 == 0).double()
        intervals = bootstrap_intervals({"recall@1": values, "map": values}, seed=3)
        assert intervals["recall@1"] == intervals["map"]
        low, high = intervals["map"]
        assert low < 0.2 < high
        widths.append(high - low)
    # A binomial's standard deviation, 1.96 times to both sides.
    assert widths[1] == pytest.approx(2 * 1.96 * math.sqrt(0.2 * 0.8 / 5000), rel=0.15)
    assert widths[0] > 5 * widths[1]
    values = torch.tensor([1.0, math.nan, 1.0])
    assert bootstrap_intervals({"map": values}, resamples=7) == {"map": (1.0, 1.0)}


def test_wrong_arguments_are_named() -> None:
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="recall_at\\[1\\] must be at least 1, got 0"):
        retrieval_metrics(x, labels, recall_at=(1, 0))
    with pytest.raises(TypeError, match="recall_at must be a sequence of integers, got int"):
        retrieval_metrics(x, labels, recall_at=1)
    with pytest.raises(ValueError, match="no query has a positive: labels must have one twice"):
        retrieval_metrics(x, torch.arange(4))
    with pytest.raises(ValueError, match="positive: gallery_ids must have one of query_ids"):
        reid_metrics(x, labels, labels, x, labels, labels)
    for place, name in enumerate(("query_cams", "gallery", "gallery_ids", "gallery_cams"), 2):
        sides = [x, labels, labels, x, labels, labels + 1]
        sides[place] = None
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got NoneType"):
            reid_metrics(*sides)
    with pytest.raises(ValueError, match=r"rank_at\[0\] must be at least 1, got 0"):
        reid_metrics(x, labels, labels, x, labels, labels + 1, rank_at=(0,))
    with pytest.raises(ValueError, match="no query has a positive"):
        retrieval_metrics(x[:0], labels[:0])
    with pytest.raises(TypeError, match="unexpected keyword argument 'k'"):
        retrieval_metrics(x, labels, k=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'cameras'"):
        reid_metrics(x, labels, labels, x, labels, labels, cameras=labels)
    with pytest.raises(ValueError, match=r"gallery_cams must have one .* gallery"):
        reid_metrics(x, labels, labels, x, labels, labels[:2])
    with pytest.raises(ValueError, match="gallery must be finite"):
        reid_metrics(x, labels, labels, x / 0, labels, labels)
    with pytest.raises(ValueError, match="confidence must be greater than 0"):
        bootstrap_intervals({"map": torch.ones(3)}, confidence=1.0)
    with pytest.raises(ValueError, match=r"per_query\['map'\] must have a query"):
        bootstrap_intervals({"map": torch.full((3,), math.nan)})
    with pytest.raises(TypeError, match=r"per_query\['map'\] must be a tensor"):
        bootstrap_intervals({"map": 0.5})
    with pytest.raises(TypeError, match="per_query must be a dictionary"):
        bootstrap_intervals(torch.ones(3))
    with pytest.raises(TypeError, match="seed must be an integer, got float"):
        bootstrap_intervals({"map": torch.ones(3)}, seed=0.5)


def test_bootstrap_takes_another_default_device() -> None:
    values = {"map": torch.arange(7.0)}
    expected = bootstrap_intervals(values)
    with torch.device("meta"):
        assert bootstrap_intervals(values) == expected


def _parts(rank: int, rows: int) -> slice:
    """Uneven, and the second of three has none."""
    bounds = {2: (0, rows // 3, rows), 3: (0, rows // 3, rows // 3, rows)}[dist.get_world_size()]
    return slice(bounds[rank], bounds[rank + 1])


def _share(rank: int, name: str) -> None:
    problem = PROBLEMS[name]()
    own = _parts(rank, len(problem.labels))
    given = dict(problem.given)
    for each in ("ref_emb", "ref_labels", "ref_cameras"):
        if each in given:
            given[each] = given[each][_parts(rank, len(given[each]))]
    if "cameras" in given:
        given["cameras"] = given["cameras"][own]
    queries = (problem.embeddings[own], problem.labels[own])
    alone = positive_ranks(problem.embeddings, problem.labels, **problem.given)
    ranks = alone.ranks.split(alone.counts.tolist())[own]
    found = positive_ranks(*queries, **given, group="world")
    assert torch.equal(found.ranks, torch.cat([*ranks, alone.ranks[:0]]))
    assert torch.equal(found.counts, alone.counts[own])
    assert retrieval_metrics(*queries, **given, group="world", recall_at=TOPS) == _metrics(problem)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", ["self", "junk in self mode", "gallery", "junk"])
def test_processes_share_the_queries(name: str, processes: int) -> None:
    run_processes(processes, _share, name)


def _differ(rank: int) -> None:
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="ignore_label must be the same in all processes"):
        retrieval_metrics(x, labels, ignore_label=rank, group="world")
    with pytest.raises(ValueError, match="columns of embeddings must be the same"):
        positive_ranks(x[:, : 3 - rank], labels, group="world")
    kind, message = (
        (ValueError, "positive_ranks raised in another process") if rank else (TypeError, "labels")
    )
    with pytest.raises(kind, match=message):
        positive_ranks(x, labels if rank else labels[:, None].float(), group="world")
    with pytest.raises(ValueError, match=r"^recall_at must be the same in all processes"):
        retrieval_metrics(x, labels, recall_at=(1,) * (rank + 1), group="world")
    with pytest.raises(ValueError, match=r"^per_query must be the same in all processes"):
        retrieval_metrics(x, labels, per_query=bool(rank), group="world")
    words = ("reid_metrics raised in another process", r"rank_at\[0\] must be at least 1")
    sides = (x, labels, labels, x, labels, labels + 1)
    with pytest.raises(ValueError, match=words[rank]):
        reid_metrics(*sides, rank_at=(1 - rank,), group="world")


def test_processes_that_differ_are_told() -> None:
    run_processes(2, _differ)
