"""The glyph retrieval example: its metrics, and short runs of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.examples.programs import EXAMPLES  # isort: skip

import glyph_retrieval
from glyphs import data, metrics, report, search, training
from rich.console import Console

from circle_kernels import CircleLoss

SHORT = training.Settings(
    m=0.25, gamma=32.0, steps=5, learning_rate=2e-3, classes_per_batch=8, pictures_per_class=3
)


# Metrics


def brute_force_metrics(embeddings: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Recall@1, R-precision and MAP@R straight from their definitions."""
    first_hits, r_precisions, average_precisions = [], [], []
    for query in range(len(labels)):
        others = [index for index in range(len(labels)) if index != query]
        cosine = torch.cosine_similarity(embeddings[query], embeddings, dim=1).tolist()
        ranking = sorted(others, key=lambda index: -cosine[index])
        hits = [bool(labels[index] == labels[query]) for index in ranking]
        relevant = sum(hits)
        if relevant == 0:
            continue
        first_hits.append(hits[0])
        r_precisions.append(sum(hits[:relevant]) / relevant)
        precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(relevant) if hits[i]]
        average_precisions.append(sum(precisions) / relevant)
    return tuple(
        sum(values) / len(values) for values in (first_hits, r_precisions, average_precisions)
    )


def clustered_embeddings(seed: int) -> tuple[Tensor, Tensor]:
    """Classes of 1 to 9 noisy embeddings, shuffled, with arbitrary labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([3, -7, 50, 8, 0, 11, 12]).repeat_interleave(
        torch.tensor([9, 2, 1, 5, 7, 1, 4])
    )
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), 6, generator=generator, dtype=torch.float64)
    return centres[labels] + noise, labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_metrics_equal_a_brute_force_computation(seed: int, chunk: int) -> None:
    embeddings, labels = clustered_embeddings(seed)
    result = metrics.retrieval_metrics(embeddings, labels, chunk=chunk)
    expected = brute_force_metrics(embeddings, labels)
    assert (result.recall_at_1, result.r_precision, result.map_at_r) == pytest.approx(expected)
    assert 0 < result.map_at_r < result.r_precision < 1


def test_metrics_equal_those_of_pytorch_metric_learning() -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    embeddings, labels = clustered_embeddings(5)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(CosineSimilarity()),
    )
    expected = calculator.get_accuracy(embeddings.float(), labels)
    result = metrics.retrieval_metrics(embeddings, labels)
    assert result.recall_at_1 == pytest.approx(expected["precision_at_1"])
    assert result.r_precision == pytest.approx(expected["r_precision"])
    assert result.map_at_r == pytest.approx(expected["mean_average_precision_at_r"])


def test_metrics_of_separated_classes_are_one() -> None:
    labels = torch.arange(5).repeat_interleave(3)
    result = metrics.retrieval_metrics(torch.eye(5)[labels], labels)
    assert result == metrics.RetrievalMetrics(1.0, 1.0, 1.0)


def test_query_is_not_its_own_neighbor() -> None:
    embeddings = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    neighbors = metrics.nearest_neighbors(embeddings, 19, chunk=7)
    for query, row in enumerate(neighbors.tolist()):
        assert sorted([query, *row]) == list(range(20))


def test_metrics_refuse_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="finite"):
        metrics.retrieval_metrics(torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="class with two embeddings"):
        metrics.retrieval_metrics(torch.randn(3, 2), torch.arange(3))
    with pytest.raises(ValueError, match="k must be in 1 to 2"):
        metrics.nearest_neighbors(torch.randn(3, 2), 3)


# Training


def short_run(split: data.ClassSplit, **losses: CircleLoss) -> tuple[dict, training.History]:
    network = training.new_network(SHORT.seed)
    history = training.train(network, split.train, split.validation, SHORT, **losses)
    return network.state_dict(), history


def test_compared_loss_agrees_and_leaves_the_run_as_it_is(small_split: data.ClassSplit) -> None:
    naive = CircleLoss(m=0.25, gamma=32, backend="reference")
    fused = CircleLoss(m=0.25, gamma=32)
    alone, _ = short_run(small_split, criterion=naive)
    weights, history = short_run(small_split, criterion=naive, compared=fused)
    torch.testing.assert_close(weights, alone, rtol=0, atol=0)
    assert len(history.steps) == SHORT.steps
    assert max(step.value_difference for step in history.steps) < 1e-5
    assert max(step.gradient_difference for step in history.steps) < 1e-4


def test_difference_between_the_losses_would_be_seen(small_split: data.ClassSplit) -> None:
    _, history = short_run(
        small_split,
        criterion=CircleLoss(m=0.25, gamma=32, backend="reference"),
        compared=CircleLoss(m=0.25, gamma=33),
    )
    assert min(step.value_difference for step in history.steps) > 1e-3
    assert min(step.gradient_difference for step in history.steps) > 1e-3


@pytest.mark.parametrize("loss", ["fused", "naive"])
def test_short_run_prints_its_tables_and_writes_its_figure(
    loss: str, small_split: data.ClassSplit, tmp_path: Path
) -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    path = glyph_retrieval.run(SHORT, loss, small_split, tmp_path / "new" / "folder", console)
    assert path.read_bytes().startswith(b"\x89PNG")
    text = printed.getvalue()
    for expected in ("raw pixels", "untrained", f"{loss} circle loss", "MAP@R", "share of step"):
        assert expected in text
    assert f"{loss} (drove the training)" in text
    assert ("gradient differs by" in text) == (loss == "naive")


def test_agreement_table_covers_every_step() -> None:
    steps = [
        training.Step(1.0, 1.0, 1.0, 1.0, 1.0, value_difference=0.0, gradient_difference=0.0)
        for _ in range(10)
    ]
    steps[6] = replace(steps[6], gradient_difference=0.5)
    printed = io.StringIO()
    table = report.agreement_table(steps, "naive", "fused", rows=4)
    Console(file=printed, width=100).print(table)
    lines = printed.getvalue().splitlines()
    for part in ("1 to 3", "4 to 6", "7 to 9", "10 to 10"):
        (line,) = [line for line in lines if part in line]
        assert ("5.0e-01" in line) == (part == "7 to 9")
    assert "5.0e-01" in lines[-2]


# Hyper-parameters and command line


def test_search_takes_the_best_of_each_stage() -> None:
    def score(settings: training.Settings) -> metrics.RetrievalMetrics:
        distance = abs(settings.m - 0.4) + abs(settings.gamma - 16) + abs(settings.steps - 600)
        return metrics.RetrievalMetrics(0.0, 0.0, -distance - abs(settings.learning_rate - 4e-3))

    chosen, results = search.choose_settings(score)
    assert (chosen.m, chosen.gamma, chosen.steps, chosen.learning_rate) == (0.4, 16.0, 600, 4e-3)
    assert chosen in results
    assert len(results) == 12


def test_search_does_not_look_at_the_test_classes(small_split: data.ClassSplit) -> None:
    without_test = replace(small_split, test=None)
    assert search.validation_metrics(SHORT, without_test).recall_at_1 > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: must be at least 1, got 0"),
        (["--gamma", "-1"], "gamma must be greater than 0, got -1.0"),
        (["--m", "nan"], "m must be finite"),
        (["--lr", "0"], "--lr: must be positive and finite"),
        (["--classes-per-batch", "1"], "--classes-per-batch: a negative pair takes at least 2"),
        (["--pictures-per-class", "13"], "a class has 12, got 13"),
        (["--seed", "-1"], "--seed: must be in 0 to"),
        (["--out", __file__], "is not a folder"),
        (["--loss", "triplet"], "invalid choice: 'triplet'"),
    ],
)
def test_bad_argument_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        glyph_retrieval.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_batch_of_more_classes_than_there_are_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"--classes-per-batch must be at most 5\d\d, the"):
        glyph_retrieval.main(["--classes-per-batch", "5000"])


def test_missing_package_is_named_with_what_to_install() -> None:
    script = str(EXAMPLES / "glyph_retrieval.py")
    code = f"import runpy, sys; sys.modules['tqdm'] = None; runpy.run_path({script!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent)])},
        check=False,
    )
    assert done.returncode == 1
    assert "'tqdm' is missing" in done.stderr
    assert "pip install 'circle-kernels[examples]'" in done.stderr
