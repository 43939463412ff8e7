"""The figures: training curves and retrieved neighbours; ROC curves and similarities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from circle_kernels.evaluation import nearest
from glyphs.data import GlyphSet
from glyphs.evaluation import AllPairs
from glyphs.training import History

BLUE, ORANGE, GREEN, RED = "#23527c", "#e08a1e", "#2a9d4e", "#d1403f"
QUERIES = 9
NEIGHBORS = 11
BINS = np.linspace(-1, 1, 161)


def save_retrieval_figure(
    path: Path,
    history: History,
    loss_names: tuple[str, str | None],  # of the driving loss and of the compared one, if any
    test_glyphs: GlyphSet,  # C classes in F faces
    embeddings: Tensor,  # (C * F, D), in the order of images_and_labels
    metrics: Mapping[str, float],  # of the embeddings
    seed: int,  # for drawing the queries
) -> None:
    """Curves of the training on the left, random queries with their neighbours on the right."""
    figure = Figure(figsize=(15, 7.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(0.8, 1))
    loss_axes, metric_axes = left.subplots(2, 1, sharex=True)
    _plot_loss(loss_axes, history, loss_names)
    _plot_validation(metric_axes, history)
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randperm(len(embeddings), generator=generator)[:QUERIES]
    right.suptitle(
        "Random pictures of unseen letters and their nearest neighbours\n"
        f"over all {len(embeddings):,} test pictures: Recall@1 {metrics['recall@1']:.3f}, "
        f"MAP@R {metrics['map@r']:.3f}"
    )
    neighbors = nearest(embeddings, k=NEIGHBORS).indices[queries]
    _draw_neighbors(right, test_glyphs, queries, neighbors)
    figure.savefig(path, dpi=110)


def _plot_loss(axes: Axes, history: History, loss_names: tuple[str, str | None]) -> None:
    name, compared_name = loss_names
    numbers = np.arange(1, len(history.steps) + 1)
    losses = [step.loss for step in history.steps]
    axes.plot(numbers, losses, color=BLUE, linewidth=1.2, label=name)
    if compared_name is not None:
        losses = [step.compared.loss for step in history.steps]
        axes.plot(numbers, losses, ":", color=ORANGE, linewidth=1.8, label=compared_name)
        axes.legend(frameon=False)
    axes.set(title="Circle loss on the training classes", ylabel="loss")
    _tidy(axes)


def _plot_validation(axes: Axes, history: History) -> None:
    steps, metrics = zip(*history.validations, strict=True)
    for name, values, color in (
        ("Recall@1", [m["recall@1"] for m in metrics], ORANGE),
        ("MAP@R", [m["map@r"] for m in metrics], BLUE),
    ):
        axes.plot(steps, values, "o-", color=color, markersize=4, label=name)
    axes.set(
        title="Retrieval on the validation classes (a smaller gallery)",
        xlabel="training step",
        ylabel="metric",
        ylim=(0, 1.02),
    )
    axes.legend(frameon=False, loc="lower right")
    _tidy(axes)


def _draw_neighbors(
    figure: SubFigure,
    glyphs: GlyphSet,
    queries: Tensor,  # (Q,)
    neighbors: Tensor,  # (Q, k)
) -> None:
    images, labels = glyphs.images_and_labels()
    pictures = images[:, 0].numpy()
    # A narrow empty column sets the query apart from its neighbours.
    grid = figure.subplots(
        len(queries),
        neighbors.shape[1] + 2,
        width_ratios=[1, 0.25] + [1] * neighbors.shape[1],
        gridspec_kw={"wspace": 0.05, "hspace": 0.05},
    )
    for row, query, found in zip(grid, queries.tolist(), neighbors.tolist(), strict=True):
        _show(row[0], pictures[query], "black")
        name = f"U+{ord(glyphs.characters[labels[query]]):04X}"
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        row[1].axis("off")
        for axes, neighbor in zip(row[2:], found, strict=True):
            _show(axes, pictures[neighbor], GREEN if labels[neighbor] == labels[query] else RED)
    grid[0, 0].set_title("query", fontsize=9)
    for rank, axes in enumerate(grid[0, 2:], start=1):
        axes.set_title(str(rank), fontsize=9)
    figure.supxlabel("rank of the neighbour (green: the same letter, red: another)", fontsize=10)


def _show(axes: Axes, picture: np.ndarray, color: str) -> None:
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=color, linewidth=2)


def save_verification_figure(
    path: Path,
    pairs: Mapping[str, AllPairs],  # by the name of the loss, at most three
    baseline: tuple[str, AllPairs],  # drawn thin
    title: str,  # of the ROC plot
    fars: Sequence[float],  # false accept rates to mark
) -> None:
    """ROC curves on the left, on the right where the similarities lie."""
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    axes = left.subplots()
    _plot_roc(axes, *baseline, color="gray", linewidth=1.2, linestyle="--")
    right.suptitle(f"Cosine similarities of all pairs, and the threshold of FAR {fars[0]:g}")
    panels = right.subplots(len(pairs), 1, sharex=True)
    for panel, name, color in zip(panels, pairs, (ORANGE, GREEN, BLUE), strict=False):
        _plot_roc(axes, name, pairs[name], color=color, linewidth=2)
        _plot_similarities(panel, name, pairs[name], color, fars[0])
    panels[-1].set_xlabel("cosine similarity")
    for far in fars:
        axes.axvline(far, color="black", linewidth=0.8, linestyle=":")
    axes.set(title=title, xlabel="false accept rate (FAR)", ylabel="true accept rate (TAR)")
    axes.set(xscale="log", ylim=(0, 1.02))
    axes.set_xlim(right=1)
    axes.legend(frameon=False, loc="upper left")
    _tidy(axes)
    figure.savefig(path, dpi=110)


def _plot_roc(axes: Axes, name: str, pairs: AllPairs, **line: object) -> None:
    total = len(pairs.negatives)
    fars = np.unique(np.geomspace(1, total, 400).round()) / total
    axes.plot(fars, pairs.tars(fars), drawstyle="steps-post", label=name, **line)


def _plot_similarities(axes: Axes, name: str, pairs: AllPairs, color: str, far: float) -> None:
    same = {"color": color, "alpha": 0.75, "label": "same letter"}
    other = {"color": "gray", "alpha": 0.5, "label": "different letters"}
    for scores, style in ((pairs.positives, same), (pairs.negatives, other)):
        # Rounding may take a cosine past 1.
        axes.hist(scores.clip(-1, 1), bins=BINS, density=True, histtype="stepfilled", **style)
    axes.axvline(pairs.thresholds([far])[0], color="black", linewidth=1)
    axes.set(ylabel=name, yticks=[])
    axes.legend(frameon=False, loc="upper left")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    """A faint grid, and no lines at the top and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
