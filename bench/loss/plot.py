"""The picture of ``python -m bench loss``: time beside the bare product, and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.measuring.variants import DESCRIPTIONS
from bench.reporting.loss_tables import SMALLEST_MB, LossData, read_loss
from bench.reporting.results import Results
from bench.reporting.tables import environment

# Okabe and Ito's colours, which people with any colour vision can tell apart. Ours are the bold
# ones; a variant keeps its colour in every picture.
COLOURS = {
    "triton": "#D55E00",
    "cpu": "#D55E00",
    "cpu-skip": "#E69F00",
    "tiled": "#0072B2",
    "eager": "#000000",
    "compile": "#009E73",
    "pml": "#CC79A7",
    "mm": "#B5B5B5",
}
OURS = ("triton", "cpu", "cpu-skip", "tiled")
LINE_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")


def plot_loss(results: Results, path: Path) -> None:
    """Two panels per dtype: time of a training step over that of ``mm``, and peak memory."""
    data = read_loss(results)
    rows = [row for row in results.rows if row["kind"] != "small"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    regimes = [regime for _, _, regime, _ in data.timed]
    regime = "trained" if "trained" in regimes else next(iter(regimes), "")
    dims = sorted({row["dim"] for row in rows})
    figure = Figure(figsize=(11, 4.6 * len(dtypes) + 1.1), layout="constrained")
    panels = figure.subplots(len(dtypes), 2, squeeze=False)
    for dtype, (time_axes, memory_axes) in zip(dtypes, panels, strict=True):
        _draw_times(time_axes, data, regime, dtype, dims)
        _draw_memory(memory_axes, data, dtype, dims)
    figure.suptitle(f"Circle loss, forward and backward, on {results.device}")
    figure.legend(
        handles=_legend(data.variants, dims),
        loc="outside lower center",
        ncols=3,
        fontsize=9,
        frameon=False,
        title=environment(results),
        title_fontsize=7,
    )
    figure.savefig(path, dpi=150)


def _draw_times(axes: Axes, data: LossData, regime: str, dtype: str, dims: list[int]) -> None:
    for name in data.variants:
        for dim in dims:
            points = [
                (key[0], entry.whole_ratio)
                for key, entries in sorted(data.timed.items())
                for entry in entries
                if key[1:] == (dim, regime, dtype)
                and entry.variant == name
                and entry.whole_ratio is not None
            ]
            if not points:
                continue
            medians = [spread.median for _, spread in points]
            below = [spread.median - spread.low for _, spread in points]
            above = [spread.high - spread.median for _, spread in points]
            rows = [rows for rows, _ in points]
            style = _style(name, dim, dims)
            axes.errorbar(rows, medians, yerr=(below, above), elinewidth=1, capsize=2, **style)
    _finish(axes, f"Time, {dtype}, {regime} embeddings (bars: 20th to 80th percentile)")
    axes.axhline(1, color=COLOURS["mm"], linewidth=5, zorder=1.5)
    axes.set_ylabel("time / time of the bare product's forward")


def _draw_memory(axes: Axes, data: LossData, dtype: str, dims: list[int]) -> None:
    for name in data.variants:
        for dim in dims:
            points = []
            for rows, size_dim, size_dtype, variant in sorted(data.gauged):
                if (size_dim, size_dtype, variant) == (dim, dtype, name):
                    peak = data.peak_mb(rows, dim, dtype, name)
                    if peak is not None and peak >= SMALLEST_MB:
                        points.append((rows, peak))
            if points:
                rows_of_points, peaks = zip(*points, strict=True)
                axes.plot(rows_of_points, peaks, **_style(name, dim, dims))
    _finish(axes, f"Peak memory above the inputs, {dtype}")
    axes.set_ylabel("MB")


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("batch size N (rows)")
    axes.spines[["top", "right"]].set_visible(False)
    if not axes.has_data():
        # A logarithmic axis needs a number.
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
        return
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)


def _style(name: str, dim: int, dims: list[int]) -> dict[str, Any]:
    index = dims.index(dim) % len(LINE_STYLES)
    return {
        "color": COLOURS.get(name, "#666666"),
        "linestyle": LINE_STYLES[index],
        "marker": MARKERS[index],
        "markersize": 4,
        # Wide and behind the others, since the memory of a good naive path lies on this line.
        "linewidth": 5 if name == "mm" else 2.2 if name in OURS else 1.4,
        "zorder": 1.5 if name == "mm" else 2.5,
    }


def _legend(variants: list[str], dims: list[int]) -> list[Line2D]:
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS.get(name, "#666666"),
            linewidth=5 if name == "mm" else 2.2,
            label=f"{name}: {DESCRIPTIONS.get(name, name)}",
        )
        for name in variants
    ]
    for index, dim in enumerate(dims):
        line, marker = LINE_STYLES[index % len(LINE_STYLES)], MARKERS[index % len(MARKERS)]
        handles.append(
            Line2D([], [], color="#444444", linestyle=line, marker=marker, label=f"D = {dim}")
        )
    return handles
