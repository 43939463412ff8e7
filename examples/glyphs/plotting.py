"""What the figures share: a backend that needs no display, colours, bare axes."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes

FIRST_COLOR = "#23527c"
SECOND_COLOR = "#e08a1e"
THIRD_COLOR = "#2a9d4e"


def tidy(axes: Axes) -> None:
    """A faint grid, and no lines at the top and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
