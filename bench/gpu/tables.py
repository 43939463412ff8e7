"""The tables of ``python -m bench gpu``, and the page that they stand on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from bench.gpu.bounds import OURS, Figures, bounds, read_figures
from bench.gpu.device_tests import BAD_OUTCOMES, NOT_RUN
from bench.gpu.tasks import NO_TIME_LEFT
from bench.reporting.loss_tables import LossData, loss_tables, read_loss
from bench.reporting.results import Results
from bench.reporting.spread import ratio, spread
from bench.reporting.tables import MISSING, Table, environment, markdown_table, number, spread_text

_SMOKE_RESULTS = (
    "the loss",
    "lse_pos",
    "lse_neg",
    "the embeddings' gradient",
    "the references' gradient",
)
_OUTCOMES = ("passed", "failed", "error", "skipped", NOT_RUN)


def gpu_tables(results: Results) -> list[Table]:
    """All tables, the bounds first."""
    figures = read_figures(results)
    # What was not reached stands in the last table; elsewhere it would be most of what is to read.
    reached = [row for row in results.rows if row.get("status") != NO_TIME_LEFT]
    loss = dataclasses.replace(results, rows=reached)
    return [
        _bounds(figures),
        _smoke(results),
        _tests(results),
        _captured(figures),
        _launches(results),
        _limits(results),
        _rates(read_loss(loss)),
        *loss_tables(loss),
        _not_measured(results),
    ]


def summary(results: Results, more: Sequence[Table] = ()) -> str:
    """A page in Markdown: where the numbers come from, then every table."""
    spent = results.settings.get("seconds_spent", {})
    parts = ["# circle_kernels on a GPU", environment(results)]
    if spent:
        times = ", ".join(f"{name} {number(seconds)} s" for name, seconds in spent.items())
        parts.append(f"Time taken: {times}.")
    parts += [markdown_table(table) for table in [*gpu_tables(results), *more] if table.rows]
    return "\n\n".join(parts) + "\n"


def _bounds(figures: Figures) -> Table:
    return Table(
        "gpu-bounds",
        "Bounds: median (20th-80th percentile) of the rounds, in each of which all variants took "
        "their turn",
        ["figure", "case", "bound", "measured", ""],
        keys=2,
        # Other stages than the measurements have none.
        rows=[bound.cells(figures) for bound in bounds()] if figures.is_measured else [],
        notes=[
            "The product is the bare `torch.mm(x, x.T)` in the same dtype. Steps are timed with "
            "events; caches are not flushed between them. Memory is the peak of what PyTorch "
            "allocates in one step."
        ],
    )


def _smoke(results: Results) -> Table:
    table = Table(
        "gpu-smoke",
        "Paths of the kernels: largest errors beside float64, as a share of the largest entry",
        ["path", "N", "dtype", *_SMOKE_RESULTS, ""],
        keys=3,
    )
    launched: set[str] = set()
    rows = [row for row in results.rows if row["kind"] == "smoke"]
    for row in rows:
        errors = row.get("errors", {})
        launched |= set(row.get("launched", ()))
        # None where there are infinities.
        cells = [
            MISSING
            if name not in errors
            else "inf"
            if errors[name] is None
            else f"{errors[name]:.2g}"
            for name in _SMOKE_RESULTS
        ]
        table.rows.append([row["variant"], str(row["rows"]), row["dtype"], *cells, row["status"]])
    left = [name for name in results.settings.get("kernels", ()) if name not in launched]
    if rows and left:
        table.notes.append(f"Launched by none: {', '.join(left)}.")
    return table


def _launches(results: Results) -> Table:
    table = Table(
        "gpu-launches",
        "What a step launches, as the profiler sees it: how often, and microseconds on the device",
        ["N", "D", "embeddings", "dtype", "variant", "launch", "times", "µs"],
        keys=6,
    )
    for row in results.rows:
        if row["kind"] == "profile" and "launches" in row:
            case = [str(row[name]) for name in ("rows", "dim", "regime", "dtype", "variant")]
            for each in row["launches"]:
                cells = [each["name"], number(each["count"]), number(each["microseconds"])]
                table.rows.append([*case, *cells])
    return table


def _limits(results: Results) -> Table:
    table = Table(
        "gpu-limits",
        "Limits that plans go by: time with another value over time with the usual one, median "
        "(20th-80th percentile) of rounds in which both took their turn",
        ["limit", "usual", "N", "D", "dtype", "compared with", "value", "forward", "step"],
        keys=6,
    )
    rows = [row for row in results.rows if row["kind"] == "compare" and "forward" in row]
    case_of = itemgetter("limit", "usual", "rows", "dim", "dtype", "sides")
    units = {case_of(row): row for row in rows if row["value"] == row["usual"]}
    for row in rows:
        unit = units[case_of(row)]
        if unit is not row:
            ratios = [
                spread_text(ratio(row[name], unit[name]))
                for name in ("forward", "forward_backward")
            ]
            table.rows.append([*map(str, case_of(row)), str(row["value"]), *ratios])
    left = results.settings.get("not_compared")
    if rows and left:
        table.notes.append(f"No problem that is tried is planned otherwise by: {', '.join(left)}.")
    return table


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
