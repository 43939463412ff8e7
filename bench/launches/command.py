"""``python -m bench launches``: what one call of the loss and its gradient asks of host and device.

Counted, not timed, and without a GPU: ours on a pretended device, the others on the CPU, where they
run the same operators. Where there is a device, a profiler counts the kernels there, too.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bench.launches.counts import TARGET, count_triton, count_with_engine, profile_kernels
from bench.launches.tables import environment, launch_tables
from bench.measuring.cases import Case
from bench.measuring.variants import VARIANTS
from bench.places import DOCS
from bench.reporting.errors import UserError
from bench.reporting.publish import Presentation
from bench.reporting.results import destination, is_whole, save, start_results

HELP = (
    "launches, host calls and host waits of small batches beside eager and "
    "pytorch-metric-learning, without a GPU (half a minute)"
)

PRESENTATION = Presentation(launch_tables, environment)

OURS = "triton"
VARIANT_NAMES = (OURS, "eager", "pml")
CASES = tuple(
    Case(rows, dim, dtype=dtype)
    for dtype, rows, dim in itertools.product(
        ("float32", "bfloat16", "float16"), (64, 256, 1024), (128, 512)
    )
)

# What ours may launch for these. One of the backward pass is autograd's own: the 1 it starts from.
MOST_LAUNCHES = {"forward": 2, "backward": 3}

_DOCUMENT = DOCS / "cuda-graphs.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument(
        "--out",
        type=Path,
        help="results file (default bench/results/launches.json; launches-partial.json where a "
        "variant is not installed)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Count, print, and write docs/cuda-graphs.md where the results go to their usual place."""
    missing = {name: VARIANTS[name].missing(CASES[0]) for name in VARIANT_NAMES if name != OURS}
    left_out = {name: reason for name, reason in missing.items() if reason is not None}
    whole = is_whole(arguments, add_arguments) and not left_out
    where = destination("launches.json", arguments.out, whole=whole)
    results = start_results("launches", "cuda", {"target": TARGET, "left_out": left_out})
    counted = [name for name in VARIANT_NAMES if name not in left_out]
    results.rows = [count_case(name, case) for name in counted for case in CASES]
    save(results, where.path)
    PRESENTATION.show(results)
    print(f"wrote {where.finish()}")
    if where.replaces is not None:
        PRESENTATION.rewrite(_DOCUMENT, results)
    problems = exceeded_budgets(results.rows)
    if problems:
        raise UserError("too many launches:\n" + "\n".join(problems))


def count_case(name: str, case: Case) -> dict[str, Any]:
    """The row of one variant and case.

    Raises:
        UserError: Triton is needed and not installed.
    """
    variant = VARIANTS[name]
    try:
        counts = count_triton(case) if name == OURS else count_with_engine(variant.work(case))
    except ImportError as error:
        raise UserError(
            f"python -m bench launches needs Triton (pip install triton): {error}"
        ) from error
    if torch.cuda.is_available():
        work = variant.work(replace(case, device="cuda"))
        for step, kernels in profile_kernels(work).items():
            counts[step].profiled = kernels
    passes = {step: asdict(counted) for step, counted in counts.items()}
    return {"variant": name, "rows": case.rows, "dim": case.dim, "dtype": case.dtype, **passes}


def exceeded_budgets(rows: list[dict[str, Any]]) -> list[str]:
    """Where ours launches more than MOST_LAUNCHES, or waits, in words."""
    problems = []
    for row in rows:
        if row["variant"] != OURS:
            continue
        case = f"N={row['rows']} D={row['dim']} {row['dtype']} {{}}"
        for step, most in MOST_LAUNCHES.items():
            counted = row[step]
            if counted["launches"] > most:
                problems.append(
                    f"{case.format(step)}: {counted['launches']} launches, at most {most}"
                )
            if counted["waits"]:
                problems.append(f"{case.format(step)}: the host waits {counted['waits']} times")
    return problems
