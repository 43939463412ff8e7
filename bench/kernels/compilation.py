"""The tile kernels that a device would launch, compiled for it, as rows for a results file."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bench.reporting.errors import UserError
from bench.reporting.progress import progress_bar
from circle_kernels import CircleFormula

if TYPE_CHECKING:  # which imports Triton
    from bench.offline.compiled import Specialization

DEPTHS = (128, 512, 1024)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Problem(NamedTuple):
    """What kernels are looked at for."""

    num_rows: int
    depth: int
    num_references: int | None = None
    classes: bool = False  # references are class weights


PROBLEMS = (
    Problem(256, 64),
    Problem(256, 256),
    Problem(256, 512),
    Problem(256, 1024),
    Problem(4096, 64),
    Problem(16_384, 128),
    Problem(16_384, 128, 16_384),
    Problem(512, 128, 1000, classes=True),
    Problem(512, 128, 1_000_000, classes=True),
)

_LANES = 128  # instructions of threads that a multiprocessor issues in a cycle


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
    chosen = [
        (target, number)
        for target in targets or DEVICES
        for number in range(len(_tile_kernels(target)))
    ]
    # Each in a process of its own kind: a compiler that fails an assertion takes only that one.
    context = multiprocessing.get_context("spawn")
    found = []
    with context.Pool(os.cpu_count()) as pool, progress_bar(len(chosen), "kernel") as progress:
        for rows in pool.imap(_compile, chosen):
            found.extend(rows)
            progress.update()
    return found


@functools.cache
def _tile_kernels(target: str) -> list[tuple[str, Specialization]]:
    """The different tile kernels that a target would launch, each with its dtype."""
    from bench.offline.compiled import specialize
    from bench.offline.pretended import DEVICES, plan_launches

    found: dict[Specialization, str] = {}
    for dtype, torch_dtype in DTYPES.items():
        for problem in PROBLEMS:
            launches = plan_launches(
                DEVICES[target],
                dtype=torch_dtype,
                formula=CircleFormula(),
                **problem._asdict(),
            )
            for launch in launches:
                if launch.settings is not None:
                    found.setdefault(specialize(launch), dtype)
    return [(dtype, kernel) for kernel, dtype in found.items()]


def _compile(chosen: tuple[str, int]) -> list[dict[str, Any]]:
    target, number = chosen
    return describe_kernel(target, *_tile_kernels(target)[number])


def describe_kernel(target: str, dtype: str, kernel: Specialization) -> list[dict[str, Any]]:
    """Compile a tile kernel; one row for each of its bodies."""
    from bench.offline.compiled import compile_for
    from bench.offline.pretended import DEVICES

    device = DEVICES[target]
    name = kernel.kernel.__name__
    resources = compile_for(device, kernel)
    constants, options = dict(kernel.constants), dict(kernel.options)
    block_rows, block_columns = constants["BLOCK_ROWS"], constants["BLOCK_COLUMNS"]
    warp_size = device.target.warp_size
    threads = options["num_warps"] * warp_size
    row: dict[str, Any] = {
        "target": target,
        "dtype": dtype,
        "kernel": name,
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
    bodies = _bodies(name, constants, resources.paths, pairs)
    if not bodies:
        return [row]
    products = {"bfloat16": 1, "float32": 6}[dtype]  # three of tf32, at half the rate
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
        "listed": "listed",
    }
    if "OPERAND" in constants:
        depth = constants.get("WHOLE_DEPTH")  # of registers that hold a gradient
        return "small batch" if depth is None else f"small batch, D to {depth}"
    # The triangle's are always in label order.
    order = orders[constants.get("LABELS", "ascending")]
    if order != "class weights" and not constants.get("SELF_MODE", True):
        order = f"references, {order}"
    if constants.get("MIRROR"):
        order += ", on the diagonal"
    return order


def _blocks(device: Any, threads: int, registers: int, shared_memory: int) -> int:
    """Blocks that a multiprocessor can hold at a time."""
    # Registers are given to a warp in units of 256, and each block takes 1 KB for the system.
    by_registers = 65_536 // (math.ceil(registers / 8) * 8 * threads)
    by_memory = device.multiprocessor_memory // (shared_memory + 1024)
    return max(1, min(by_registers, by_memory, device.threads // threads))


def _bodies(
    kernel: str, constants: dict[str, Any], paths: tuple[Any, ...], pairs: float
) -> dict[str, tuple[float, float]]:
    """Instructions and exponentials per thread of the body that the kernel has for a tile."""
    if not paths:  # AMD's machine code is not looked into
        return {}
    exact = constants.get("TILES", "served") != "served"
    exact = exact or kernel == "sum_exactly_kernel" or kernel.startswith("small_")
    if not exact:
        in_order = constants.get("LABELS", "ascending") in ("ascending", "classes")
        name = "only negatives" if in_order else "both kinds"
        return {name: (paths[0].instructions, paths[0].exponentials)}
    return {"exact": (paths[0].instructions, paths[0].exponentials)}
