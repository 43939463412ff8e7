"""The figure of the classification example: ROC curves, and where the similarities lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from glyphs.plotting import FIRST_COLOR, SECOND_COLOR, THIRD_COLOR, tidy
from glyphs.verification import Roc

COLORS = (SECOND_COLOR, THIRD_COLOR, FIRST_COLOR)
BINS = np.linspace(-1, 1, 161)


def save_figure(
    path: Path,
    curves: Mapping[str, Roc],
    baseline: tuple[str, Roc],
    title: str,
    fars: tuple[float, ...],
) -> None:
    """Write the figure as PNG.

    Args:
        path: file to write; its folder must exist.
        curves: all pairs by the name of the loss, at most as many as there are colours.
        baseline: name and pairs of a curve to compare with, drawn thin.
        title: of the ROC plot.
        fars: false accept rates to mark.
    """
    figure = plt.figure(figsize=(15, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    axes = left.subplots()
    _plot_curve(axes, *baseline, color="gray", linewidth=1.2, linestyle="--")
    for (name, roc), color in zip(curves.items(), COLORS, strict=False):
        _plot_curve(axes, name, roc, color=color, linewidth=2)
    for far in fars:
        axes.axvline(far, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(right=1)
    axes.set_ylim(0, 1.02)
    axes.set_title(title)
    axes.set_xlabel("false accept rate (FAR)")
    axes.set_ylabel("true accept rate (TAR)")
    axes.legend(frameon=False, loc="upper left")
    tidy(axes)

    right.suptitle(f"Cosine similarities of all pairs, and the threshold of FAR {fars[0]:g}")
    panels = right.subplots(len(curves), 1, sharex=True)
    for panel, (name, roc), color in zip(panels, curves.items(), COLORS, strict=False):
        _plot_similarities(panel, name, roc, color, fars[0])
    panels[-1].set_xlabel("cosine similarity")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_curve(axes: Axes, name: str, roc: Roc, **line: object) -> None:
    axes.plot(*roc.curve(), drawstyle="steps-post", label=name, **line)


def _plot_similarities(axes: Axes, name: str, roc: Roc, color: str, far: float) -> None:
    same = {"color": color, "alpha": 0.75, "label": "same letter"}
    other = {"color": "gray", "alpha": 0.5, "label": "different letters"}
    for scores, style in ((roc.positives, same), (roc.negatives, other)):
        # Rounding may take a cosine past 1.
        axes.hist(scores.clip(-1, 1), bins=BINS, density=True, **style)
    axes.axvline(roc.threshold(roc.allowed_false_accepts(far)), color="black", linewidth=1)
    axes.set_ylabel(name)
    axes.set_yticks([])
    axes.legend(frameon=False, loc="upper left")
    tidy(axes)
