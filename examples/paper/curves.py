"""Figures 3, 4 and 5, from what trainings left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula
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
    """Fig. 3: a metric of unseen letters over γ, and of circle loss over m."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for loss, scales in SCALES.items():
        settings = [Setting(loss, MARGINS[loss], float(gamma)) for gamma in scales]
        label = f"{loss} (m={MARGINS[loss]:g})"
        _plot_spread(
            left, scales, [values_of(rows, each, metric) for each in settings], loss, label
        )
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
        axes.plot(steps, s_p, color=COLORS[setting.loss], label=f"{setting}: $s_p$")
        axes.plot(steps, s_n, "--", color=COLORS[setting.loss], label=f"{setting}: $s_n$")
    axes.set(xscale="log", xlabel="training step (logarithmic)", ylabel="cosine to class weights")
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)
    return figure


def scatter_figure(points: Mapping[Setting, tuple[Tensor, Tensor]]) -> Figure:
    """Fig. 5: s_n and s_p of the training pictures after training, with the boundary of each."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    panels = figure.subplots(1, len(points), sharex=True, sharey=True)
    for axes, (setting, (s_n, s_p)) in zip(panels, points.items(), strict=True):
        axes.scatter(s_n, s_p, s=2, alpha=0.25, color=COLORS[setting.loss], linewidths=0)
        formula = (
            CircleFormula(m=setting.m, gamma=1.0)
            if setting.loss == "circle"
            else UnifiedFormula(m=setting.m, gamma=1.0)
        )
        draw_boundary(axes, formula, "black", "decision boundary", 1.5)
        axes.plot(0, 1, "*", color="black", markersize=9, clip_on=False)
        axes.set(xlim=(-0.1, 1), ylim=(0, 1.02), xlabel="$s_n$, hardest other class")
        axes.set_title(str(setting), fontsize=10)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
        _tidy(axes)
    panels[0].set_ylabel("$s_p$, own class")
    return figure


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
