"""The chart of ``python -m bench quick``: time and memory over the batch size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from bench.quick.tables import (
    NAMES,
    OURS,
    SMALLEST_MB,
    THEIRS,
    Size,
    describe,
    megabytes_text,
    read_sizes,
)
from bench.reporting.results import Results
from bench.reporting.tables import environment, number

_COLOURS = {OURS: "#D55E00", THEIRS: "#555555"}  # of Okabe and Ito's


def plot_quick(results: Results, path: Path) -> None:
    """Two panels, with the numbers written at the points."""
    sizes = read_sizes(results)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)

    def milliseconds(size: Size, variant: str) -> float | None:
        found = size.milliseconds(variant)
        return None if found is None else found.median

    _draw(time_axes, sizes, milliseconds, number)
    time_axes.set_title("milliseconds, forward and backward", fontsize=10)
    _draw(memory_axes, sizes, Size.megabytes, megabytes_text, smallest=SMALLEST_MB)
    _draw_expected(memory_axes, sizes)
    memory_axes.set_title("peak MB above inputs and gradients", fontsize=10)
    figure.supxlabel(environment(results), fontsize=5, color="#666666")
    figure.legend(
        *time_axes.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=2,
        frameon=False,
        title=describe(results),
    )
    figure.savefig(path, dpi=150)


def _draw(
    axes: Axes,
    sizes: list[Size],
    value: Callable[[Size, str], float | None],
    text: Callable[[float], str],
    smallest: float = 0.0,
) -> None:
    for name, label in NAMES.items():
        points = [(size.case["rows"], value(size, name)) for size in sizes]
        known = [(rows, found) for rows, found in points if found is not None]
        axes.plot(
            [rows for rows, _ in known],
            [max(found, smallest) for _, found in known],
            color=_COLOURS[name],
            marker="o",
            linewidth=2.4 if name == OURS else 1.6,
            label=label,
        )
        for rows, found in known:
            axes.annotate(
                text(found),
                (rows, max(found, smallest)),
                xytext=(0, -13 if name == OURS else 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=_COLOURS[name],
            )
    axes.set_xscale("log", base=2)
    if axes.has_data() and any(len(line.get_xdata()) for line in axes.lines):
        axes.set_yscale("log")
    axes.set_xticks([size.case["rows"] for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.18)
    axes.set_xlabel("batch size N")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_expected(axes: Axes, sizes: list[Size]) -> None:
    """Hollow, where the library would have taken too much memory to be run."""
    colour = _COLOURS[THEIRS]
    points = [(size, size.expected_megabytes(THEIRS)) for size in sizes]
    expected = [(size.case["rows"], found) for size, found in points if found is not None]
    if not expected:
        return
    measured = [(size.case["rows"], size.megabytes(THEIRS)) for size in sizes]
    before = [(rows, found) for rows, found in measured if found is not None][-1:]
    line = [*before, *expected]
    axes.plot(*zip(*line, strict=True), color=colour, linestyle=":", linewidth=1.6)
    axes.plot(*zip(*expected, strict=True), "o", color=colour, markerfacecolor="white")
    for rows, found in expected:
        axes.annotate(
            f"{number(found)}, not run",
            (rows, found),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colour,
        )
