"""The tables of ``python -m bench loss``, from its results file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.reporting.results import Results
from bench.reporting.spread import Spread, ratio, spread
from bench.reporting.tables import MISSING, Table, number, spread_text

UNIT = "mm"
BASELINES = ("eager", "compile", "pml")
SMALL_UNITS = ("core", "compile")
# The kernel counts resident pages per core and adds up late; less than this is noise.
SMALLEST_MB = 1.0

_MEASURES = (
    "forward ms",
    f"/ {UNIT}",
    "forward + backward ms",
    f"/ {UNIT}",
    *(f"speed-up over {baseline}" for baseline in BASELINES),
    "peak MB",
)

Key = tuple[int, int, str, str]


@dataclass(frozen=True)
class Entry:
    """What is known of one variant on one case; times in seconds, ratios to ``mm``'s forward.

    ``speedups`` has one entry for each of ``BASELINES``.
    """

    variant: str
    status: str
    forward: Spread | None
    forward_ratio: Spread | None
    whole: Spread | None
    whole_ratio: Spread | None
    speedups: list[Spread | None]


@dataclass(frozen=True)
class LossData:
    """A results file of the loss, by case.

    Args:
        timed: per (N, D, regime, dtype) the entries, in the order of measurement.
        gauged: per (N, D, dtype, variant) the row with its peak memory.
        variants: those that were measured somewhere.
        never: for the others, why.
    """

    timed: dict[Key, list[Entry]]
    gauged: dict[tuple[int, int, str, str], dict[str, Any]]
    variants: list[str]
    never: dict[str, str]

    def peak_mb(self, rows: int, dim: int, dtype: str, variant: str) -> float | None:
        """Peak memory above the inputs in MB (10^6 bytes)."""
        row = self.gauged.get((rows, dim, dtype, variant), {})
        return row["peak_bytes"] / 1e6 if "peak_bytes" in row else None

    def memory_only(self) -> Iterator[tuple[int, int, str]]:
        """Sizes of which only memory was measured: (N, D, dtype)."""
        timed = {(rows, dim, dtype) for rows, dim, _, dtype in self.timed}
        sizes = dict.fromkeys((rows, dim, dtype) for rows, dim, dtype, _ in self.gauged)
        return (size for size in sizes if size not in timed)


def read_loss(results: Results) -> LossData:
    """Group the rows by case and turn samples into medians, spreads and ratios."""
    cases: dict[Key, dict[str, dict[str, Any]]] = {}
    gauged = {}
    status: dict[str, list[str]] = {}
    for row in results.rows:
        if row["kind"] not in ("time", "memory"):
            continue
        status.setdefault(row["variant"], []).append(row["status"])
        if row["kind"] == "memory":
            gauged[row["rows"], row["dim"], row["dtype"], row["variant"]] = row
        else:
            key = (row["rows"], row["dim"], row["regime"], row["dtype"])
            cases.setdefault(key, {})[row["variant"]] = row
    never = {
        name: reasons[0]
        for name, reasons in status.items()
        if "ok" not in reasons and len(set(reasons)) == 1
    }
    return LossData(
        timed={key: list(_entries(rows, never)) for key, rows in cases.items()},
        gauged=gauged,
        variants=[name for name in status if name not in never],
        never=never,
    )


def _entries(rows: dict[str, dict[str, Any]], never: dict[str, str]) -> Iterator[Entry]:
    unit = rows.get(UNIT, {}).get("forward", [])
    baselines = [rows.get(name, {}).get("forward_backward", []) for name in BASELINES]
    for name, row in rows.items():
        if name in never:
            continue
        forward, whole = row.get("forward", []), row.get("forward_backward", [])
        yield Entry(
            name,
            row["status"],
            forward=spread(forward),
            forward_ratio=ratio(forward, unit),
            whole=spread(whole),
            whole_ratio=ratio(whole, unit),
            speedups=[
                ratio(baseline, whole) if baseline and whole else None for baseline in baselines
            ],
        )


def loss_tables(results: Results) -> list[Table]:
    """The full table, that of small steps, then the two short ones."""
    data = read_loss(results)
    device = results.device
    return [_full(data, device), _small(results), _times(data, device), _memory(data, device)]


def _full(data: LossData, device: str) -> Table:
    table = Table(
        f"loss-{device}",
        f"Circle loss on {device}: median (20th-80th percentile) of the rounds; "
        f"/ {UNIT} is the ratio to the forward of the bare product in the same round",
        ["N", "D", "embeddings", "dtype", "variant", *_MEASURES],
        keys=5,
        notes=_notes(data),
    )
    for (rows, dim, regime, dtype), entries in data.timed.items():
        for entry in entries:
            keys = [str(rows), str(dim), regime, dtype, entry.variant]
            peak = _peak(data, rows, dim, dtype, entry.variant)
            if entry.status != "ok":
                table.rows.append([*keys, entry.status, *[MISSING] * (len(_MEASURES) - 1)])
                continue
            times = [_milliseconds(entry.forward), spread_text(entry.forward_ratio)]
            times += [_milliseconds(entry.whole), spread_text(entry.whole_ratio)]
            speedups = [spread_text(speedup) for speedup in entry.speedups]
            table.rows.append([*keys, *times, *speedups, peak])
    for rows, dim, dtype in data.memory_only():
        for name in data.variants:
            row = data.gauged.get((rows, dim, dtype, name))
            if row is not None:
                keys = [str(rows), str(dim), row["regime"], dtype, name]
                reason = "memory only" if row["status"] == "ok" else row["status"]
                peak = _peak(data, rows, dim, dtype, name)
                table.rows.append([*keys, reason, *[MISSING] * (len(_MEASURES) - 2), peak])
    return table


def _small(results: Results) -> Table:
    table = Table(
        f"loss-{results.device}-small",
        f"Small steps on {results.device}: median (20th-80th percentile) of the rounds; forward "
        "and backward over that of the loss alone, and over that of the compiled naive loss",
        ["N", "D", "embeddings", "dtype", "variant", "forward ms", "forward + backward ms"],
        keys=5,
    )
    table.columns += [f"/ {name}" for name in SMALL_UNITS]
    cases: dict[Key, dict[str, dict[str, Any]]] = {}
    for row in results.rows:
        if row["kind"] == "small":
            key = (row["rows"], row["dim"], row["regime"], row["dtype"])
            cases.setdefault(key, {})[row["variant"]] = row
    for key, variants in cases.items():
        for name, row in variants.items():
            keys = [*map(str, key), name]
            if row["status"] != "ok":
                table.rows.append([*keys, row["status"], *[MISSING] * (1 + len(SMALL_UNITS))])
                continue
            whole = row["forward_backward"]
            units = (variants.get(unit, {}).get("forward_backward", []) for unit in SMALL_UNITS)
            table.rows.append(
                [
                    *keys,
                    _milliseconds(spread(row["forward"])),
                    _milliseconds(spread(whole)),
                    *(spread_text(ratio(whole, unit)) for unit in units),
                ]
            )
    return table


def _times(data: LossData, device: str) -> Table:
    table = Table(
        f"loss-{device}-times",
        f"Forward and backward on {device}: median milliseconds [ratio to the forward of `{UNIT}` "
        f"(20th-80th percentile)]; `{UNIT}` itself: its forward",
        ["N", "D", "embeddings", "dtype", *data.variants],
        keys=4,
        notes=_notes(data),
    )
    for (rows, dim, regime, dtype), entries in data.timed.items():
        cells = {entry.variant: _time_cell(entry) for entry in entries}
        table.rows.append(
            [str(rows), str(dim), regime, dtype]
            + [cells.get(name, MISSING) for name in data.variants]
        )
    return table


def _memory(data: LossData, device: str) -> Table:
    table = Table(
        f"loss-{device}-memory",
        f"Peak memory of forward and backward on {device} above the inputs, in MB (10⁶ bytes)",
        ["N", "D", "dtype", *data.variants],
        keys=3,
        notes=_notes(data),
    )
    for rows, dim, dtype in dict.fromkeys(key[:3] for key in data.gauged):
        table.rows.append(
            [str(rows), str(dim), dtype]
            + [_peak(data, rows, dim, dtype, name) for name in data.variants]
        )
    return table


def _notes(data: LossData) -> list[str]:
    return [f"Not measured: {name} ({reason})." for name, reason in data.never.items()]


def _time_cell(entry: Entry) -> str:
    if entry.status != "ok":
        return entry.status
    if entry.whole is None:
        return MISSING if entry.forward is None else number(entry.forward.median * 1e3)
    return f"{number(entry.whole.median * 1e3)} [{spread_text(entry.whole_ratio)}]"


def _milliseconds(seconds: Spread | None) -> str:
    return MISSING if seconds is None else spread_text(seconds.scaled(1e3))


def _peak(data: LossData, rows: int, dim: int, dtype: str, variant: str) -> str:
    peak = data.peak_mb(rows, dim, dtype, variant)
    if peak is not None:
        return "< 1" if peak < SMALLEST_MB else number(peak)
    row = data.gauged.get((rows, dim, dtype, variant))
    return MISSING if row is None else row["status"]
