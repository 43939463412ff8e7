"""The tables of ``python -m bench gpu``: bounds, tests, captured steps, rates, what is missing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from bench.gpu.bounds import OURS, Figures, bounds, read_figures
from bench.gpu.device_tests import BAD_OUTCOMES, NOT_RUN
from bench.gpu.tasks import NO_TIME_LEFT
from bench.reporting.loss_tables import LossData, loss_tables, read_loss
from bench.reporting.results import Results
from bench.reporting.spread import spread
from bench.reporting.tables import MISSING, Table, environment, markdown_table, number, spread_text

_OUTCOMES = ("passed", "failed", "error", "skipped", NOT_RUN)


def gpu_tables(results: Results) -> list[Table]:
    """All tables, the bounds first."""
    figures = read_figures(results)
    # What was not reached stands in the last table; elsewhere it would be most of what is to read.
    reached = [row for row in results.rows if row.get("status") != NO_TIME_LEFT]
    loss = dataclasses.replace(results, rows=reached)
    return [
        _bounds(figures),
        _tests(results),
        _captured(figures),
        _rates(read_loss(loss)),
        *loss_tables(loss),
        _not_measured(results),
    ]


def summary(results: Results) -> str:
    """A page in Markdown: where the numbers come from, then every table."""
    spent = results.settings.get("seconds_spent", {})
    parts = ["# circle_kernels on a GPU", environment(results)]
    if spent:
        times = ", ".join(f"{name} {number(seconds)} s" for name, seconds in spent.items())
        parts.append(f"Time taken: {times}.")
    parts += [markdown_table(table) for table in gpu_tables(results) if table.rows]
    return "\n\n".join(parts) + "\n"


def _bounds(figures: Figures) -> Table:
    return Table(
        "gpu-bounds",
        "Bounds: median (20th-80th percentile) of the rounds, in each of which all variants took "
        "their turn",
        ["figure", "case", "bound", "measured", ""],
        keys=2,
        rows=[bound.cells(figures) for bound in bounds()],
        notes=[
            "The product is the bare `torch.mm(x, x.T)` in the same dtype. Steps are timed with "
            "events; caches are not flushed between them. Memory is the peak of what PyTorch "
            "allocates in one step."
        ],
    )


def _tests(results: Results) -> Table:
    rows = [row for row in results.rows if row["kind"] == "test"]
    counts = Counter(row["outcome"] for row in rows)
    table = Table("gpu-tests", "Tests on the device", ["outcome", "tests"], keys=1)
    if rows:
        table.rows = [[name, str(counts[name])] for name in _OUTCOMES]
    for row in rows:
        if row["outcome"] in BAD_OUTCOMES:
            table.notes.append(f"{row['outcome']}: `{row['test']}`: {_one_line(row)}")
    for outcome in ("skipped", NOT_RUN):
        reasons = Counter(_one_line(row) for row in rows if row["outcome"] == outcome)
        table.notes += [f"{outcome}: {count}: {reason}" for reason, count in reasons.items()]
    return table


def _one_line(row: dict[str, Any]) -> str:
    return " ".join(row.get("message", "").split())


def _captured(figures: Figures) -> Table:
    names = list(dict.fromkeys(name for rows in figures.graphs.values() for name in rows))
    table = Table(
        "gpu-graphs",
        "A step (for `mm` its forward) replayed from a CUDA graph: median milliseconds "
        "(20th-80th percentile); the last column is ours over eager",
        ["N", "D", "embeddings", "dtype", *names, f"{OURS} / eager"],
        keys=4,
    )
    for (rows, dim, regime, dtype), variants in figures.graphs.items():
        cells = []
        for name in names:
            row = variants.get(name, {})
            samples = row.get("forward_backward") or row.get("forward", [])
            found = spread(samples)
            text = row.get("status", MISSING) if found is None else spread_text(found.scaled(1e3))
            cells.append(text)
        compared = spread_text(figures.captured_ratio((rows, dim, regime, dtype)))
        table.rows.append([str(rows), str(dim), regime, dtype, *cells, compared])
    return table


def _rates(data: LossData) -> Table:
    table = Table(
        "gpu-rates",
        "Forward pass in TFLOP/s of the product alone: 2 N² D / time, whatever else a variant "
        "computes and however much of the product it leaves out",
        ["N", "D", "embeddings", "dtype", *data.variants],
        keys=4,
    )
    for (rows, dim, regime, dtype), entries in data.timed.items():
        rates = {
            entry.variant: number(2 * rows**2 * dim / entry.forward.median / 1e12)
            for entry in entries
            if entry.forward is not None
        }
        if rates:
            cells = [rates.get(name, MISSING) for name in data.variants]
            table.rows.append([str(rows), str(dim), regime, dtype, *cells])
    return table


def _not_measured(results: Results) -> Table:
    table = Table(
        "gpu-missing",
        "Not measured, and why",
        ["what", "N", "D", "embeddings", "dtype", "reason", "variants"],
        keys=6,
    )
    missing: dict[tuple[str, ...], list[str]] = {}
    for row in results.rows:
        if row.get("status", "ok") != "ok":
            case = (str(row[name]) for name in ("kind", "rows", "dim", "regime", "dtype", "status"))
            missing.setdefault(tuple(case), []).append(row["variant"])
    table.rows = [[*case, ", ".join(names)] for case, names in missing.items()]
    return table
