"""Ways to evaluate embeddings as the stopwatch and the memory gauge run them.

Each finds Recall@1, R-precision and MAP@R of every embedding among all others; those that need no
more for it find more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.evaluate.names import embedded_names
from circle_kernels.evaluation import retrieval_metrics

METRICS = ("recall@1", "r_precision", "map@r")


@dataclass(frozen=True)
class EvaluateCase:
    """Some embeddings; every field can be written to JSON."""

    data: str
    rows: int
    dim: int

    def __str__(self) -> str:
        return f"{self.data} N={self.rows} D={self.dim}"

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a results file."""
        return asdict(self)


@dataclass(frozen=True)
class Way:
    """One way.

    Args:
        what: what users know it by.
        evaluate: from (N, D) unit rows and (N,) labels to :data:`METRICS`.
        peak: bytes that it takes for N rows and the largest class.
        most: rows that it takes seconds for; it is not asked for more.
        module: a package that it needs.
    """

    what: str
    evaluate: Callable[[Tensor, Tensor], dict[str, float]]
    peak: Callable[[int, int], float]
    most: int = 2**31
    module: str | None = None

    def unusable(self, rows: int, largest: int, limit: float) -> str | None:
        """Why it is skipped; None where it is not."""
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            return f"skipped: {self.module} is not installed"
        if self.peak(rows, largest) > limit:
            return f"skipped: would need about {self.peak(rows, largest) / 1e9:.1f} GB"
        return f"skipped: asked up to N={self.most:,}" if rows > self.most else None


class EvaluateWork:
    """One way on some embeddings."""

    has_backward = False
    compiles = False

    def __init__(self, way: Way, embeddings: Tensor, labels: Tensor) -> None:
        self._way = way
        self._given = embeddings, labels

    def reset(self) -> None:
        """Nothing: there is no gradient."""

    def forward(self) -> Tensor:
        """The metrics."""
        found = self._way.evaluate(*self._given)
        return torch.tensor([found[name] for name in METRICS], dtype=torch.float64)

    def backward(self, loss: Tensor) -> None:
        """Nothing."""


def _ours(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    return retrieval_metrics(embeddings, labels)


def _ours_tiled(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    return retrieval_metrics(embeddings, labels, backend="tiled")


def _pml(k: str | None) -> Callable[[Tensor, Tensor], dict[str, float]]:
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")

    def evaluate(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        calculator = AccuracyCalculator(include=names, k=k, device=embeddings.device)
        found = calculator.get_accuracy(embeddings, labels)
        return dict(zip(METRICS, (found[name] for name in names), strict=True))

    return evaluate


def _faiss(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    import faiss

    counts = labels.bincount()
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings.numpy())
    _, found = index.search(embeddings.numpy(), int(counts.max()))
    queries = np.arange(len(labels))[:, None]
    # The query itself goes; of equal ones it need not come first.
    others = np.argsort(found == queries, axis=1, kind="stable")
    ranked = np.take_along_axis(found, others, axis=1)[:, :-1]
    return _of_hits(labels.numpy()[ranked] == labels.numpy()[:, None], (counts[labels] - 1).numpy())


def _numpy(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    similarity = embeddings.numpy() @ embeddings.numpy().T
    np.fill_diagonal(similarity, -np.inf)
    ranked = np.argsort(-similarity, axis=1)[:, :-1]
    hits = labels.numpy()[ranked] == labels.numpy()[:, None]
    return _of_hits(hits, hits.sum(1))


def _of_hits(hits: np.ndarray, positives: np.ndarray) -> dict[str, float]:
    """Metrics of (N, k) hits in the order of similarity."""
    counted = positives > 0
    hits, positives = hits[counted], positives[counted, None]
    order = np.arange(1, hits.shape[1] + 1)
    first = hits & (order <= positives)
    precisions = np.cumsum(hits, axis=1) / order
    precision = (precisions * first).sum(1)
    means = (hits[:, 0], first.sum(1) / positives[:, 0], precision / positives[:, 0])
    return dict(zip(METRICS, (float(each.mean()) for each in means), strict=True))


def _torchmetrics(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    from torchmetrics.retrieval import RetrievalPrecision, RetrievalRPrecision

    similarity = embeddings @ embeddings.T
    others = ~torch.eye(len(labels), dtype=torch.bool)
    queries = torch.arange(len(labels))[:, None].expand_as(similarity)
    # It takes what has a score of 0 or less for irrelevant.
    given = (1 + similarity)[others], (labels[:, None] == labels)[others]
    indexes = queries[others]
    at_1 = RetrievalPrecision(top_k=1, empty_target_action="skip")
    r_precision = RetrievalRPrecision(empty_target_action="skip")
    found = [float(metric(*given, indexes=indexes)) for metric in (at_1, r_precision)]
    return dict(zip(METRICS, (*found, float("nan")), strict=True))  # it has no MAP@R


WAYS = {
    "ours": Way("circle_kernels", _ours, lambda rows, largest: 0),
    "ours-tiled": Way(
        "circle_kernels, backend=tiled", _ours_tiled, lambda rows, largest: 0, most=10_000
    ),
    "faiss": Way(
        "faiss-cpu's exact search, then numpy",
        _faiss,
        lambda rows, largest: 60 * rows * largest,
        module="faiss",
    ),
    "pml": Way(
        "pytorch-metric-learning, k=max_bin_count",
        _pml("max_bin_count"),
        lambda rows, largest: 100 * rows * largest,
    ),
    "pml-all": Way(
        "pytorch-metric-learning, k=None", _pml(None), lambda rows, largest: 40 * rows**2
    ),
    "numpy": Way("numpy, argsort of all", _numpy, lambda rows, largest: 40 * rows**2),
    "torchmetrics": Way(
        "torchmetrics",
        _torchmetrics,
        lambda rows, largest: 80 * rows**2,
        most=4000,
        module="torchmetrics",
    ),
}


def drawn(case: EvaluateCase) -> tuple[Tensor, Tensor]:  # (N, D) unit rows, (N,) int64
    """Embeddings of a kind, the same for the same case."""
    if case.data == "names":
        return embedded_names(case.rows, case.dim)
    generator = torch.Generator().manual_seed(0)
    classes = max(2, case.rows // 98)
    labels = torch.arange(case.rows) % classes
    centres = F.normalize(torch.randn(classes, case.dim, generator=generator))
    noise = torch.randn(case.rows, case.dim, generator=generator) / case.dim**0.5
    return F.normalize(centres[labels] + noise), labels
