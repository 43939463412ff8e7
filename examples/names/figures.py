"""The figure: how well each way retrieves, and names in many scripts with what they retrieve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from circle_kernels.evaluation import nearest
from names.data import NameSet
from names.fonts import families, script_of
from names.report import Runs

GREEN, RED, INK, PALE = "#2a9d4e", "#d1403f", "#222222", "#6b6b6b"
FILL = {GREEN: "#e3f4e8", RED: "#fbe6e5", INK: "#f2f2f2"}
BARS = {"recall@1": ("Recall@1", "#23527c"), "map@r": ("MAP@R", "#e08a1e")}
# By the first word of their letters' Unicode names.
SCRIPTS = {
    script.upper(): script
    for script in (
        *("Latin", "Cyrillic", "Greek", "Georgian", "Armenian", "Hebrew", "Arabic", "Devanagari"),
        *("Tamil", "Thai", "Katakana", "Hangul"),
    )
} | {"CJK": "Chinese"}
NEIGHBORS = 6
LONGEST = 26  # characters of a name that is drawn


def save_figure(
    path: Path,
    rows: Mapping[str, Runs],  # as for metrics_table
    names: NameSet,
    embeddings: Tensor,  # (N, D), of names_and_labels
    seed: int,  # for drawing the queries
) -> list[str]:
    """Bars on the left; on the right a random query of each script, which fonts can draw.

    Returns the scripts that are left out for want of fonts.
    """
    texts, labels = names.names_and_labels()
    k = min(NEIGHBORS, len(texts) - 1)
    neighbors = nearest(embeddings, k=k).indices
    titles = _different_titles(names)
    queries, missing = _choose_queries(texts, neighbors, seed)
    height = 0.85 + 0.62 * max(len(queries), 5)  # inches, as the margins below
    figure = Figure(figsize=(16, height))
    bars = figure.add_axes((0.012, 0.4 / height, 0.16, 1 - 0.9 / height))
    _draw_bars(bars, rows)
    bars.set_title(f"{len(names)} unseen entities", loc="left", fontsize=12)
    axes = figure.add_axes((0.235, 0.08 / height, 0.76, 1 - 0.48 / height))
    axes.set(xlim=(0, k + 1.12), ylim=(max(len(queries), 5), -0.36))
    axes.axis("off")
    axes.set_title(
        f"A random name in each script, and its nearest of {len(texts):,} names after training "
        "with circle loss (green: of the same entity, red: of another)",
        loc="left",
        fontsize=12,
    )
    for column in range(k + 1):
        heading = f"{column}" if column else "query"
        axes.text(_left(column) + 0.5, -0.03, heading, ha="center", va="bottom", color=PALE)
    for row, query in enumerate(queries):
        script = SCRIPTS[script_of(texts[query])]
        axes.text(-0.02, row + 0.5, script, ha="right", va="center", color=PALE, fontsize=10)
        for column, index in enumerate([query, *neighbors[query].tolist()]):
            right = labels[index] == labels[query]
            color = INK if column == 0 else GREEN if right else RED
            _draw_cell(axes, (column, row), texts[index], titles[labels[index]], color)
    figure.savefig(path, dpi=110)
    return missing


def _choose_queries(
    texts: Sequence[str],
    neighbors: Tensor,  # (N, k)
    seed: int,
) -> tuple[list[int], list[str]]:
    """Of each script a random name that is not too long; and the scripts that cannot be drawn."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(texts), generator=generator).tolist()
    queries, missing = [], []
    for script in SCRIPTS:
        of_script = [i for i in order if script_of(texts[i]) == script]
        drawn = (
            i
            for i in of_script
            if all(
                len(texts[j]) <= LONGEST and families(texts[j]) for j in [i, *neighbors[i].tolist()]
            )
        )
        query = next(drawn, None)
        if query is not None:
            queries.append(query)
        elif of_script:
            missing.append(SCRIPTS[script])
    return queries, missing


def _different_titles(names: NameSet) -> list[str]:
    """Of each entity, with its kind where others have its title, as a language and its script."""
    common = Counter(entity.title for entity in names.entities)
    return [
        f"{entity.title} ({entity.kind})" if common[entity.title] > 1 else entity.title
        for entity in names.entities
    ]


def _left(column: int) -> float:
    """Of a column; a gap sets the query apart."""
    return column + 0.12 * (column > 0)


def _draw_cell(axes: Axes, place: tuple[int, int], name: str, about: str, color: str) -> None:
    left, row = _left(place[0]), place[1]
    axes.add_patch(
        FancyBboxPatch(
            (left + 0.05, row + 0.07),
            *(0.9, 0.86),
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=FILL[color],
            edgecolor=color,
            linewidth=1.2,
        )
    )
    style = {"ha": "center", "va": "center"}
    above = axes.text(left + 0.5, row + 0.36, name, size=14, family=families(name), **style)
    below = axes.text(left + 0.5, row + 0.77, about, size=8.5, color=PALE, **style)
    most = 0.84 * (axes.transData.transform((1, 0)) - axes.transData.transform((0, 0)))[0]
    for text in (above, below):
        width = text.get_window_extent().width
        text.set_fontsize(text.get_fontsize() * min(1, most / width))


def _draw_bars(axes: Axes, rows: Mapping[str, Runs]) -> None:
    """One group of bars for each way, from top to bottom."""
    for shift, (key, (label, color)) in zip((-0.19, 0.19), BARS.items(), strict=True):
        for place, runs in enumerate(rows.values()):
            values = [run[key] for run in runs]
            mean = fmean(values)
            spread = stdev(values) if len(values) > 1 else None
            axes.barh(
                place + shift,
                mean,
                height=0.36,
                color=color,
                xerr=spread,
                label=label if place == 0 else None,
            )
            axes.text(mean + 0.02, place + shift, f"{mean:.2f}", va="center", fontsize=9)
    for place, way in enumerate(rows):
        axes.text(0.012, place - 0.45, way, va="bottom", fontsize=9.5)
    axes.set(xlim=(0, 0.9), ylim=(len(rows) - 0.5, -0.75), xticks=[], yticks=[])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)
