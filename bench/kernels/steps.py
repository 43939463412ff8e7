"""What the model says of whole steps, as rows for a results file, and as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from typing import Any

from bench.kernels.model import (
    Assumptions,
    Launch,
    Step,
    launch_cost,
    launch_microseconds,
    product_microseconds,
    step_microseconds,
)
from bench.reporting.results import Results
from bench.reporting.tables import Table, number

COMMAND = "steps"  # that results of this kind are stored under

# What else might be assumed, to tell what a result hangs on.
_ALTERNATIVES = (
    ("bytes_per_cycle", 25),
    ("bytes_per_cycle", 64),
    ("overlap", 0.5),
    ("overlap", 1),
    ("latency", 500),
    ("product_efficiency", 0.75),
    ("memory_gigabytes", 2000),
    ("launch_microseconds", 0),
    ("launch_microseconds", 3),
)
# Of a line, in cycles of all of its launches.
_CYCLES = ("matrix", "issue", "loads", "others", "memory", "cycles")
_COLUMNS = [
    "launch",
    "launches",
    "programs",
    "waves",
    "filled",
    "matrix",
    "issue",
    "L2: operands",
    "L2: others",
    "memory",
    "together",
    "us",
    "mm",
]


def step_rows(key: str, step: Step, assumptions: Assumptions) -> list[dict[str, Any]]:
    """One row for all launches of a kernel with as many programs, in the order of the first."""
    lines: dict[tuple[str, int], list[Launch]] = {}
    for launch in step.launches:
        lines.setdefault((launch.name, launch.number_of_programs), []).append(launch)
    return [
        {"step": key, "launch": name, "programs": programs, **_figures(line, step, assumptions)}
        for (name, programs), line in lines.items()
    ]


def _figures(line: Iterable[Launch], step: Step, assumptions: Assumptions) -> dict[str, float]:
    figures = dict.fromkeys(("launches", "waves", "filled", *_CYCLES, "microseconds"), 0.0)
    for launch in line:
        cost = launch_cost(launch, step.multiprocessors, assumptions)
        figures["launches"] += launch.times
        figures["waves"] += launch.times * cost.waves
        figures["filled"] += launch.times * cost.filled
        for name in _CYCLES:
            figures[name] += launch.times * getattr(cost, name)
        figures["microseconds"] += launch_microseconds(launch, cost, assumptions)
    for mean in ("waves", "filled"):
        figures[mean] /= figures["launches"]
    return {name: round(value, 3) for name, value in figures.items()}


def step_settings(
    steps: dict[str, Step], assumptions: Assumptions, target: str, dtype: str
) -> dict[str, Any]:
    """What the rows of a results file go with."""
    return {
        "target": target,
        "dtype": dtype,
        "assumptions": asdict(assumptions),
        "steps": {
            key: {
                "name": step.name,
                "multiprocessors": step.multiprocessors,
                "product_cycles": step.product_cycles,
                "product_microseconds": product_microseconds(step, assumptions),
            }
            for key, step in steps.items()
        },
        "alternatives": [
            {
                "assumption": name,
                "value": value,
                **{
                    key: step_microseconds(step, other) / product_microseconds(step, other)
                    for key, step in steps.items()
                },
            }
            for name, value in _ALTERNATIVES
            for other in [replace(assumptions, **{name: value})]
        ],
    }


def step_totals(results: Results) -> dict[str, float]:
    """Of each step by its key: its modelled time in units of mm."""
    return {
        key: sum(row["microseconds"] for row in results.rows if row["step"] == key)
        / step["product_microseconds"]
        for key, step in results.settings["steps"].items()
    }


def step_tables(results: Results) -> list[Table]:
    """One table per step: a line per launch, and all of them together."""
    settings = results.settings
    tables = []
    for key, step in settings["steps"].items():
        table = Table(
            name=f"steps-{key}",
            title=f"A step of {step['name']} in {settings['dtype']} on {settings['target']} with "
            f"{step['multiprocessors']} multiprocessors, modelled; figures from *matrix* to "
            f"*together*, and the last, in units of mm ({number(step['product_microseconds'])} us)",
            columns=_COLUMNS,
            keys=1,
        )
        rows = [row for row in results.rows if row["step"] == key]
        for row in rows:
            table.rows.append(
                [
                    row["launch"],
                    str(round(row["launches"])),
                    str(row["programs"]),
                    f"{row['waves']:.2f}",
                    f"{row['filled']:.2f}",
                    *_summed([row], step),
                ]
            )
        launches = str(round(sum(row["launches"] for row in rows)))
        table.rows.append(["all", launches, "", "", "", *_summed(rows, step)])
        tables.append(table)
    return [*tables, _alternatives_table(results)]


def _alternatives_table(results: Results) -> Table:
    steps = results.settings["steps"]
    totals = step_totals(results)
    table = Table(
        name="steps-alternatives",
        title="The same steps with one of the assumptions changed, in units of mm",
        columns=["assumption", *(step["name"] for step in steps.values())],
        keys=1,
    )
    table.rows.append(["none changed", *(f"{totals[key]:.2f}" for key in steps)])
    for row in results.settings["alternatives"]:
        option = f"--{row['assumption'].replace('_', '-')} {row['value']:g}"
        table.rows.append([option, *(f"{row[key]:.2f}" for key in steps)])
    return table


def _summed(rows: list[dict[str, Any]], step: dict[str, Any]) -> list[str]:
    cycles = [sum(row[name] for row in rows) / step["product_cycles"] for name in _CYCLES]
    microseconds = sum(row["microseconds"] for row in rows)
    units = microseconds / step["product_microseconds"]
    return [
        *(f"{value:.3f}" for value in cycles),
        number(microseconds),
        f"{units:.3f}",
    ]


def step_environment(results: Results) -> str:
    """Where the numbers come from, and what was assumed."""
    meanings = {each.name: each.metadata["meaning"] for each in fields(Assumptions)}
    assumed = "; ".join(
        f"`--{name.replace('_', '-')} {value:g}`: {meanings[name]}"
        for name, value in results.settings["assumptions"].items()
    )
    return (
        f"Planned {results.created[:10]} with Triton {results.versions['triton']} and no GPU. "
        f"Assumed: {assumed}."
    )
