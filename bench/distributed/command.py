"""``python -m bench distributed``: one batch shared by several processes, beside one process.

Processor time, memory and bytes sent by each of 1, 2 and 4 processes with one thread, and one
process's share of a step without any communication. With --model instead: what a step would take
on 8 to 1,024 GPUs, which is arithmetic and no measurement.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bench.distributed.cost import Assumptions
from bench.distributed.methods import ALONE, GAMMA, M, Method, SharedCase, methods_of
from bench.distributed.modelled import (
    COMMAND,
    GPUS,
    ROWS_PER_GPU,
    model,
    model_environment,
    model_tables,
)
from bench.distributed.processes import Group, ask_first_of
from bench.distributed.ranks import Steps
from bench.distributed.tables import shared_tables
from bench.measuring.worker import WorkerError
from bench.places import DOCS
from bench.reporting.errors import UserError
from bench.reporting.progress import progress_bar
from bench.reporting.publish import Presentation
from bench.reporting.results import destination, is_whole, save, start_results

HELP = (
    "a batch shared by 1, 2 and 4 processes beside one process: processor time, memory, bytes; "
    "--model: what 8 to 1,024 GPUs would take (about fifteen minutes; --model: a second)"
)

PRESENTATION = Presentation(shared_tables, shown=2)
MODEL_PRESENTATION = Presentation(model_tables, model_environment, shown=3)

PROCESSES = (1, 2, 4)
SHARES = (1, 2, 4, 8)
CASES = (SharedCase(4096, 512), SharedCase(512, 128, classes=100_000))
_ROUNDS = 9

_QUICK_PROCESSES = (2,)
_QUICK_SHARES = (2,)
_QUICK_CASES = (SharedCase(64, 16), SharedCase(32, 16, classes=40))
_QUICK_ROUNDS = 2

_DOCUMENT = DOCS / "distributed.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--quick", action="store_true", help="small batches, two processes")
    parser.add_argument(
        "--out",
        type=Path,
        help="results file (default bench/results/distributed-cpu.json, if quick "
        "distributed-cpu-partial.json)",
    )
    parser.add_argument(
        "--model",
        action="store_true",
        help="measure nothing; print what the model says and, with what is assumed as it is by "
        f"default, write it to bench/results/{COMMAND}.json and docs/distributed.md",
    )
    assumed_group = parser.add_argument_group("what the model assumes")
    sizes = (("gpus", GPUS, "numbers of GPUs"), ("rows-per-gpu", ROWS_PER_GPU, "rows of each"))
    for name, default, meaning in sizes:
        assumed_group.add_argument(
            f"--{name}",
            type=int,
            nargs="+",
            default=list(default),
            help=f"{meaning} (default {' '.join(map(str, default))})",
        )
    for assumed in fields(Assumptions):
        assumed_group.add_argument(
            f"--{assumed.name.replace('_', '-')}",
            type=float,
            default=assumed.default,
            help=f"{assumed.metadata['meaning']} (default {assumed.default:g})".replace("%", "%%"),
        )


def run(arguments: argparse.Namespace) -> None:
    """Measure, write the results file after every part, and print; or model, and write the page."""
    assumed = [field.name for field in fields(Assumptions)]
    given = [name for name in assumed if getattr(arguments, name) != _default_of(name)]
    if arguments.model and arguments.quick:
        raise UserError("--model measures nothing, so there is nothing that --quick makes smaller")
    if arguments.model:
        _run_model(arguments)
        return
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{names} is what the model assumes: use it with --model")
    quick = arguments.quick
    where = destination(
        "distributed-cpu.json", arguments.out, whole=is_whole(arguments, add_arguments)
    )
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    results = start_results("distributed", "cpu", {"m": M, "gamma": GAMMA, "rounds": rounds})
    results.torch_threads = 1  # of each process
    cases = _QUICK_CASES if quick else CASES
    parts = [
        *itertools.product((measure,), cases, _QUICK_PROCESSES if quick else PROCESSES),
        *itertools.product((measure_share,), cases, _QUICK_SHARES if quick else SHARES),
    ]
    with progress_bar(len(parts), "part") as progress:
        for part, case, processes in parts:
            progress.set_description(f"{case}, {processes} processes")
            for row in part(case, processes, rounds):
                results.rows.append({**case.as_dict(), "processes": processes, **row})
            save(results, where.path)
            progress.update()
    path = where.finish()
    PRESENTATION.show(results)
    print(f"wrote {path}")


def _default_of(name: str) -> float:
    return next(each.default for each in fields(Assumptions) if each.name == name)


def measure(case: SharedCase, processes: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of kind memory and time of all methods in a group of so many processes."""
    usable, rows = [], []
    for method in methods_of(case):
        reason = method.missing()
        status = "ok" if reason is None else f"unavailable: {reason}"
        if reason is None:
            try:
                with Group(processes) as group:
                    peaks = group.ask("memory", case, method.name)
            except WorkerError as error:
                status = f"failed: {error}"
            else:
                usable.append(method.name)
                peak = max(each for each in peaks if each is not None)
                rows.append({"kind": "memory", "method": method.name, "peak_bytes": peak})
        if status != "ok":
            rows.append({"kind": "time", "method": method.name, "status": status})
    yield from rows
    with Group(processes) as group:
        of_ranks = group.ask("time", case, usable, rounds)
    for name in usable:
        yield {"kind": "time", "method": name, "status": "ok", **_slowest(of_ranks, name)}


