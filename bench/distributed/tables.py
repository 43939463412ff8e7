"""The tables of ``python -m bench distributed``, from its results file."""

from __future__ import annotations

from typing import Any

from bench.distributed.methods import ALONE
from bench.reporting.results import Results
from bench.reporting.spread import ratio, spread
from bench.reporting.tables import MISSING, Table, number, spread_text

_KEYS = ("rows", "dim", "classes", "processes", "method")
_HEADINGS = ("N", "D", "C", "processes", "method")
# Resident pages are counted late; less than this is noise.
_SMALLEST_MB = 1.0


def shared_tables(results: Results) -> list[Table]:
    """Steps of groups of processes, then one process's share of a step."""
    return [_steps(results), _shares(results)]


def _steps(results: Results) -> Table:
    table = Table(
        "distributed-cpu",
        "A step of one batch shared by processes of one thread, forward and backward: median "
        "(20th-80th percentile) of the rounds, of each the slowest process; memory and bytes of "
        "one process, in MB (10⁶ bytes)",
        [
            *_HEADINGS,
            "compute ms",
            "/ one process",
            "processor ms",
            "wall ms",
            "sent MB",
            "peak MB",
        ],
        keys=len(_HEADINGS),
        notes=[
            "compute: processor time of the thread that computes, outside of collectives. "
            "processor: of the whole process, with what moves data. wall: where there are fewer "
            "cores than processes these take turns, and the figure means little. sent: counted "
            "from the collectives that were called, each at what a ring moves. peak: above the "
            "inputs, in fresh processes; the gradient counts."
        ],
    )
    peaks = {_key(row): row["peak_bytes"] for row in results.rows if row["kind"] == "memory"}
    for row, alone in _beside_alone(results, "time"):
        if row["method"] == ALONE and row["processes"] > 1:
            continue  # the unit of the rows beside it
        table.rows.append(
            [*_cells(row), *_times(row, alone, ("compute", "processor", "wall"))]
            + (
                [_sent(row), _peak(peaks.get(_key(row)))]
                if row["status"] == "ok"
                else [MISSING] * 2
            )
        )
    return table


def _shares(results: Results) -> Table:
    table = Table(
        "distributed-cpu-share",
        "What one process of several computes of a step, without communication: it receives at "
        "once what was recorded before; median (20th-80th percentile) of the rounds",
        [*_HEADINGS, "compute ms", "/ one process"],
        keys=len(_HEADINGS),
    )
    for row, alone in _beside_alone(results, "share"):
        if row["method"] != ALONE:
            table.rows.append([*_cells(row), *_times(row, alone, ("compute",))])
    return table


def _beside_alone(results: Results, kind: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row, and that of one process alone which was measured in the same rounds."""
    rows = [row for row in results.rows if row["kind"] == kind]
    alone = {_key(row)[:-1]: row for row in rows if row["method"] == ALONE}
    return [(row, alone.get(_key(row)[:-1], {})) for row in rows]


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in _KEYS)


def _cells(row: dict[str, Any]) -> list[str]:
    return [str(row[key]) if row[key] != 0 else MISSING for key in _KEYS]


def _times(row: dict[str, Any], alone: dict[str, Any], clocks: tuple[str, ...]) -> list[str]:
    """Milliseconds of the first clock, its ratio to one process alone, then the other clocks."""
    if row["status"] != "ok":
        return [row["status"], *[MISSING] * len(clocks)]
    first, *others = [spread(row[clock]) for clock in clocks]
    unit = alone.get(clocks[0], [])
    milliseconds = [
        MISSING if each is None else spread_text(each.scaled(1e3)) for each in (first, *others)
    ]
    return [milliseconds[0], spread_text(ratio(row[clocks[0]], unit)), *milliseconds[1:]]


def _sent(row: dict[str, Any]) -> str:
    return number(sum(row["sent_bytes"].values()) / 1e6)


def _peak(peak: int | None) -> str:
    if peak is None:
        return MISSING
    return "< 1" if peak / 1e6 < _SMALLEST_MB else number(peak / 1e6)
