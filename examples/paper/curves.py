"""Figures 3, 4 and 5, from what trainings left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from paper.planes import BLUE, GREEN, ORANGE, draw_boundary
from paper.trainings import MARGINS, SCALES, SWEPT_GAMMA, Setting

COLORS = {"circle": ORANGE, "AM-Softmax": BLUE, "ArcFace": GREEN}
Rows = Sequence[Mapping[str, Any]]


def values_of(rows: Rows, setting: Setting, metric: str) -> np.ndarray:
    """What a setting reached from each seed."""
    wanted = (setting.loss, setting.m, setting.gamma)
    found = [row[metric] for row in rows if (row["loss"], row["m"], row["gamma"]) == wanted]
    return np.array(found)


def sweep_figure(rows: Rows, metric: str = "recall@1") -> Figure:
    """Fig. 3: a metric of unseen letters over γ, and of circle loss over m.

    Beside the margins, dashed, the best mean that the other losses have at any scale.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for loss, scales in SCALES.items():
        settings = [Setting(loss, MARGINS[loss], float(gamma)) for gamma in scales]
        values = [values_of(rows, each, metric) for each in settings]
        _plot_spread(left, scales, values, loss, f"{loss} (m={MARGINS[loss]:g})")
        if loss != "circle":
            best = max(float(each.mean()) for each in values)
            style = {"color": COLORS[loss], "linestyle": "--", "linewidth": 1.2}
            right.axhline(best, **style, label=f"{loss}, best mean at any $\\gamma$")
    left.set(xscale="log", xlabel="scale $\\gamma$", ylabel="Recall@1 of unseen letters")
    left.set_xticks(SCALES["circle"], [str(each) for each in SCALES["circle"]])
    left.minorticks_off()
    margins = sorted(
        {row["m"] for row in rows if row["gamma"] == SWEPT_GAMMA and row["loss"] == "circle"}
    )
    settings = [Setting("circle", m, SWEPT_GAMMA) for m in margins]
    values = [values_of(rows, each, metric) for each in settings]
    _plot_spread(right, margins, values, "circle", f"circle ($\\gamma={SWEPT_GAMMA:g}$)")
    right.set(xlabel="relaxation margin m")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9)
        _tidy(axes)
    return figure


def histories_figure(histories: Mapping[Setting, Sequence[tuple[float, float]]]) -> Figure:
    """Fig. 4: the mean s_p and s_n of each batch over training, the beginning stretched."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for setting, means in histories.items():
        steps = np.arange(1, len(means) + 1)
        s_p, s_n = np.array(means).T
        axes.plot(
            steps, s_p, color=COLORS[setting.loss], linewidth=1, label=f"{_name(setting)}: $s_p$"
        )
        axes.plot(
            steps,
            s_n,
            "--",
            color=COLORS[setting.loss],
            linewidth=1,
            label=f"{_name(setting)}: $s_n$",
        )
    axes.set(xscale="log", xlabel="training step (logarithmic)", ylabel="cosine to class weights")
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)
    return figure


class Cloud(NamedTuple):
    """Similarities of a training, s_n and s_p of each."""

    crossings: Tensor  # (P, 2) where pictures crossed the decision boundary
    converged: Tensor  # (N, 2) of the training pictures at the end


def scatter_figure(clouds: Mapping[Setting, Cloud]) -> Figure:
    """Fig. 5: where pictures crossed the boundary in training, and where they ended."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subplots(1, len(clouds), sharex=True, sharey=True)
    for axes, (setting, cloud) in zip(panels, clouds.items(), strict=True):
        for points, color, label in (
            (cloud.converged, GREEN, "after training"),
            (cloud.crossings, BLUE, "crossing the boundary"),
        ):
            axes.scatter(*points.numpy().T, s=3, alpha=0.3, color=color, linewidths=0)
            label = f"{label}: {len(points):,}"
            if len(points) > 1:
                label += "; {:.3f} $\\times$ {:.3f}".format(*spread(points))
            axes.plot([], [], "o", color=color, markersize=4, label=label)
        draw_boundary(axes, setting.formula, "black", "decision boundary", 1.5)
        axes.plot(0, 1, "*", color="black", markersize=9, clip_on=False, linestyle="none")
        axes.set(xlim=(-0.1, 1), ylim=(0, 1.02), xlabel="$s_n$, most similar other class")
        axes.set_title(_name(setting), fontsize=11)
        title = "pictures; spread along $\\times$ across $s_n = s_p$"
        axes.legend(fontsize=8.5, loc="lower right", title=title, title_fontsize=8.5)
        _tidy(axes)
    panels[0].set_ylabel("$s_p$, own class")
    return figure


def spread(points: Tensor) -> tuple[float, float]:
    """Standard deviation of (N, 2) points along the diagonal s_n = s_p, and across it."""
    s_n, s_p = points.T
    return float((s_n + s_p).std()) / math.sqrt(2), float((s_p - s_n).std()) / math.sqrt(2)


def _name(setting: Setting) -> str:
    return str(setting).replace("gamma", r"$\gamma$")


def _plot_spread(
    axes: Axes, places: Sequence[float], values: Sequence[np.ndarray], loss: str, label: str
) -> None:
    """Means, and between the lowest and the highest of all seeds."""
    color = COLORS[loss]
    axes.plot(
        places, [each.mean() for each in values], "o-", color=color, label=label, markersize=4
    )
    low, high = ([getattr(each, end)() for each in values] for end in ("min", "max"))
    axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
