"""The tables of ``python -m bench class``, from its results file."""

from __future__ import annotations

import math
from typing import Any

from bench.reporting.results import Results
from bench.reporting.spread import ratio, spread
from bench.reporting.tables import MISSING, Table, number, spread_text


def class_tables(results: Results) -> list[Table]:
    """Times beside the eager head, whole steps, memory, and tiles that are left."""
    return [_times(results), _steps(results), _memory(results), _tiles(results)]


def _rows(results: Results, kind: str) -> list[dict[str, Any]]:
    return [row for row in results.rows if row["kind"] == kind]


def _beside(
    rows: list[dict[str, Any]], baseline: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row and the baseline's of the same case."""
    keys = ("rows", "classes", "dim", "regime")
    found = {tuple(row[key] for key in keys): row for row in rows if row["variant"] == baseline}
    return [(row, found[tuple(row[key] for key in keys)]) for row in rows]


def _times(results: Results) -> Table:
    table = Table(
        "class-cpu",
        "Loss with class labels on cpu, float32: median (20th-80th percentile) of the rounds; "
        "eager stores the logits",
        [
            *("N", "C", "D", "embeddings", "variant"),
            *("forward ms", "forward + backward ms", "speed-up over eager"),
        ],
        keys=5,
    )
    for row, eager in _beside(_rows(results, "time"), "eager"):
        keys = [str(row[key]) for key in ("rows", "classes", "dim", "regime", "variant")]
        times = [spread(row[key]) for key in ("forward", "forward_backward")]
        speedup = ratio(eager["forward_backward"], row["forward_backward"])
        cells = [MISSING if time is None else spread_text(time.scaled(1e3)) for time in times]
        table.rows.append([*keys, *cells, spread_text(speedup)])
    return table


def _steps(results: Results) -> Table:
    settings = results.settings
    table = Table(
        "class-cpu-steps",
        "Loss, backward and SGD on cpu; sampled: "
        f"sample_rate={settings['sample_rate']}, sparse_grad=True",
        ["N", "C", "D", "step", "ms", "/ dense"],
        keys=4,
    )
    for row, dense in _beside(_rows(results, "step"), "dense"):
        keys = [str(row[key]) for key in ("rows", "classes", "dim", "variant")]
        times = spread(row["forward_backward"])
        cost = ratio(row["forward_backward"], dense["forward_backward"])
        cells = [MISSING if times is None else spread_text(times.scaled(1e3)), spread_text(cost)]
        table.rows.append([*keys, *cells])
    return table


def _memory(results: Results) -> Table:
    table = Table(
        "class-cpu-memory",
        "Peak memory of forward and backward on cpu above weight, inputs and both gradients, in MB "
        "(10⁶ bytes); logits: one (N, C) matrix",
        ["N", "C", "D", "variant", "peak MB", "logits MB"],
        keys=4,
    )
    for row in _rows(results, "memory"):
        keys = [str(row[key]) for key in ("rows", "classes", "dim", "variant")]
        logits = row["rows"] * row["classes"] * 4
        table.rows.append([*keys, number(row["peak_bytes"] / 1e6), number(logits / 1e6)])
    return table


def _tiles(results: Results) -> Table:
    rows = _rows(results, "tiles")
    shapes = list(dict.fromkeys(row["tile"] for row in rows))
    table = Table(
        "class-tiles",
        "Share of tiles, rows by classes, that skip_below leaves of trained-like data",
        ["N", "C", "D", "gamma", "skip_below", *shapes],
        keys=5,
    )
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        key = tuple(row[key] for key in ("rows", "classes", "dim", "gamma", "skip_below"))
        found.setdefault(key, {})[row["tile"]] = row["share"]
    for (num_rows, classes, dim, gamma, threshold), shares in found.items():
        keys = [
            str(num_rows),
            str(classes),
            str(dim),
            f"{gamma:g}",
            f"2^{math.log2(threshold):.0f}",
        ]
        table.rows.append([*keys, *(f"{100 * shares[shape]:.1f}%" for shape in shapes)])
    return table
