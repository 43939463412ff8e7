"""The table of what ``python -m bench launches`` counted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from bench.launches.counts import PASSES
from bench.measuring.variants import DESCRIPTIONS
from bench.reporting.results import Results
from bench.reporting.tables import Table

_KEYS = ("rows", "dim", "dtype")
_NOTES = [
    "Launches: Triton kernels, and PyTorch's operators that compute or copy, each taken as one "
    "kernel. Some, such as logsumexp, launch several: counts of eager PyTorch and of "
    "pytorch-metric-learning are the least that there can be. "
    "Host calls: the same, and operators that only make views or take memory. A Triton kernel "
    "is one host call here, though one that costs the host more than an operator. "
    "Waits: how often the host has to know what the device computed, which no CUDA graph can "
    "hold.",
]


def launch_tables(results: Results) -> list[Table]:
    """One table; cases of a variant that have the same counts share their rows."""
    profiled = any(row[step]["profiled"] is not None for row in results.rows for step in PASSES)
    table = Table(
        name="launches",
        title="What one call of the loss, and one of its gradient, ask of host and device",
        columns=["variant", "N", "D", "dtype", "pass", "launches", "host calls", "waits"],
        keys=5,
        notes=list(_NOTES),
    )
    for name, reason in results.settings["left_out"].items():
        table.notes.append(f"Not counted: {name} ({reason}).")
    if profiled:
        table.columns.append("kernels profiled")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in results.rows:
        counts = [_figures(row[step], profiled) for step in PASSES]
        both = tuple(map(sum, zip(*counts, strict=True)))
        groups.setdefault((row["variant"], *counts, both), []).append(row)
    for (variant, *counts), rows in groups.items():
        for keys in _merged(rows):
            for step, figures in zip((*PASSES, "both"), counts, strict=True):
                table.rows.append([DESCRIPTIONS[variant], *keys, step, *map(str, figures)])
    return [table]


def _figures(counts: dict[str, Any], profiled: bool) -> tuple[int, ...]:
    host_calls = counts["operators"] + counts["kernels"]
    figures = (counts["launches"], host_calls, counts["waits"])
    return (*figures, counts["profiled"]) if profiled else figures


def _merged(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """N, D and dtype as cells: once if every combination of them is there, else for each row."""
    values = [list(dict.fromkeys(row[key] for row in rows)) for key in _KEYS]
    if len(rows) == len(list(itertools.product(*values))):
        yield [", ".join(map(str, of_key)) for of_key in values]
    else:
        yield from ([str(row[key]) for key in _KEYS] for row in rows)


def environment(results: Results) -> str:
    """One sentence that says where the numbers come from."""
    named = ("torch", "triton", "pytorch-metric-learning")
    software = ", ".join(f"{name} {results.versions[name]}" for name in named)
    where = results.machine["gpu"] or "a machine without a GPU"
    return (
        f"Counted {results.created[:10]} on {where} with {software}, from the operators that run: "
        f"of the Triton kernels on a pretended {results.settings['target']}, of the others on the "
        "CPU, where they are the same. Nothing is timed."
    )
