"""``python -m bench tune``: launch settings for the GPU at hand, found by trying.

For each Triton kernel, dtype and depth: settings that spill much, do not fit or give other results
are left out, the others are timed, and the current ones stay unless others are faster by over 3%.
The file that it writes is taken by CIRCLE_KERNELS_TRITON_SETTINGS, and its entries can go into
circle_kernels/backends/triton/settings_table/settings.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import circle_kernels
from bench.measuring.cases import parse_choices
from bench.reporting.errors import UserError
from bench.reporting.progress import progress_bar
from bench.reporting.results import Results, destination, is_whole, slug, start_results, write_whole
from bench.reporting.tables import MISSING, Table, environment, number, print_table
from bench.tune.search import EVERYTHING, QUICK, Search

if TYPE_CHECKING:
    from bench.tune.grid import Gpu
    from bench.tune.passes import Job
    from circle_kernels.backends.triton.settings import Settings
    from circle_kernels.backends.triton.settings_table import Entry

    Choose = Callable[[Job, Callable[[], None]], tuple[Settings | None, dict[str, Any]]]

HELP = (
    "find launch settings of the Triton kernels on a CUDA or ROCm device (tens of minutes; "
    "--quick: a few)"
)

DTYPES = ("bfloat16", "float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument(
        "--out",
        type=Path,
        help="file to write (default bench/results/tune-DEVICE.json, tune-DEVICE-partial.json if "
        "any other option is given)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only other numbers of warps and stages for the tiles as they are, at one depth",
    )
    parser.add_argument(
        "--kernels",
        type=lambda text: [part.strip() for part in text.split(",")],
        help="names in the settings table (default all)",
    )
    parser.add_argument(
        "--dtypes",
        type=lambda text: parse_choices("dtypes", DTYPES, text),
        default=["bfloat16", "float32"],
        help="one for each size of an element: float16 and bfloat16 share their settings "
        "(default bfloat16,float32)",
    )
    parser.add_argument(
        "--depths",
        type=_parse_depths,
        help="what is found at one holds up to the next (default 128,512,1024; quick 512)",
    )


def _parse_depths(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"depths must be such as 128,512, got {text!r}")
    return sorted({int(part) for part in parts})


def run(arguments: argparse.Namespace) -> None:
    """Try, print what was chosen, and write it as it comes.

    Raises:
        UserError: no usable device, or arguments that do not fit together.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "python -m bench tune needs a CUDA or ROCm device, and a PyTorch built for it: "
            f"PyTorch {torch.__version__} sees none here"
        )
    search = make_search(arguments, "cuda")
    from bench.tune.chooser import Chooser

    where = destination(
        f"tune-{slug(torch.cuda.get_device_name())}.json",
        arguments.out,
        whole=is_whole(arguments, add_arguments),
    )
    gpu = find_gpu(search)
    with Chooser(gpu, search.extent) as chooser:
        tune(search, gpu, where.replaces or where.path, chooser.choose)


def make_search(arguments: argparse.Namespace, device: str) -> Search:
    """The search that the command line asks for.

    Raises:
        UserError: an unknown kernel, two dtypes of one size, or no use of Triton on the device.
    """
    try:
        from circle_kernels.backends.triton.launch import unusable_reason
        from circle_kernels.backends.triton.settings_table import KERNELS, load_table

        load_table()
    except (ImportError, ValueError) as error:
        raise UserError(f"python -m bench tune needs Triton and its settings: {error}") from error
    kernels = list(dict.fromkeys(arguments.kernels or KERNELS))
    for name in kernels:
        if name not in KERNELS:
            raise UserError(f"--kernels must be among {', '.join(KERNELS)}; got {name!r}")
    sizes = [getattr(torch, name).itemsize for name in arguments.dtypes]
    if len(set(sizes)) < len(sizes):
        raise UserError(
            "--dtypes must be of different sizes, since those of one size share their settings; "
            f"got {','.join(arguments.dtypes)}"
        )
    for name in arguments.dtypes:
        reason = unusable_reason(
            torch.device(device), getattr(torch, name), circle_kernels.CircleFormula()
        )
        if reason is not None:
            raise UserError(reason)
    depths = arguments.depths or ([512] if arguments.quick else [128, 512, 1024])
    extent = QUICK if arguments.quick else EVERYTHING
    return Search(kernels, arguments.dtypes, depths, device, extent)


def find_gpu(search: Search) -> Gpu:
    """The device's architecture and size."""
    from bench.tune.grid import Gpu
    from circle_kernels.backends.triton.conditions import conditions_on, hardware_is_assumed

    device = torch.device(search.device)
    hardware = conditions_on(device).hardware
    warp_size = 64 if hardware.is_amd else 32
    if device.type == "cuda" and not hardware_is_assumed():
        warp_size = getattr(torch.cuda.get_device_properties(device), "warp_size", warp_size)
    return Gpu(hardware.architecture, hardware.multiprocessors, warp_size)


