"""The figure of the retrieval example: curves on the left, retrieved neighbours on the right."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from glyphs.data import GlyphSet
from glyphs.metrics import RetrievalMetrics, nearest_neighbors
from glyphs.plotting import FIRST_COLOR, SECOND_COLOR, tidy
from glyphs.training import History

RIGHT = "#2a9d4e"
WRONG = "#d1403f"


def save_figure(
    path: Path,
    history: History,
    loss_names: tuple[str, str | None],
    test_glyphs: GlyphSet,
    embeddings: Tensor,  # (C * F, D)
    metrics: RetrievalMetrics,
    *,
    number_of_queries: int = 9,
    number_of_neighbors: int = 11,
    seed: int = 0,
) -> None:
    """Write the figure as PNG.

    Args:
        path: file to write; its folder must exist.
        history: of the training run.
        loss_names: of the loss that drove the training and of the compared loss, if any.
        test_glyphs: C classes in F faces.
        embeddings: (C * F, D), one per picture, in the order of ``images_and_labels``.
        metrics: those of ``embeddings``, for the title.
        number_of_queries: rows of neighbours; the queries are drawn at random.
        number_of_neighbors: neighbours per row.
        seed: for drawing the queries.
    """
    figure = plt.figure(figsize=(15, 7.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(0.8, 1))
    loss_axes, metric_axes = left.subplots(2, 1, sharex=True)
    _plot_loss(loss_axes, history, loss_names)
    _plot_validation(metric_axes, history)

    images, labels = test_glyphs.images_and_labels()
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randperm(len(labels), generator=generator)[:number_of_queries]
    neighbors = nearest_neighbors(
        embeddings, min(number_of_neighbors, len(labels) - 1), queries=queries
    )
    right.suptitle(
        "Random pictures of unseen letters and their nearest neighbours\n"
        f"over all {len(labels):,} test pictures: Recall@1 {metrics.recall_at_1:.3f}, "
        f"MAP@R {metrics.map_at_r:.3f}"
    )
    _draw_neighbors(right, images[:, 0].numpy(), labels, queries, neighbors, test_glyphs)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_loss(axes: Axes, history: History, loss_names: tuple[str, str | None]) -> None:
    steps = np.arange(1, len(history.steps) + 1)
    name, compared_name = loss_names
    axes.plot(
        steps, [step.value for step in history.steps], color=FIRST_COLOR, linewidth=1.2, label=name
    )
    if compared_name is not None:
        compared = [step.compared_value for step in history.steps]
        axes.plot(steps, compared, ":", color=SECOND_COLOR, linewidth=1.8, label=compared_name)
        axes.legend(frameon=False)
    axes.set_title("Circle loss on the training classes")
    axes.set_ylabel("loss")
    tidy(axes)


def _plot_validation(axes: Axes, history: History) -> None:
    steps, metrics = zip(*history.validations, strict=True)
    curves = (
        ("Recall@1", [m.recall_at_1 for m in metrics], SECOND_COLOR),
        ("MAP@R", [m.map_at_r for m in metrics], FIRST_COLOR),
    )
    for name, values, color in curves:
        axes.plot(steps, values, "o-", color=color, markersize=4, label=name)
    axes.set_ylim(0, 1.02)
    axes.set_title("Retrieval on the validation classes (a smaller gallery)")
    axes.set_xlabel("training step")
    axes.set_ylabel("metric")
    axes.legend(frameon=False, loc="lower right")
    tidy(axes)


def _draw_neighbors(
    figure: Figure,
    pictures: np.ndarray,  # (N, H, W)
    labels: Tensor,  # (N,)
    queries: Tensor,  # (Q,)
    neighbors: Tensor,  # (Q, k)
    glyphs: GlyphSet,
) -> None:
    number_of_rows, number_of_neighbors = neighbors.shape
    # A narrow empty column sets the query apart from its neighbours.
    grid = figure.subplots(
        number_of_rows,
        number_of_neighbors + 2,
        width_ratios=[1, 0.25] + [1] * number_of_neighbors,
        squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.05},
    )
    for row, query in enumerate(queries.tolist()):
        character = glyphs.characters[labels[query]]
        _show(grid[row, 0], pictures[query], "black")
        grid[row, 0].set_ylabel(
            f"U+{ord(character):04X}", rotation=0, ha="right", va="center", fontsize=9
        )
        grid[row, 1].axis("off")
        for column, neighbor in enumerate(neighbors[row].tolist(), start=2):
            color = RIGHT if labels[neighbor] == labels[query] else WRONG
            _show(grid[row, column], pictures[neighbor], color)
    grid[0, 0].set_title("query", fontsize=9)
    for column in range(2, number_of_neighbors + 2):
        grid[0, column].set_title(str(column - 1), fontsize=9)
    figure.supxlabel("rank of the neighbour (green: the same letter, red: another)", fontsize=10)


def _show(axes: Axes, picture: np.ndarray, color: str) -> None:
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=2)
