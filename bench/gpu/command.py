"""``python -m bench gpu``: tests and measurements on a CUDA device, in under nine minutes.

First the tests that need a device, then the measurements, most important first. What no time is
left for is listed as such.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.gpu.device_tests import BAD_OUTCOMES, run_tests
from bench.gpu.measurements import run_tasks
from bench.gpu.tables import gpu_tables, summary
from bench.gpu.tasks import Task, all_tasks, quick_tasks
from bench.measuring.data import describe_data
from bench.measuring.variants import GAMMA, M
from bench.reporting.errors import UserError
from bench.reporting.publish import Presentation
from bench.reporting.results import Results, destination, is_whole, save, slug, start_results
from bench.reporting.tables import environment, print_table

HELP = "test and measure on a CUDA device (under nine minutes)"

PRESENTATION = Presentation(gpu_tables)

# Under nine minutes with what comes before and after.
DEFAULT_SECONDS = 510.0
# Of that at most, for the tests; what they leave goes to the measurements.
_SHARE_OF_TESTS = 0.45


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for gpu.json and gpu.md (default bench/results/gpu-DEVICE, "
        "gpu-DEVICE-partial if any other option is given)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=DEFAULT_SECONDS,
        help="for everything; what no time is left for is listed (default %(default)s)",
    )
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument(
        "--quick", action="store_true", help="measure only a few small sizes, to see that all runs"
    )


def run(arguments: argparse.Namespace) -> None:
    """Test and measure; the files are written as results come.

    Raises:
        UserError: no CUDA device, or a test failed.
    """
    if arguments.seconds <= 0:
        raise UserError(f"--seconds must be greater than 0, got {arguments.seconds}")
    if not torch.cuda.is_available():
        raise UserError(
            "python -m bench gpu needs a CUDA device, and a PyTorch built for it: "
            f"PyTorch {torch.__version__} sees none here"
        )
    device = "cuda"
    where = destination(
        f"gpu-{slug(torch.cuda.get_device_name())}",
        arguments.out,
        whole=is_whole(arguments, add_arguments),
    )
    # Not at the end only: a run that somebody interrupts lists what it did not come to.
    folder = where.replaces or where.path
    tasks = quick_tasks(device) if arguments.quick else all_tasks(device)
    selection = None if arguments.no_tests else ("-m", "gpu", "tests")
    test_and_measure(folder, arguments.seconds, tasks, selection, device)


def test_and_measure(
    folder: Path,
    seconds: float,
    tasks: Sequence[Task],
    selection: Sequence[str] | None,
    device: str,
) -> None:
    """Everything, into ``gpu.json`` and ``gpu.md`` in a folder.

    Args:
        folder: made where it is not there.
        seconds: for everything.
        tasks: what to measure, in this order.
        selection: pytest's arguments; None runs no tests.
        device: ``"cuda"``.

    Raises:
        UserError: a test failed, or none passed.
    """
    begin = time.monotonic()
    results = start_results("gpu", device, _settings(seconds, tasks))
    spent = results.settings["seconds_spent"] = {}
    data_path, page_path = folder / "gpu.json", folder / "gpu.md"
    try:
        for part, rows in _parts(begin + seconds, seconds, tasks, selection):
            results.rows.extend(rows)
            spent[part] = round(time.monotonic() - begin - sum(spent.values()) + spent.get(part, 0))
            save(results, data_path)
    finally:
        # Also where somebody interrupts.
        save(results, data_path)
        page_path.write_text(summary(results), encoding="utf-8")
    for table in gpu_tables(results)[:2]:
        if table.rows:
            print_table(table)
    print(environment(results))
    print(f"wrote {data_path} and {page_path}")
    if selection is not None:
        _require_passed(results, page_path)


def _parts(
    deadline: float, seconds: float, tasks: Sequence[Task], selection: Sequence[str] | None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows, and which part of the run they come from."""
    if selection is not None:
        yield "tests", run_tests(_SHARE_OF_TESTS * seconds, selection)
    for rows in run_tasks(tasks, deadline):
        yield "measurements", rows


def _require_passed(results: Results, page: Path) -> None:
    outcomes = [row["outcome"] for row in results.rows if row["kind"] == "test"]
    bad = sum(outcome in BAD_OUTCOMES for outcome in outcomes)
    if bad:
        raise UserError(f"{bad} of {len(outcomes)} tests failed; {page} lists them")
    if "passed" not in outcomes:
        raise UserError(f"none of {len(outcomes)} tests was run; {page} says why")


def _settings(seconds: float, tasks: Sequence[Task]) -> dict[str, Any]:
    return {
        "m": M,
        "gamma": GAMMA,
        "reduction": "mean",
        **describe_data(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "seconds": seconds,
        "tasks": [asdict(task) for task in tasks],
    }