def measure_share(case: SharedCase, processes: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of kind share: the first process's part of a step, with nobody to wait for.

    What it receives was recorded before, in a group of so many processes.
    """
    recordings: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        group = None
        for method in _shared_methods(case):
            path = str(Path(folder) / method.name)
            try:
                group = group or stack.enter_context(Group(processes))
                group.ask("record", case, method.name, path)
            except WorkerError as error:
                group = None  # the next method needs another
                yield {"kind": "share", "method": method.name, "status": f"failed: {error}"}
            else:
                recordings[method.name] = path
        stack.close()
        played = ask_first_of(processes, "play", case, ALONE, recordings, rounds)
    for name, steps in played.items():
        yield {"kind": "share", "method": name, "status": "ok", **_written(steps)}


def _shared_methods(case: SharedCase) -> Sequence[Method]:
    return [
        method
        for method in methods_of(case)
        if method.missing() is None and not method.alone and method.name != "pml"
    ]


def _slowest(of_ranks: Sequence[dict[str, Steps]], name: str) -> dict[str, Any]:
    """Of each round the longest time of any process; the bytes of the one that sends most."""
    found = [steps[name] for steps in of_ranks if name in steps]
    most = max(found, key=lambda steps: sum(steps.sent_bytes.values()))
    times = {
        clock: [max(each) for each in zip(*(getattr(steps, clock) for steps in found), strict=True)]
        for clock in ("compute", "processor", "wall")
    }
    return {**_written(most), **times}


def _written(steps: Steps) -> dict[str, Any]:
    return asdict(steps)


def _run_model(arguments: argparse.Namespace) -> None:
    given = {each.name: getattr(arguments, each.name) for each in fields(Assumptions)}
    if min(*given.values(), *arguments.gpus, *arguments.rows_per_gpu) <= 0:
        raise UserError("what the model assumes must be greater than 0")
    assumed = Assumptions(**given)
    usual = (
        assumed == Assumptions()
        and tuple(arguments.gpus) == GPUS
        and tuple(arguments.rows_per_gpu) == ROWS_PER_GPU
    )
    where = destination(f"{COMMAND}.json", arguments.out, whole=usual)
    results = model(assumed, arguments.gpus, arguments.rows_per_gpu)
    save(results, where.path)
    MODEL_PRESENTATION.show(results)
    print(f"wrote {where.finish()}")
    if where.replaces is not None:
        MODEL_PRESENTATION.rewrite(_DOCUMENT, results)
