"""``python -m bench evaluate``: retrieval metrics beside what people compute them with.

As a program (``python -m bench.evaluate.command WAY CASE``, as JSON) it gauges one way's memory.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.evaluate.tables import evaluate_tables
from bench.evaluate.ways import METRICS, WAYS, EvaluateCase, EvaluateWork, drawn
from bench.measuring import memory
from bench.measuring.errors import first_line
from bench.measuring.sweep import rounded
from bench.measuring.timing import CpuClock, Effort, time_interleaved, warm_up
from bench.reporting.progress import progress_bar
from bench.reporting.publish import Presentation
from bench.reporting.results import destination, is_whole, save, start_results

HELP = "retrieval metrics beside faiss-cpu, pytorch-metric-learning and others (ten minutes)"

PRESENTATION = Presentation(evaluate_tables, shown=2)

_EFFORT = Effort(seconds=4.0, min_rounds=3, max_rounds=20)
_QUICK_EFFORT = Effort(seconds=0.2, min_rounds=3, max_rounds=3)
_MEMORY_LIMIT = 5e9
_SIZES = (4000, 10_000, 30_000, 60_000)
_DIM = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--quick", action="store_true", help="a few hundred embeddings")
    parser.add_argument(
        "--out",
        type=Path,
        help="results file (default bench/results/evaluate-cpu.json, if quick "
        "evaluate-cpu-partial.json)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure, write the results file after every case, and print."""
    quick = arguments.quick
    where = destination(
        "evaluate-cpu.json", arguments.out, whole=is_whole(arguments, add_arguments)
    )
    effort = _QUICK_EFFORT if quick else _EFFORT
    settings = {"effort": asdict(effort), "memory_limit_bytes": int(_MEMORY_LIMIT)}
    results = start_results("evaluate", "cpu", settings)
    with progress_bar(2 * len(cases(quick)), "case") as progress:
        for case in cases(quick):
            for measure in (_times, _peaks):
                progress.set_description(f"{measure.__name__[1:]}: {case}")
                results.rows += [{**case.as_dict(), **row} for row in measure(case, effort)]
                save(results, where.path)
                progress.update()
    path = where.finish()
    PRESENTATION.show(results)
    print(f"wrote {path}")


def cases(quick: bool) -> list[EvaluateCase]:
    """What is evaluated."""
    if quick:
        return [EvaluateCase("clusters", 300, 16)]
    return [EvaluateCase("names", rows, _DIM) for rows in _SIZES]


def _unusable(case: EvaluateCase) -> tuple[dict[str, str | None], tuple[Any, Any]]:
    given = drawn(case)
    largest = int(given[1].bincount().max())
    return {
        name: way.unusable(case.rows, largest, _MEMORY_LIMIT) for name, way in WAYS.items()
    }, given


def _times(case: EvaluateCase, effort: Effort) -> Iterator[dict[str, Any]]:
    clock = CpuClock()
    status, given = _unusable(case)
    works, seconds, metrics = {}, {}, {}
    for name, reason in status.items():
        if reason is None:
            work = EvaluateWork(WAYS[name], *given)
            try:
                metrics[name] = dict(zip(METRICS, work.forward().tolist(), strict=True))
                seconds[name] = warm_up(work, clock)
                works[name] = work
            # A peer that fails is a result, whatever its exception.
            except Exception as error:
                status[name] = f"failed: {first_line(error)}"
    samples = time_interleaved(works, seconds, effort, clock)
    for name, state in status.items():
        row = rounded(asdict(samples[name])) if name in samples else {}
        found = {
            each: None if math.isnan(value) else round(value, 6)
            for each, value in metrics.get(name, {}).items()
        }
        yield {"kind": "time", "way": name, "status": state or "ok", **row, "metrics": found}


def _peaks(case: EvaluateCase, effort: Effort) -> Iterator[dict[str, Any]]:
    for name, state in _unusable(case)[0].items():
        row: dict[str, Any] = {"kind": "memory", "way": name}
        if state is None:
            try:
                arguments = (name, json.dumps(case.as_dict()))
                peak = memory.peak_of_child("bench.evaluate.command", *arguments)
                row |= {"peak_bytes": peak.bytes, "method": peak.method}
            except RuntimeError as error:
                state = f"failed: {error}"
        yield {**row, "status": state or "ok"}


def main(arguments: list[str]) -> None:
    """Gauge one way in this process and print the peak above its inputs as one line of JSON."""
    name, text = arguments
    case = EvaluateCase(**json.loads(text))
    # Libraries and threads start.
    EvaluateWork(WAYS[name], *drawn(replace(case, data="clusters", rows=200))).forward()
    work = EvaluateWork(WAYS[name], *drawn(case))
    peak = memory.peak_above_baseline(work.forward)
    print(json.dumps({"bytes": peak.bytes, "method": peak.method}))


if __name__ == "__main__":
    main(sys.argv[1:])
