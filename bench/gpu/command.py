"""``python -m bench gpu``: everything that a CUDA device can say, in stages of under nine minutes.

``smoke`` puts every path of the kernels beside float64; ``tests`` runs what needs a device, and
compute-sanitizer; ``measure`` times and gauges beside peers, and lists launches; ``compare``
times every limit that plans go by at other values; ``tune`` looks for launch settings. Each
writes a file after every step, stops by itself, and goes on where the last call of it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.gpu.device_tests import BAD_OUTCOMES
from bench.gpu.record import combined
from bench.gpu.stages import STAGES
from bench.gpu.tables import gpu_tables, summary
from bench.gpu.tasks import NO_TIME_LEFT
from bench.measuring.errors import first_line
from bench.reporting.errors import UserError
from bench.reporting.publish import Presentation
from bench.reporting.results import Results, destination, is_whole, load, slug
from bench.reporting.tables import Table, environment, print_table

HELP = (
    "test, measure, compare and tune on a CUDA device (five stages of under nine minutes each; "
    "--stage: one; smoke a minute or two)"
)

PRESENTATION = Presentation(gpu_tables)

# Under nine minutes with what comes before and after.
DEFAULT_SECONDS = 500.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for STAGE.json and gpu.md; what is there of the same code and device is kept "
        "(default bench/results/gpu-DEVICE, gpu-DEVICE-partial if any other option is given)",
    )
    parser.add_argument("--stage", choices=STAGES, help="one of them (default all, in this order)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=DEFAULT_SECONDS,
        help="for a stage; what no time is left for is for the next call (default %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure only a few small sizes, to see that all runs"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run stages; their files are written as results come.

    Raises:
        UserError: no CUDA device, or a test or a path failed.
    """
    if arguments.seconds <= 0:
        raise UserError(f"--seconds must be greater than 0, got {arguments.seconds}")
    if not torch.cuda.is_available():
        raise UserError(
            "python -m bench gpu needs a CUDA device, and a PyTorch built for it: "
            f"PyTorch {torch.__version__} sees none here"
        )
    where = destination(
        f"gpu-{slug(torch.cuda.get_device_name())}",
        arguments.out,
        whole=is_whole(arguments, add_arguments),
    )
    # Not at the end only: a run that somebody interrupts lists what it did not come to.
    folder = where.replaces or where.path
    names = [arguments.stage] if arguments.stage else list(STAGES)
    stages = {name: lambda name=name: STAGES[name]("cuda", arguments.quick) for name in names}
    run_stages(folder, stages, arguments.seconds)


def run_stages(folder: Path, stages: Mapping[str, Callable[[], Any]], seconds: float) -> None:
    """Stages one after the other, each into its file, and all files of the folder on one page.

    Args:
        folder: made where it is not there.
        stages: makes each of them, by name; one that cannot be made or run keeps none from running.
        seconds: for each.

    Raises:
        UserError: a test or a path failed, none passed, or a stage did not run.
    """
    page = folder / "gpu.md"
    problems = []
    for name, make in stages.items():
        try:
            found = make().run(folder / f"{name}.json", seconds)
            problems += [f"{name}: {what}" for what in _problems(found, page)]
        except Exception as error:
            problems.append(f"{name}: {first_line(error)}")
        finally:
            # Also where somebody interrupts.
            _write_page(folder, page)
    results = combined(folder, STAGES)
    if results is not None:
        for table in gpu_tables(results)[:3]:
            if table.rows:
                print_table(table)
        print(environment(results))
        print(f"wrote {page}, and {', '.join(f'{name}.json' for name in stages)} beside it")
    if problems:
        raise UserError("; ".join(problems))


def _write_page(folder: Path, page: Path) -> None:
    results = combined(folder, STAGES)
    tuned: list[Table] = []
    if (folder / "tune.json").exists():
        from bench.tune.command import tune_table

        tuned.append(tune_table(load(folder / "tune.json", within="measured")))
    if results is not None:
        page.write_text(summary(results, tuned), encoding="utf-8")


def _problems(results: Results, page: Path) -> list[str]:
    """What has failed, of tests and of paths."""
    found = []
    outcomes = [row["outcome"] for row in results.rows if row.get("kind") == "test"]
    bad = sum(outcome in BAD_OUTCOMES for outcome in outcomes)
    if bad:
        found.append(f"{bad} of {len(outcomes)} tests failed; {page} lists them")
    elif outcomes and "passed" not in outcomes:
        found.append(f"none of {len(outcomes)} tests was run; {page} says why")
    paths = [row["status"] for row in results.rows if row.get("kind") == "smoke"]
    wrong = sum(status not in ("ok", NO_TIME_LEFT) for status in paths)
    if wrong:
        found.append(f"{wrong} of {len(paths)} paths are wrong; {page} lists them")
    return found
