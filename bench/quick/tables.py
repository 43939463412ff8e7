"""The table of ``python -m bench quick``, from its results file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.losses.variants import LOSSES
from bench.reporting.results import Results
from bench.reporting.spread import Spread, ratio, spread
from bench.reporting.tables import MISSING, Table, number, spread_text

OURS, THEIRS = "core", "pml"
NAMES = {OURS: "circle_kernels", THEIRS: "pytorch-metric-learning"}
SMALLEST_MB = 1.0  # the gauge is no finer

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What was measured of one N, by variant."""

    case: Row
    times: dict[str, Row]
    peaks: dict[str, Row]

    def milliseconds(self, variant: str) -> Spread | None:
        """Of forward and backward."""
        found = spread(self.times.get(variant, {}).get("forward_backward", []))
        return None if found is None else found.scaled(1e3)

    def megabytes(self, variant: str) -> float | None:
        """Peak of forward and backward above inputs and gradients, 10^6 bytes."""
        row = self.peaks.get(variant, {})
        return row["peak_bytes"] / 1e6 if "peak_bytes" in row else None

    def expected_megabytes(self, variant: str) -> float | None:
        """What was too much to be measured."""
        row = self.peaks.get(variant, {})
        if not row.get("status", "").startswith("skipped: would need"):
            return None
        return LOSSES[row["loss"]].peak(row["rows"], row["classes"]) / 1e6


def read_sizes(results: Results) -> list[Size]:
    """By N, ascending."""
    found: dict[int, Size] = {}
    for row in results.rows:
        size = found.setdefault(row["rows"], Size(row, {}, {}))
        (size.times if row["kind"] == "time" else size.peaks)[row["variant"]] = row
    return [found[rows] for rows in sorted(found)]


def quick_tables(results: Results) -> list[Table]:
    """The one table."""
    sizes = read_sizes(results)
    table = Table(
        f"quick-{results.device}",
        f"{describe(results)}, forward and backward: median (20th-80th percentile) milliseconds, "
        "and peak MB (10⁶ bytes) above inputs and gradients",
        ["N", *(f"ms, {name}" for name in NAMES.values()), "times faster"]
        + [f"MB, {name}" for name in NAMES.values()],
        keys=1,
    )
    for size in sizes:
        samples = [size.times.get(name, {}).get("forward_backward", []) for name in (THEIRS, OURS)]
        table.rows.append(
            [
                str(size.case["rows"]),
                *(_milliseconds(size, name) for name in NAMES),
                spread_text(ratio(*samples)),
                *(_megabytes(size, name) for name in NAMES),
            ]
        )
    table.notes = [f"circle_kernels: {results.settings['backend']}"]
    return [table]


def describe(results: Results) -> str:
    """The loss and its input in words."""
    case = results.rows[0]
    of_classes = f", {case['classes']} classes" if case["classes"] else ""
    return f"{case['loss']} on {results.device}, D={case['dim']}, {case['dtype']}{of_classes}"


def megabytes_text(megabytes: float) -> str:
    """As it stands in the table and in the chart."""
    return number(megabytes) if megabytes >= SMALLEST_MB else f"< {SMALLEST_MB:g}"


def _milliseconds(size: Size, variant: str) -> str:
    found = size.milliseconds(variant)
    if found is not None:
        return spread_text(found)
    return str(size.times.get(variant, {}).get("status", MISSING))


def _megabytes(size: Size, variant: str) -> str:
    found = size.megabytes(variant)
    if found is None:
        return str(size.peaks.get(variant, {}).get("status", MISSING))
    return megabytes_text(found)
