"""``python -m bench class``: the loss with class labels beside the eager head, dense and sampled.

As a program (``python -m bench.classes.command HEAD CASE``, as JSON) it gauges one head's memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.classes.heads import GAMMA, HEADS, SAMPLE_RATE, SKIP_BELOW, STEPS, HeadCase, HeadWork, M
from bench.classes.tables import class_tables
from bench.classes.tiles import surviving_shares
from bench.measuring import memory
from bench.measuring.timing import CpuClock, Effort, time_interleaved, warm_up
from bench.reporting.progress import progress_bar
from bench.reporting.publish import Presentation
from bench.reporting.results import destination, is_whole, save, start_results
from bench.reporting.tables import print_table

HELP = "the loss with class labels beside the eager head, on the CPU (about five minutes)"

PRESENTATION = Presentation(class_tables)

_EFFORT = Effort(seconds=10, min_rounds=7, max_rounds=15)
_QUICK_EFFORT = Effort(seconds=0.5, min_rounds=3, max_rounds=5)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--quick", action="store_true", help="a thousandth of the classes")
    parser.add_argument(
        "--out",
        type=Path,
        help="results file (default bench/results/class-cpu.json, if quick class-cpu-partial.json)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure, write the results file after every part, and print."""
    quick = arguments.quick
    whole = is_whole(arguments, add_arguments)
    where = destination("class-cpu.json", arguments.out, whole=whole)
    effort = _QUICK_EFFORT if quick else _EFFORT
    settings = {"m": M, "gamma": GAMMA, "skip_below": SKIP_BELOW, "sample_rate": SAMPLE_RATE}
    results = start_results("class", "cpu", {**settings, "effort": asdict(effort)})
    parts = [
        *(("time", case) for case in timed_cases(quick)),
        ("step", step_case(quick)),
        ("memory", step_case(quick)),
        *(("tiles", case) for case in tile_cases(quick)),
    ]
    with progress_bar(len(parts), "part") as progress:
        for kind, case in parts:
            progress.set_description(f"{kind}: {case}")
            for row in _measure(kind, case, effort):
                results.rows.append({"kind": kind, **case.as_dict(), **row})
            save(results, where.path)
            progress.update()
    path = where.finish()
    for table in PRESENTATION.tables(results):
        print_table(table)
    print(f"wrote {path}")


def timed_cases(quick: bool) -> list[HeadCase]:
    """Beside the eager head, whose matrices have to fit into memory."""
    if quick:
        return [HeadCase(64, 300, 32, regime) for regime in ("random", "trained")]
    sizes = [(512, 10_000, 128), (512, 100_000, 128), (512, 10_000, 512)]
    return [HeadCase(*size, regime) for size in sizes for regime in ("random", "trained")]


def step_case(quick: bool) -> HeadCase:
    """Whole steps, and memory."""
    return HeadCase(64, 1000, 32) if quick else HeadCase(512, 1_000_000, 128)


def tile_cases(quick: bool) -> list[HeadCase]:
    """Embeddings and weights as a trained network has them."""
    if quick:
        return [HeadCase(64, 300, 32, "trained")]
    return [HeadCase(512, 100_000, dim, "trained") for dim in (128, 512)]


def _measure(kind: str, case: HeadCase, effort: Effort) -> Iterator[dict[str, Any]]:
    if kind == "time":
        yield from _times(case, HEADS, effort, updates=False)
    elif kind == "step":
        yield from _times(case, STEPS, effort, updates=True)
    elif kind == "memory":
        peak = memory.peak_of_child("bench.classes.command", "cpu", json.dumps(case.as_dict()))
        yield {"variant": "cpu", "peak_bytes": peak.bytes, "method": peak.method}
    else:
        yield from surviving_shares(case)


def _times(
    case: HeadCase, heads: dict[str, Any], effort: Effort, *, updates: bool
) -> Iterator[dict[str, Any]]:
    embeddings, labels, weight = case.data()
    works = {
        name: HeadWork(head, embeddings.detach().requires_grad_(), labels, weight, updates=updates)
        for name, head in heads.items()
        if name != "cpu-skip" or case.regime == "trained"
    }
    clock = CpuClock()
    seconds = {name: warm_up(work, clock) for name, work in works.items()}
    for name, samples in time_interleaved(works, seconds, effort, clock).items():
        yield {"variant": name, **asdict(samples)}


def main(arguments: list[str]) -> None:
    """Gauge one head in this process and print the result as one line of JSON.

    What is printed is above the weight, the inputs and both gradients.
    """
    name, text = arguments
    case = HeadCase(**json.loads(text))
    tiny = replace(case, rows=min(case.rows, 200), classes=min(case.classes, 300))
    HeadWork(HEADS[name], *tiny.data()).step()  # libraries and threads start
    work = HeadWork(HEADS[name], *case.data())
    peak = memory.peak_above_baseline(work.step)
    bytes_above = max(peak.bytes - work.gradient_bytes, 0)
    print(json.dumps({"bytes": bytes_above, "method": peak.method}))


if __name__ == "__main__":
    main(sys.argv[1:])
