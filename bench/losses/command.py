"""``python -m bench losses``: losses of other papers beside pytorch-metric-learning's own.

A run that was cut goes on where it was, while code, versions and machine stay the same.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.losses.measure import MEMORY_LIMIT, gauge_case, time_case
from bench.losses.tables import losses_tables
from bench.losses.variants import LOSSES, LossCase
from bench.measuring.timing import Effort
from bench.reporting.errors import UserError
from bench.reporting.progress import progress_bar
from bench.reporting.publish import Presentation
from bench.reporting.results import (
    Destination,
    Results,
    destination,
    is_whole,
    load,
    same_source,
    save,
    start_results,
)

HELP = "losses of other papers beside pytorch-metric-learning's, on the CPU (about eight minutes)"

PRESENTATION = Presentation(losses_tables, shown=2)

# With cells of which the library takes seconds for a step, what keeps a run below eight minutes.
_EFFORT = Effort(seconds=1.2, min_rounds=3, max_rounds=30)
_QUICK_EFFORT = Effort(seconds=0.2, min_rounds=3, max_rounds=3)
_COMPILED = (1024, 128)  # N and D at which the library is compiled, too
_CLASSES = 1000
_TIMED = ("core", "drop-in", "pml")
_GAUGED = ("drop-in", "pml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing compiled")
    parser.add_argument(
        "--out",
        type=Path,
        help="results file (default bench/results/losses-cpu.json, if quick "
        "losses-cpu-partial.json)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure, write the results file after every case, and print."""
    quick = arguments.quick
    whole = is_whole(arguments, add_arguments)
    where = destination("losses-cpu.json", arguments.out, whole=whole)
    effort = _QUICK_EFFORT if quick else _EFFORT
    settings = {"effort": asdict(effort), "memory_limit_bytes": int(MEMORY_LIMIT)}
    results = start_results("losses", "cpu", settings)
    _take_up(results, where)
    known = {(row["kind"], _case_of(row)) for row in results.rows}
    parts = [("time", case) for case in timed_cases(quick)]
    parts += [("memory", case) for case in gauged_cases(quick)]
    with progress_bar(len(parts), "case") as progress:
        for kind, case in parts:
            progress.set_description(f"{kind}: {case}")
            if (kind, case) not in known:
                if kind == "time":
                    compiled = not quick and (case.rows, case.dim) == _COMPILED
                    names = (*_TIMED, "pml-compile") if compiled else _TIMED
                    results.rows += time_case(case, effort, names)
                else:
                    results.rows += gauge_case(case, _GAUGED)
                save(results, where.path)
            progress.update()
    path = where.finish()
    PRESENTATION.show(results)
    print(f"wrote {path}")


def _case_of(row: dict[str, Any]) -> LossCase:
    return LossCase(row["loss"], row["rows"], row["dim"], row["classes"])


def _take_up(results: Results, where: Destination) -> None:
    """Go on with the rows of a whole run that was cut."""
    if where.replaces is None or not where.path.exists():
        return
    try:
        before = load(where.path)
    except UserError:
        return
    if before.command == results.command and same_source(before, results):
        results.rows = before.rows


def timed_cases(quick: bool) -> list[LossCase]:
    """Every loss at every size, and what only some of them are asked for."""
    if quick:
        return [LossCase(name, 32, 16, _classes(name, quick)) for name in LOSSES]
    sizes = [(rows, dim) for rows in (256, 1024, 4096) for dim in (128, 512)]
    cases = [LossCase(name, *size, _classes(name, quick)) for name in LOSSES for size in sizes]
    # The library's NT-Xent fits into memory up to 512.
    few = [LossCase("NTXentLoss", rows, 128) for rows in (512, 2048)]
    return [*cases, *few, LossCase("ArcFaceLoss", 1024, 128, 100_000)]


def gauged_cases(quick: bool) -> list[LossCase]:
    """Of one dimension, which peaks grow with as inputs do."""
    if quick:
        return timed_cases(quick)[:1]
    return [case for case in timed_cases(quick) if case.dim == 128 and case.rows >= 1024]


def _classes(name: str, quick: bool) -> int:
    if not LOSSES[name].has_weights:
        return 0
    return 50 if quick else _CLASSES
