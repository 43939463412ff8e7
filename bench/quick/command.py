"""``python -m bench quick``: your loss, sizes and dtype beside pytorch-metric-learning."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

import circle_kernels
from bench.losses.measure import MEMORY_LIMIT, gauge_case, time_case
from bench.losses.variants import LOSSES, LossCase
from bench.measuring.timing import Effort
from bench.places import ROOT
from bench.quick.tables import OURS, THEIRS, quick_tables
from bench.reporting.errors import UserError
from bench.reporting.progress import progress_bar
from bench.reporting.publish import Presentation
from bench.reporting.results import Results, save, start_results
from circle_kernels.backends.choice import resolve_backend

HELP = "your loss, N, D and dtype beside pytorch-metric-learning: a table and a chart (a minute)"

_EFFORT = Effort(seconds=2.0, min_rounds=3, max_rounds=30)
_SMALLEST = 32


def _picture(results: Results, path: Path) -> None:
    from bench.quick.plot import plot_quick  # which imports matplotlib

    plot_quick(results, path)


PRESENTATION = Presentation(quick_tables, picture=_picture)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--loss", default="CircleLoss", choices=LOSSES, help="(default CircleLoss)")
    parser.add_argument("--rows", type=int, default=16384, help="the largest N (default 16384)")
    parser.add_argument("--dim", type=int, default=128, help="D (default 128)")
    parser.add_argument("--classes", type=int, default=1000, help="of class losses (default 1000)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float16", "bfloat16", "float32", "float64"],
        help="of the embeddings (default float32)",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="(default cuda where there is)")
    parser.add_argument(
        "--out",
        type=Path,
        help="results file (default build/quick-DEVICE.json); the chart lies beside it as .png",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure, write the results file after every size, print and draw."""
    for name, smallest in (("rows", _SMALLEST), ("dim", 1), ("classes", 2)):
        if getattr(arguments, name) < smallest:
            raise UserError(f"--{name} must be at least {smallest}, got {getattr(arguments, name)}")
    has_cuda = torch.cuda.is_available()
    device = arguments.device or ("cuda" if has_cuda else "cpu")
    if device == "cuda" and not has_cuda:
        raise UserError("--device cuda: PyTorch sees no CUDA or ROCm device here")
    path = arguments.out or ROOT / "build" / f"quick-{device}.json"
    if path.is_dir() or path.suffix == ".png" or not _can_be_made(path.parent):
        raise UserError(f"--out must be a file other than the chart's .png, got {path}")
    settings = {
        "effort": asdict(_EFFORT),
        "memory_limit_bytes": int(MEMORY_LIMIT),
        "backend": _backend(device, arguments.dtype),
    }
    print(f"circle_kernels: {settings['backend']}")
    results = start_results("quick", device, settings)
    sizes = cases(arguments, device)
    with progress_bar(2 * len(sizes), "case") as progress:
        for case in sizes:
            for what, rows in (
                ("time", lambda case=case: time_case(case, _EFFORT, (OURS, THEIRS))),
                ("memory", lambda case=case: gauge_case(case, (OURS, THEIRS))),
            ):
                progress.set_description(f"{what}: {case}")
                results.rows += rows()
                save(results, path)
                progress.update()
    PRESENTATION.show(results)
    print(f"wrote {path}")
    PRESENTATION.draw(results, path.with_suffix(".png"))


def _can_be_made(folder: Path) -> bool:
    """Whether it is a folder, or nothing on the way to it is something else."""
    return folder.is_dir() or (not folder.exists() and _can_be_made(folder.parent))


def _backend(device: str, dtype: str) -> str:
    """What ``backend="auto"`` takes here, in words; that it is not the fast one must be seen."""
    name = resolve_backend(
        "auto", torch.device(device), getattr(torch, dtype), circle_kernels.CircleFormula()
    )
    status = circle_kernels.available_backends()
    expected = "triton" if device == "cuda" else "cpu"
    if name == expected:
        return f"backend {name}, {status[name]}"
    return f"the slower backend {name}, since {expected} is {status[expected]}"


def cases(arguments: argparse.Namespace, device: str) -> list[LossCase]:
    """The size that is asked for, and a quarter, a sixteenth and a sixty-fourth of it."""
    rows = sorted({max(_SMALLEST, arguments.rows // part) for part in (64, 16, 4, 1)})
    classes = arguments.classes if LOSSES[arguments.loss].has_weights else 0
    return [
        LossCase(arguments.loss, each, arguments.dim, classes, arguments.dtype, device)
        for each in rows
    ]
