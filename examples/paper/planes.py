"""Figures 1 and 2: what a loss decides and pushes at each pair of similarities (s_n, s_p)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from circle_kernels import CircleFormula, PairFormula, UnifiedFormula

BLUE, ORANGE, GREEN = "#23527c", "#e08a1e", "#2a9d4e"
POINT_A = (0.8, 0.8)  # s_n and s_p
STRAIGHT_MARGIN = 0.35  # of triplet loss and AM-Softmax


def decision(formula: PairFormula, s_n: Tensor, s_p: Tensor) -> Tensor:
    """What the loss of one pair of each kind takes softplus of; 0 on the decision boundary."""
    return formula.negative_logits(s_n) + formula.positive_logits(s_p)


def plane(low: float = 0.0, high: float = 1.0, points: int = 201) -> tuple[Tensor, Tensor]:
    """s_n and s_p of a grid, (points, points) each, s_n along the columns."""
    axis = torch.linspace(low, high, points, dtype=torch.float64)
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
    "AM-Softmax (m=0.35, $\\gamma=64$)": UnifiedFormula(m=0.35, gamma=64.0),
    "circle loss (m=0.25, $\\gamma=256$)": CircleFormula(m=0.25, gamma=256.0),
}


def draw_boundary(
    axes: Axes, formula: PairFormula, color: str, label: str, width: float = 2
) -> None:
    """The curve of equal decision, from the package's own logits."""
    s_n, s_p = plane(-0.3, 1.3)
    axes.contour(
        s_n, s_p, decision(formula, s_n, s_p), levels=[0.0], colors=[color], linewidths=width
    )
    axes.plot([], [], color=color, linewidth=width, label=label)


def boundaries_figure() -> Figure:
    """Fig. 1: decision boundaries, and where the gradient of one pair of each kind leads."""
    figure = Figure(figsize=(10, 4.9), layout="constrained")
    straight, circle = (
        UnifiedFormula(m=STRAIGHT_MARGIN, gamma=64.0),
        CircleFormula(m=0.25, gamma=256.0),
    )
    panels = (
        (
            straight,
            BLUE,
            f"$s_p - s_n = {STRAIGHT_MARGIN}$",
            "AM-Softmax: one direction everywhere",
        ),
        (
            circle,
            ORANGE,
            "$s_n^2 + (1 - s_p)^2 = 2 m^2$, m = 0.25",
            "circle loss: toward one target",
        ),
    )
    for axes, (formula, color, label, title) in zip(figure.subplots(1, 2), panels, strict=True):
        draw_boundary(axes, formula, color, label)
        for name, point in {"A": (0.2, 0.35), "B": (0.5, 0.65), "C": (0.65, 0.8)}.items():
            axes.plot(*point, "o", color="black", markersize=5)
            axes.annotate(name, point, (6, -10), textcoords="offset points")
            slopes = gradients(formula, *(torch.tensor([each]) for each in point))
            along = torch.cat([-slopes.s_n, slopes.s_p])
            end = torch.tensor(point) + 0.14 * along / along.norm()
            style = {"arrowstyle": "->", "color": "gray", "linewidth": 1.5}
            axes.annotate("", end.tolist(), point, arrowprops=style)
        axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
        axes.plot(0, 1, "*", color="black", markersize=10, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="$s_n$", ylabel="$s_p$", aspect="equal")
        axes.set_title(title, fontsize=10)
        axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def gradients_figure() -> Figure:
    """Fig. 2: derivatives by both similarities over the plane, and at A."""
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    grid = figure.subplots(2, len(LOSSES), sharex=True, sharey=True)
    s_n, s_p = plane()
    at_a = [torch.tensor([each], dtype=torch.float64) for each in POINT_A]
    for column, (name, formula) in enumerate(LOSSES.items()):
        over, there = gradients(formula, s_n, s_p), gradients(formula, *at_a)
        largest = max(float(each.max()) for each in over)
        for axes, values, own, symbol in zip(
            grid[:, column], over, there, ("s_n", "s_p"), strict=True
        ):
            image = axes.imshow(
                values, extent=(0, 1, 0, 1), origin="lower", cmap="viridis", vmin=0, vmax=largest
            )
            axes.plot(*POINT_A, "o", color="white", markersize=5)
            axes.annotate(
                f"A: {float(own):.3g}", POINT_A, (-8, -14), textcoords="offset points", fontsize=9
            )
            axes.set_title(f"{name}: $|∂L/∂{symbol}|$", fontsize=9)
            figure.colorbar(image, ax=axes, shrink=0.8)
    for axes in grid[-1]:
        axes.set_xlabel("$s_n$")
    for axes in grid[:, 0]:
        axes.set_ylabel("$s_p$")
    return figure
