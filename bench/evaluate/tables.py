"""The tables of ``python -m bench evaluate``, from its results file."""

from __future__ import annotations

from typing import Any

from bench.evaluate.ways import METRICS, WAYS
from bench.reporting.results import Results
from bench.reporting.spread import ratio, spread
from bench.reporting.tables import MISSING, Table, number, spread_text

_OURS = "ours"


def evaluate_tables(results: Results) -> list[Table]:
    """How long each way takes and how much memory; then what each finds."""
    return [_costs(results), _found(results)]


def _cases(results: Results, kind: str) -> dict[tuple[str, int, int], dict[str, dict[str, Any]]]:
    """Rows of one kind by data, N and D, and there by way."""
    found: dict[tuple[str, int, int], dict[str, dict[str, Any]]] = {}
    for row in results.rows:
        if row["kind"] == kind:
            found.setdefault((row["data"], row["rows"], row["dim"]), {})[row["way"]] = row
    return found


def _costs(results: Results) -> Table:
    table = Table(
        f"evaluate-{results.device}",
        f"Recall@1, R-precision and MAP@R of N embeddings among each other on {results.device}: "
        "median (20th-80th percentile) of the rounds, and peak MB (10⁶ bytes) above the embeddings",
        ["N", "D", "way", "seconds", "times ours", "MB"],
        keys=3,
    )
    gauged = _cases(results, "memory")
    for key, ways in _cases(results, "time").items():
        ours = ways[_OURS].get("forward")
        for name, row in ways.items():
            keys = [str(key[1]), str(key[2]), WAYS[name].what]
            if row["status"] != "ok":
                table.rows.append([*keys, row["status"], MISSING, MISSING])
                continue
            seconds = spread(row["forward"])
            times = None if ours is None else ratio(row["forward"], ours)
            peak = gauged.get(key, {}).get(name, {}).get("peak_bytes")
            table.rows.append(
                [
                    *keys,
                    MISSING if seconds is None else spread_text(seconds),
                    MISSING if times is None else spread_text(times),
                    MISSING if peak is None else number(peak / 1e6),
                ]
            )
    return table


def _found(results: Results) -> Table:
    table = Table(
        f"evaluate-{results.device}-found",
        "What each way found: where similarities tie, sorting decides by chance",
        ["N", "D", "way", *METRICS],
        keys=3,
    )
    for key, ways in _cases(results, "time").items():
        for name, row in ways.items():
            if row["status"] == "ok":
                found = [row["metrics"][metric] for metric in METRICS]
                values = [MISSING if value is None else f"{value:.6f}" for value in found]
                table.rows.append([str(key[1]), str(key[2]), WAYS[name].what, *values])
    return table
