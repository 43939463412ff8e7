"""``python -m bench loss``: the loss beside its peers, over sizes and kinds of data."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bench.loss.sweep import Plan, measure
from bench.measuring.cases import Case, parse_choices, parse_dtypes, parse_regimes, parse_sizes
from bench.measuring.data import REGIMES, describe_data
from bench.measuring.memory import default_limit
from bench.measuring.sweep import Method
from bench.measuring.timing import Effort
from bench.measuring.variants import GAMMA, SMALL_STEPS, VARIANTS, M
from bench.reporting.errors import UserError
from bench.reporting.loss_tables import loss_tables
from bench.reporting.publish import Presentation
from bench.reporting.results import Destination, Results, destination, is_whole, save, start_results

HELP = "every backend beside its peers, over sizes and data (about ten minutes)"

# Chosen to take about ten minutes on two idle cores, with compiling and memory.
DEFAULT_SIZES = "256x128,1024x128,2048x128,4096x128,8192x128,1024x512,4096x512,8192x512"
DEFAULT_MEMORY_SIZES = "16384x128"
DEFAULT_SMALL_SIZES = "64x128"
QUICK_SIZES = "256x64,512x128"


def _picture(results: Results, path: Path) -> None:
    from bench.loss.plot import plot_loss  # which imports matplotlib

    plot_loss(results, path)


PRESENTATION = Presentation(loss_tables, picture=_picture, shown=2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--sizes", type=parse_sizes, help=f"NxD,... (default {DEFAULT_SIZES})")
    parser.add_argument(
        "--memory-sizes",
        type=parse_sizes,
        help=f"sizes of which only memory is measured (default {DEFAULT_MEMORY_SIZES}, "
        "none if --sizes or --quick is given)",
    )
    parser.add_argument(
        "--small-sizes",
        type=parse_sizes,
        help="sizes at which the loss is timed alone, as a drop-in and compiled (default "
        f"{DEFAULT_SMALL_SIZES}, none if --sizes, --variants or --quick is given)",
    )
    parser.add_argument("--regimes", type=parse_regimes, help="of random,trained (default both)")
    parser.add_argument("--dtypes", type=parse_dtypes, default=["float32"], help="of the inputs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--variants",
        type=lambda text: parse_choices("variants", tuple(VARIANTS), text),
        help=f"of {','.join(VARIANTS)} (default all; mm is always measured)",
    )
    parser.add_argument("--rounds", type=int, help="exactly so many (default: what time allows)")
    parser.add_argument("--seconds", type=float, default=6.0, help="aimed time per case")
    parser.add_argument("--memory-limit", type=float, help="skip what would need more GB than this")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds, no torch.compile"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="results file (default bench/results/loss-DEVICE.json, of which the tables are made; "
        "loss-DEVICE-partial.json if any other option but --device is given)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure, and after every case write the results file; at the end print and plot."""
    plan = make_plan(arguments)
    where = find_destination(arguments)
    results = start_results("loss", plan.device, _settings(plan))
    for rows in measure(plan):
        results.rows.extend(rows)
        save(results, where.path)
    path = where.finish()
    PRESENTATION.show(results)
    print(f"wrote {path}")
    PRESENTATION.draw(results, path.with_suffix(".png"))


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Fill in what was not asked for.

    Raises:
        UserError: a device that is not there, or a number out of range.
    """
    try:
        device = torch.device(arguments.device)
    except RuntimeError as error:
        raise UserError(f"--device must be cpu or cuda, got {arguments.device!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, got {arguments.device!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA or ROCm device here")
    for name in ("rounds", "seconds", "memory_limit"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be greater than 0, got {value}")
    quick = arguments.quick
    sizes = arguments.sizes or parse_sizes(QUICK_SIZES if quick else DEFAULT_SIZES)
    memory_sizes = arguments.memory_sizes or []
    if arguments.memory_sizes is None and arguments.sizes is None and not quick:
        memory_sizes = parse_sizes(DEFAULT_MEMORY_SIZES)
    small_sizes = arguments.small_sizes or []
    if arguments.small_sizes is None and not (arguments.sizes or arguments.variants or quick):
        small_sizes = parse_sizes(DEFAULT_SMALL_SIZES)
    chosen = arguments.variants or list(VARIANTS)
    limit = arguments.memory_limit
    method = Method(
        {name: VARIANTS[name] for name in VARIANTS if name in (*chosen, "mm")},
        effort=_effort(arguments.rounds, 0.5 if quick else arguments.seconds),
        memory_limit=limit * 1e9 if limit else default_limit(str(device)),
        left_out=("compile", "core-compiled") if quick and arguments.variants is None else (),
    )
    return Plan(
        sizes=sizes,
        memory_sizes=[] if arguments.no_memory else [*sizes, *memory_sizes],
        small_sizes=small_sizes,
        regimes=arguments.regimes or (["random"] if quick else list(REGIMES)),
        dtypes=arguments.dtypes,
        device=str(device),
        method=method,
        small_steps=replace(method, variants=SMALL_STEPS),
    )


def find_destination(arguments: argparse.Namespace) -> Destination:
    """Where results go. Without a peer that could be installed a run is not whole."""
    device = torch.device(arguments.device).type
    complete = VARIANTS["pml"].missing(Case(2, 2, device=device)) is None
    whole = complete and is_whole(arguments, add_arguments)
    return destination(f"loss-{device}.json", arguments.out, whole=whole)


def _effort(rounds: int | None, seconds: float) -> Effort:
    if rounds is not None:
        return Effort(seconds, min_rounds=rounds, max_rounds=rounds)
    return Effort(seconds)


def _settings(plan: Plan) -> dict[str, Any]:
    return {
        "m": M,
        "gamma": GAMMA,
        "reduction": "mean",
        **describe_data(),
        "effort": asdict(plan.method.effort),
        "memory_limit_bytes": int(plan.method.memory_limit),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
