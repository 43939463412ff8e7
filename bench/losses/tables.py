"""The tables of ``python -m bench losses``, from its results file."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bench.reporting.results import Results
from bench.reporting.spread import ratio, spread
from bench.reporting.tables import MISSING, Table, number, spread_text

_SMALLEST_MB = 1.0
_SHOWN_DIM = 128
_PEERS = ("pml", "pml-compile")

Key = tuple[str, int, int, int]
Rows = dict[str, dict[str, Any]]  # by variant


def losses_tables(results: Results) -> list[Table]:
    """What is replaced by what, and how much faster; then all times, and memory."""
    return [_replaced(results), _times(results), _memory(results)]


def _cases(results: Results, kind: str) -> dict[Key, Rows]:
    """Rows of one kind by loss, N, D and C."""
    found: dict[Key, Rows] = {}
    for row in results.rows:
        if row["kind"] == kind:
            key = (row["loss"], row["rows"], row["dim"], row["classes"])
            found.setdefault(key, {})[row["variant"]] = row
    return found


def _replaced(results: Results) -> Table:
    timed, gauged = _cases(results, "time"), _cases(results, "memory")
    dims = {key[2] for key in timed}
    dim = _SHOWN_DIM if _SHOWN_DIM in dims else min(dims, default=0)
    shown = [key for key in timed if key[2] == dim]
    # What only one loss was asked for is in the long table.
    asked = Counter(key[1] for key in shown)
    sizes = sorted(size for size in asked if asked[size] > 1)
    table = Table(
        f"losses-{results.device}-replaced",
        "How many times faster than pytorch-metric-learning's class the drop-in of the same name "
        f"is, forward and backward on {results.device}, D={dim}, float32; and peak MB above inputs "
        "and gradients at the largest N where both were measured",
        ["import", "C", *(f"N={size}" for size in sizes), "MB, library", "MB, drop-in"],
        keys=2,
    )
    for name, classes in dict.fromkeys((key[0], key[3]) for key in shown):
        cells = []
        for size in sizes:
            rows = timed.get((name, size, dim, classes))
            cells.append(MISSING if rows is None else _times_faster(rows))
        peaks = [MISSING, MISSING]
        for size in sizes:
            rows = gauged.get((name, size, dim, classes), {})
            found = [_peak(rows.get(variant)) for variant in ("pml", "drop-in")]
            if all("peak_bytes" in rows.get(variant, {}) for variant in ("pml", "drop-in")):
                peaks = [f"{text} (N={size})" for text in found]
        table.rows.append([f"`{name}`", str(classes or MISSING), *cells, *peaks])
    table.notes = [
        "Where the library would need more memory than the benchmark gives it, that much stands "
        "in place of a ratio."
    ]
    return table


def _times_faster(rows: Rows) -> str:
    library = rows.get("pml", {})
    if library.get("status") != "ok":
        return str(library.get("status", MISSING)).removeprefix("skipped: ")
    if rows["drop-in"]["status"] != "ok":
        return str(rows["drop-in"]["status"])
    times = ratio(library["forward_backward"], rows["drop-in"]["forward_backward"])
    return MISSING if times is None else number(times.median)


def _times(results: Results) -> Table:
    table = Table(
        f"losses-{results.device}",
        f"Losses on {results.device}, float32: median (20th-80th percentile) of the rounds. core: "
        "this package's; drop-in: its classes in place of pytorch-metric-learning's; pml: that "
        "library's own; pml-compile: the same under torch.compile",
        [
            *("loss", "N", "D", "C", "variant"),
            *("forward ms", "forward + backward ms", *(f"speed-up over {name}" for name in _PEERS)),
        ],
        keys=5,
    )
    for (name, size, dim, classes), rows in _cases(results, "time").items():
        for variant, row in rows.items():
            if variant == "pml-compile" and row["status"].startswith("skipped: compiled"):
                continue
            keys = [name, str(size), str(dim), str(classes or MISSING), variant]
            if row["status"] != "ok":
                table.rows.append([*keys, row["status"], *[MISSING] * (1 + len(_PEERS))])
                continue
            whole = row["forward_backward"]
            times = [spread(row["forward"]), spread(whole)]
            cells = [MISSING if each is None else spread_text(each.scaled(1e3)) for each in times]
            peers = (rows.get(peer, {}).get("forward_backward") for peer in _PEERS)
            speedups = [
                MISSING if peer is None else spread_text(ratio(peer, whole)) for peer in peers
            ]
            table.rows.append([*keys, *cells, *speedups])
    return table


def _memory(results: Results) -> Table:
    table = Table(
        f"losses-{results.device}-memory",
        f"Peak memory of forward and backward on {results.device} above inputs, weights and all "
        "gradients, in MB (10⁶ bytes)",
        ["loss", "N", "D", "C", "drop-in", "pml"],
        keys=4,
    )
    for (name, size, dim, classes), rows in _cases(results, "memory").items():
        keys = [name, str(size), str(dim), str(classes or MISSING)]
        table.rows.append([*keys, *(_peak(rows.get(each)) for each in ("drop-in", "pml"))])
    return table


def _peak(row: dict[str, Any] | None) -> str:
    if row is None:
        return MISSING
    if "peak_bytes" not in row:
        return str(row["status"])
    peak = row["peak_bytes"] / 1e6
    return f"< {_SMALLEST_MB:g}" if peak < _SMALLEST_MB else number(peak)
