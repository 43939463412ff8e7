"""Figures 1 and 2: what a loss decides and pushes at each pair of similarities (s_n, s_p)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from circle_kernels import CircleFormula, PairFormula, UnifiedFormula

BLUE, ORANGE, GREEN = "#23527c", "#e08a1e", "#2a9d4e"
STRAIGHT_MARGIN = 0.35  # of triplet loss and AM-Softmax in Fig. 2
# All points are s_n and s_p. Fig. 1: three far from both boundaries, and two on the straight one
# whose margin is 0.3 each, although T' has nearly as similar negatives as T has positives.
STARTS = {"A": (0.2, 0.35), "C": (0.45, 0.6), "B": (0.7, 0.85)}
STRAIGHT = UnifiedFormula(m=0.3, gamma=64.0)
STRAIGHT_TARGETS = {"T": (0.2, 0.5), "T'": (0.4, 0.7)}
CIRCULAR = CircleFormula(m=0.25, gamma=256.0)
CIRCULAR_TARGETS = {"T": (0.25, 0.75)}  # (m, 1 - m): of the arc the point nearest the diagonal
# Fig. 2: where the gradients are told in numbers. A is the paper's; at B all three losses push, but
# s_n is near its optimum.
TOLD = {"A": (0.8, 0.8), "B": (0.3, 0.6)}


def decision(formula: PairFormula, s_n: Tensor, s_p: Tensor) -> Tensor:
    """What the loss of one pair of each kind takes softplus of; 0 on the decision boundary."""
    return formula.negative_logits(s_n) + formula.positive_logits(s_p)


def plane(low: float = 0.0, high: float = 1.0, cells: int = 256) -> tuple[Tensor, Tensor]:
    """s_n and s_p at the centres of a grid's cells, (cells, cells) each, s_n along the columns."""
    axis = low + (high - low) * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    return torch.meshgrid(axis, axis, indexing="xy")


class Gradients(NamedTuple):
    """Absolute derivatives of a loss by both similarities."""

    s_n: Tensor
    s_p: Tensor


def gradients(formula: PairFormula | None, s_n: Tensor, s_p: Tensor) -> Gradients:
    """Of ``softplus(decision)``, or without a formula of the triplet loss, by autograd."""
    s_n, s_p = (each.detach().clone().requires_grad_() for each in (s_n, s_p))
    if formula is None:
        loss = F.relu(s_n - s_p + STRAIGHT_MARGIN)
    else:
        loss = F.softplus(decision(formula, s_n, s_p))
    found = torch.autograd.grad(loss.sum(), (s_n, s_p))
    return Gradients(*(each.abs() for each in found))


LOSSES: Mapping[str, PairFormula | None] = {
    "triplet": None,
    "AM-Softmax": UnifiedFormula(m=STRAIGHT_MARGIN, gamma=64.0),
    "circle": CIRCULAR,
}


def draw_boundary(
    axes: Axes, formula: PairFormula, color: str, label: str, width: float = 2
) -> None:
    """The curve where the decision is 0, from the package's own logits."""
    grid = plane(-0.3, 1.3)
    drawn = (each.numpy() for each in (*grid, decision(formula, *grid)))
    axes.contour(*drawn, levels=[0.0], colors=[color], linewidths=width)
    axes.plot([], [], color=color, linewidth=width, label=label)


def boundaries_figure() -> Figure:
    """Fig. 1: decision boundaries, and where the gradient of one pair of each kind leads."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_boundary_panel(left, STRAIGHT, BLUE, STRAIGHT_TARGETS)
    left.set_title("triplet loss, AM-Softmax: A, B and C pushed alike,\nT and T' equally good")
    _draw_boundary_panel(right, CIRCULAR, ORANGE, CIRCULAR_TARGETS)
    right.set_title("circle loss: A raises $s_p$, B lowers $s_n$,\nT is reached most easily")
    return figure


def _draw_boundary_panel(
    axes: Axes, formula: PairFormula, color: str, targets: Mapping[str, tuple[float, float]]
) -> None:
    """The boundary, the points on it, and steps of equal length down the gradient."""
    equation = (
        "$s_p - s_n = m = %g$" if formula is STRAIGHT else "$s_n^2 + (1 - s_p)^2 = 2 m^2$, m = %g"
    )
    draw_boundary(axes, formula, color, equation % formula.m)
    for name, point in STARTS.items():
        axes.plot(*point, "o", color="black", markersize=5)
        axes.annotate(name, point, (6, -12), textcoords="offset points")
        slopes = gradients(formula, *(torch.tensor([each]) for each in point))
        along = torch.cat([-slopes.s_n, slopes.s_p])
        end = torch.tensor(point) + 0.12 * along / along.norm()
        style = {"arrowstyle": "->", "color": "dimgray", "linewidth": 1.5}
        axes.annotate("", end.tolist(), point, arrowprops=style)
    for name, point in targets.items():
        axes.plot(*point, "D", color=color, markersize=7)
        axes.annotate(name, point, (-12, 8), textcoords="offset points", color=color)
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":", label="$s_p = s_n$")
    axes.plot(0, 1, "*", color="black", markersize=11, clip_on=False, linestyle="none")
    axes.annotate("optimum", (0, 1), (7, -14), textcoords="offset points", fontsize=9)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="$s_n$", ylabel="$s_p$", aspect="equal")
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def gradients_figure() -> Figure:
    """Fig. 2: derivatives by both similarities over the plane, and at A and B in numbers."""
    figure = Figure(figsize=(11.5, 6.6), layout="constrained")
    grid = figure.subplots(2, len(LOSSES), sharex=True, sharey=True)
    s_n, s_p = plane()
    for column, (name, formula) in zip(grid.T, LOSSES.items(), strict=True):
        over = gradients(formula, s_n, s_p)
        largest = max(float(each.max()) for each in over)
        for axes, values, symbol in zip(column, over, Gradients._fields, strict=True):
            image = axes.imshow(
                values.numpy(),
                extent=(0, 1, 0, 1),
                origin="lower",
                cmap="viridis",
                vmin=0,
                vmax=largest,
            )
            for label, point in TOLD.items():
                there = gradients(formula, *(torch.tensor([each]) for each in point))
                _tell(axes, f"{label}: {float(getattr(there, symbol)):.3g}", point)
            figure.colorbar(
                image, ax=axes, shrink=0.85, label=f"$|\\partial L/\\partial {symbol}|$"
            )
        constants = f"m={STRAIGHT_MARGIN}" if formula is None else f"m={formula.m}"
        scale = "" if formula is None else f", $\\gamma={formula.gamma:g}$"
        column[0].set_title(f"{name} ({constants}{scale})", fontsize=11)
        column[-1].set_xlabel("$s_n$")
    for axes in grid[:, 0]:
        axes.set_ylabel("$s_p$")
    return figure


def _tell(axes: Axes, text: str, point: tuple[float, float]) -> None:
    """A point with a label that can be read on every colour."""
    axes.plot(*point, "o", color="white", markeredgecolor="black", markersize=5)
    label = axes.annotate(
        text, point, (0, -14), textcoords="offset points", ha="center", color="white", fontsize=9
    )
    label.set_path_effects([withStroke(linewidth=2, foreground="black")])
