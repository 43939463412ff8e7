"""``python -m bench kernels``: what every Triton kernel costs, read from its machine code.

Compiles for GPUs that need not be there: what would be launched is recorded on a pretended device.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.kernels.tables import cycle_ratio
from bench.places import DOCS
from bench.reporting import command as report
from bench.reporting import markers
from bench.reporting.errors import UserError
from bench.reporting.progress import progress_bar
from bench.reporting.results import FOLDER, destination, is_whole, load, save, start_results
from circle_kernels import CircleFormula

HELP = "registers, spills, instructions per pair and cycles per tile of the Triton kernels, no GPU"

DEPTHS = (128, 512, 1024)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Problem(NamedTuple):
    """What kernels are looked at for. The depth matters where it decides that products are kept."""

    num_rows: int
    depth: int
    num_references: int | None = None
    classes: bool = False  # references are class weights


PROBLEMS = (
    Problem(256, 64),
    Problem(256, 1024),
    Problem(2048, 1024),
    Problem(4096, 64),
    Problem(16_384, 128),
    Problem(16_384, 128, 16_384),
    Problem(512, 128, 1000, classes=True),
    Problem(512, 128, 1_000_000, classes=True),
)

_RESULTS = FOLDER / "kernels.json"
_DOCUMENT = DOCS / "kernels.md"

# What --check holds for tiles of 128x128 on sm_90, in bfloat16.
MOST_INSTRUCTIONS = {"only negatives": 11.0, "both kinds": 26.0}
MOST_CYCLES = {512: 1.35, 1024: 1.2}  # of tiles with only negatives, beside the matrix product
# How much worse than the committed table a figure may get.
TOLERANCE = 1.05
_LANES = 128  # instructions of threads that a multiprocessor issues in a cycle


@dataclass(frozen=True)
class Task:
    """One kernel to compile."""

    target: str
    dtype: str
    kernel: str
    launch: Any  # bench.offline.pretended.Launch, which imports Triton


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument(
        "--targets",
        type=lambda text: text.split(","),
        help="of sm_80,sm_86,sm_89,sm_90,sm_100,sm_120,gfx942 (default all)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"results file (default bench/results/{_RESULTS.name}, with --targets "
        f"{_RESULTS.stem}-partial.json)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail where a budget is exceeded or a figure is more than 5%% worse "
        "than in the committed results",
    )


def run(arguments: argparse.Namespace) -> None:
    """Compile, print, and write docs/kernels.md, or check against what is committed."""
    targets = arguments.targets
    where = destination(_RESULTS.name, arguments.out, whole=is_whole(arguments, add_arguments))
    rows = compile_all(targets)
    if arguments.check:
        committed = load(_RESULTS)
        problems = [*exceeded_budgets(rows), *got_worse(rows, committed.rows)]
        if problems:
            raise UserError("kernels got worse:\n" + "\n".join(problems))
        print(f"{len(rows)} rows: within their budgets, none worse than in {_RESULTS.name}")
        return
    results = start_results("kernels", "cuda", {"depths": list(DEPTHS), "targets": targets})
    results.rows = rows
    save(results, where.path)
    report.show(results)
    print(f"wrote {where.finish()}")
    if where.replaces is not None:
        written = markers.rewrite(_DOCUMENT, report.blocks(results))
        print(f"wrote {', '.join(written)} in {_DOCUMENT}")
    problems = exceeded_budgets(rows)
    if problems:
        raise UserError("budgets exceeded:\n" + "\n".join(problems))


def compile_all(targets: list[str] | None = None) -> list[dict[str, Any]]:
    """One row for each body of each kernel, in the order of targets, dtypes and kernels.

    Raises:
        UserError: a target that is not known, or no Triton.
    """
    try:
        from bench.offline.pretended import DEVICES
    except ImportError as error:
        raise UserError(
            f"python -m bench kernels needs Triton (pip install triton): {error}"
        ) from error
    unknown = set(targets or ()) - set(DEVICES)
    if unknown:
        raise UserError(
            f"--targets must be of {','.join(DEVICES)}, got {','.join(sorted(unknown))}"
        )
    # By number: kernels cannot be sent to another process, which plans the same anew.
    tasks = [
        (target, index) for target in targets or DEVICES for index in range(len(_tasks(target)))
    ]
    # Each in a process of its own kind: a compiler that fails an assertion takes only that one.
    context = multiprocessing.get_context("spawn")
    found = []
    with context.Pool(os.cpu_count()) as pool, progress_bar(len(tasks), "kernel") as progress:
        for rows in pool.imap(_compile, tasks):
            found.extend(rows)
            progress.update()
    return found


@functools.cache
def _tasks(target: str) -> list[Task]:
    """The different launches of tile kernels on a target."""
    from bench.offline.pretended import DEVICES, plan_launches

    tasks: dict[Any, Task] = {}
    for dtype, torch_dtype in DTYPES.items():
        for problem in PROBLEMS:
            launches = plan_launches(
                DEVICES[target],
                dtype=torch_dtype,
                formula=CircleFormula(),
                **problem._asdict(),
            )
            for launch in launches:
                if "BLOCK_COLUMNS" in dict(launch.constants):
                    key = dataclasses.replace(launch, programs=0)
                    tasks.setdefault(key, Task(target, dtype, launch.kernel.__name__, key))
    return list(tasks.values())


def _compile(chosen: tuple[str, int]) -> list[dict[str, Any]]:
    from bench.offline.pretended import DEVICES, compile_launch

    task = _tasks(chosen[0])[chosen[1]]
    device = DEVICES[task.target]
    resources = compile_launch(task.launch, device)
    constants, options = dict(task.launch.constants), dict(task.launch.options)
    block_rows, block_columns = constants["BLOCK_ROWS"], constants["BLOCK_COLUMNS"]
    warp_size = device.target.warp_size
    threads = options["num_warps"] * warp_size
    row: dict[str, Any] = {
        "target": task.target,
        "dtype": task.dtype,
        "kernel": task.kernel,
        "mode": _mode(constants),
        "tile": f"{block_rows}x{block_columns}x{constants['BLOCK_DEPTH']}",
        "num_warps": options["num_warps"],
        "num_stages": options["num_stages"],
        "registers": resources.registers,
        "spills": resources.spills,
        "shared_memory": resources.shared_memory,
        "shared_memory_limit": device.shared_memory,
        "blocks": _blocks(device, threads, resources.registers, resources.shared_memory),
        "matrix_instructions": resources.matrix_instructions,
        "exponentials": resources.exponentials,
    }
    pairs = block_rows * block_columns / threads  # of a thread
    bodies = _bodies(task.kernel, constants, resources.paths, pairs)
    if not bodies:
        return [row]
    products = {"bfloat16": 1, "float32": 6}[task.dtype]  # three of tf32, at half the rate
    if constants.get("KEPT"):
        products = 0
    per_depth = products * block_rows * block_columns / device.multiply_adds
    return [
        {
            **row,
            "body": body,
            "instructions_per_pair": round(instructions / pairs, 2),
            "exponentials_per_pair": round(exponentials / pairs, 2),
            "cycles": round(instructions * threads / _LANES),
            "matrix_cycles": {str(depth): round(depth * per_depth) for depth in DEPTHS},
        }
        for body, (instructions, exponentials) in bodies.items()
    ]


def _mode(constants: dict[str, Any]) -> str:
    """What the constants say of the problem, in words: whether it has references, and its order."""
    orders = {
        "any order": "in any order",
        "ascending": "in label order",
        "classes": "class weights",
    }
    # The triangle's are always in label order.
    order = orders[constants.get("LABELS", "ascending")]
    if order != "class weights" and not constants.get("SELF_MODE", True):
        order = f"references, {order}"
    if constants.get("MIRROR"):
        order += ", on the diagonal"
    if constants.get("KEEP"):
        order += ", keeping products"
    return f"{order}, from kept products" if constants.get("KEPT") else order


def _blocks(device: Any, threads: int, registers: int, shared_memory: int) -> int:
    """Blocks that a multiprocessor can hold at a time."""
    # Registers are given to a warp in units of 256, and each block takes 1 KB for the system.
    by_registers = 65_536 // (math.ceil(registers / 8) * 8 * threads)
    by_memory = device.multiprocessor_memory // (shared_memory + 1024)
    return max(1, min(by_registers, by_memory, device.threads // threads))


def _bodies(
    kernel: str, constants: dict[str, Any], paths: tuple[Any, ...], pairs: float
) -> dict[str, tuple[float, float]]:
    """Instructions and exponentials per thread of each body that a tile can take."""
    bodies: dict[str, tuple[float, float]] = {}
    whole = [path for path in paths if path.exponentials > 0 and path.part_exponentials == 0]
    if whole:
        in_order = constants.get("LABELS", "ascending") != "any order"
        name = "only negatives" if in_order else "both kinds"
        bodies[name] = (whole[0].instructions, whole[0].exponentials)
    parts = [path for path in paths if path.exponentials == 0]
    # The exact body takes an exponential for each kind of pair or each side of anchors, and a few
    # for each row. Tiles of one part have no loop over parts.
    kinds = 1 if kernel == "write_weights_kernel" and not constants["SELF_MODE"] else 2
    alone = [path for path in whole[1:] if abs(path.exponentials / pairs - kinds) < 0.5]
    if alone:
        bodies["exact"] = (alone[0].instructions, alone[0].exponentials)
    if parts:
        iterations = math.ceil(kinds * pairs / parts[0].part_exponentials)
        bodies["exact"] = (
            parts[0].instructions + iterations * parts[0].part_instructions,
            iterations * parts[0].part_exponentials,
        )
    return bodies


def exceeded_budgets(rows: list[dict[str, Any]]) -> list[str]:
    """What breaks a bound, in words."""
    problems = []
    for row in rows:
        name = _name(row)
        if row["spills"]:
            problems.append(f"{name}: {row['spills']} spills, none are allowed")
        if row["shared_memory"] > row["shared_memory_limit"]:
            problems.append(
                f"{name}: {row['shared_memory']} bytes of shared memory, "
                f"a block may take {row['shared_memory_limit']}"
            )
        held = row["target"] == "sm_90" and row["dtype"] == "bfloat16"
        if not held or not row["tile"].startswith("128x128") or "body" not in row:
            continue
        if not row["kernel"].startswith("sum_"):
            continue
        most = MOST_INSTRUCTIONS.get(row["body"])
        if most is not None and row["instructions_per_pair"] > most:
            problems.append(
                f"{name}: {row['instructions_per_pair']} instructions per pair, at most {most}"
            )
        if row["body"] == "only negatives":
            for depth, most_ratio in MOST_CYCLES.items():
                ratio = cycle_ratio(row, depth)
                if ratio is not None and ratio > most_ratio:
                    problems.append(
                        f"{name}: {ratio:.2f} of the matrix product's cycles at D={depth}, "
                        f"at most {most_ratio}"
                    )
    return problems


def got_worse(rows: list[dict[str, Any]], committed: list[dict[str, Any]]) -> list[str]:
    """Figures more than TOLERANCE of the committed ones, and rows that have none."""
    known = {_name(row): row for row in committed}
    problems = []
    for row in rows:
        before = known.get(_name(row))
        if before is None:
            problems.append(f"{_name(row)}: not in {_RESULTS.name}; run python -m bench kernels")
            continue
        for figure in ("registers", "shared_memory", "instructions_per_pair"):
            if figure in row and row[figure] > before[figure] * TOLERANCE:
                problems.append(f"{_name(row)}: {figure} {row[figure]}, was {before[figure]}")
    return problems


def _name(row: dict[str, Any]) -> str:
    keys = ("target", "dtype", "kernel", "mode", "tile", "num_warps", "body")
    return " ".join(str(row[key]) for key in keys if key in row)