def tune(search: Search, gpu: Gpu, path: Path, choose: Choose) -> None:
    """Everything, into a file of settings.

    Args:
        search: what to try.
        gpu: the device.
        path: what to write; whole after each job.
        choose: finds the settings of a job, and calls back for each that it tries.

    Raises:
        UserError: for some jobs nothing could be found; the file has the others.
    """
    results = start_results("tune", search.device, describe_search(search, gpu))
    try:
        tune_jobs(jobs_of(search, gpu), gpu, path, results, choose)
    finally:
        if results.rows:
            print_table(tune_table(results))
            print(environment(results))
    print(f"wrote {path}; CIRCLE_KERNELS_TRITON_SETTINGS={path.resolve()} uses it")
    require_settings(results)


def jobs_of(search: Search, gpu: Gpu) -> list[Job]:
    """All that a search tries, in its order."""
    from bench.tune.passes import Job

    dtypes = [getattr(torch, name) for name in search.dtypes]
    return [
        Job(kernel, gpu.architecture, dtype, depth, search.device)
        for dtype in dtypes
        for kernel in search.kernels
        for depth in _depths(search, kernel, gpu.architecture, dtype.itemsize)
    ]


def tune_jobs(jobs: Sequence[Job], gpu: Gpu, path: Path, results: Results, choose: Choose) -> None:
    """Add a row for each job, and write the file after each."""
    with progress_bar(0, "settings") as progress:
        for job in jobs:
            progress.set_description(str(job))
            settings, row = choose(job, progress.update)
            row["settings"] = None if settings is None else dataclasses.asdict(settings)
            results.rows.append(row)
            write_settings(path, entries_of(results, gpu.architecture), results)


def entries_of(results: Results, architecture: str) -> list[Entry]:
    """What rows have chosen, as the package reads it."""
    from circle_kernels.backends.triton.settings_table import Entry, Settings

    chosen: dict[tuple[str, str], dict[int, Settings]] = {}
    for row in results.rows:
        if row["settings"] is not None:
            of_kernel = chosen.setdefault((row["kernel"], row["dtype"]), {})
            of_kernel[row["depth"]] = Settings(**row["settings"])
    return [
        Entry(kernel, architecture, getattr(torch, dtype).itemsize, depth, settings)
        for (kernel, dtype), depths in chosen.items()
        for depth, settings in by_smallest_depth(depths)
    ]


def require_settings(results: Results) -> None:
    """Raise UserError where nothing was found for a job."""
    without = [row for row in results.rows if row["chosen"] is None]
    if without:
        raise UserError(
            f"nothing was found for {len(without)} of {len(results.rows)}, first for "
            f"{without[0]['kernel']} {without[0]['dtype']} D={without[0]['depth']}: "
            f"{without[0].get('failed', 'none of the settings runs')}"
        )


def _depths(search: Search, kernel: str, architecture: str, itemsize: int) -> list[int]:
    """The search's, and those from which the table has other settings, which would be hidden."""
    from circle_kernels.backends.triton.settings import listed_depths

    return sorted({*search.depths, *listed_depths(kernel, architecture, itemsize)})


def by_smallest_depth(chosen: dict[int, Settings]) -> list[tuple[int, Settings]]:
    """What was chosen, with the smallest depth that takes it: the first serves smaller ones too."""
    found: list[tuple[int, Settings]] = []
    for depth, settings in sorted(chosen.items()):
        if not found:
            found.append((1, settings))
        elif settings != found[-1][1]:
            found.append((depth, settings))
    return found


def write_settings(path: Path, entries: Iterable[Entry], results: Results) -> None:
    """A file as the package reads it, one entry per line, and where it comes from."""
    lines = []
    for entry in entries:
        key = {"kernel": entry.kernel, "family": entry.family, "bytes": entry.bytes}
        settings = dataclasses.asdict(entry.settings)
        lines.append("  " + json.dumps({**key, "depth": entry.depth, **settings}))
    measured = json.dumps(dataclasses.asdict(results), indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(
        path, '{\n "entries": [\n' + ",\n".join(lines) + f'\n ],\n "measured": {measured}\n}}\n'
    )


def tune_table(results: Results) -> Table:
    """Current and chosen settings, and their times."""
    table = Table(
        "tune",
        "Launch settings (rows x columns x depth of a tile, warps, stages); milliseconds of the "
        "pass as it is, for each problem; time with what was chosen over that",
        ["kernel", "dtype", "D", "current", "ms", "chosen", "ratio", "timed", "left out"],
        keys=3,
    )
    for row in results.rows:
        seconds = row.get("seconds", [])
        chosen = row["chosen"] or row.get("failed", "none runs")
        table.rows.append(
            [
                row["kernel"],
                row["dtype"],
                str(row["depth"]),
                row["current"],
                " ".join(number(value * 1e3) for value in seconds) or MISSING,
                "the same" if chosen == row["current"] else chosen,
                number(row["ratio"]) if "ratio" in row else MISSING,
                str(len(row.get("ratios", ())) + ("ratios" in row)),
                str(len(row["left_out"])),
            ]
        )
    return table


def describe_search(search: Search, gpu: Gpu) -> dict[str, Any]:
    return {
        **dataclasses.asdict(search),
        **dataclasses.asdict(gpu),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "settings_file": os.environ.get("CIRCLE_KERNELS_TRITON_SETTINGS"),
    }
