"""Where kernels meet devices: what can be used, on which hardware, and the launch itself."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from circle_kernels.backends.triton.primitives import REACH, load_tile
from circle_kernels.backends.triton.settings import INTERPRETER, Settings, nvidia_architecture
from circle_kernels.formula import CircleFormula, PairFormula, UnifiedFormula

# Triton decides when a kernel is defined, from TRITON_INTERPRET, whether it is interpreted.
INTERPRETED = not isinstance(load_tile, triton.runtime.JITFunction)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def status() -> str:
    """Whether Triton can be used in this process, as one sentence."""
    if INTERPRETED:
        return (
            "usable: in Triton's interpreter on float32 and float16 CPU tensors "
            "(TRITON_INTERPRET is set)"
        )
    if not torch.cuda.is_available():
        return "not usable: PyTorch sees no CUDA or ROCm device"
    reason = unusable_reason(torch.device("cuda"), torch.float32, CircleFormula())
    return "usable: on CUDA and ROCm tensors" if reason is None else f"not usable: {reason}"


def unusable_reason(device: torch.device, dtype: torch.dtype, formula: PairFormula) -> str | None:
    """Why the kernels cannot take these tensors with this formula; None where they can."""
    if type(formula) not in (CircleFormula, UnifiedFormula):
        return f"the Triton kernels have no code for {type(formula).__name__}"
    if dtype not in DTYPES:
        return f"the Triton kernels take float16, bfloat16 and float32, not {dtype}"
    if INTERPRETED:
        if device.type != "cpu":
            return "TRITON_INTERPRET is set, and the interpreter takes CPU tensors"
        if dtype == torch.bfloat16:
            # Some versions, 3.9 among them, multiply the 16 bits of each number as an integer.
            return (
                "TRITON_INTERPRET is set, and the interpreter's bfloat16 products are wrong; it "
                "takes float32 and float16, and backend='cpu' or 'tiled' takes bfloat16"
            )
        return None
    if device.type != "cuda":
        return (
            "the Triton kernels need a CUDA or ROCm device; "
            "set TRITON_INTERPRET=1 before importing triton to interpret them on the CPU"
        )
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "the Triton kernels need compute capability 8.0 (Ampere) or later"
    return None


@functools.cache
def device_family(device: torch.device) -> str:
    """The architecture that the device's settings are listed under, or those of its family."""
    if device.type != "cuda":
        return INTERPRETER
    if torch.version.hip is not None:
        # With features behind colons: gfx942:sramecc+:xnack-.
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    return nvidia_architecture(torch.cuda.get_device_capability(device))


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """How many programs it takes to give each multiprocessor one."""
    if device.type != "cuda":
        return 4  # interpreted: few, but enough to make small problems take the split paths
    return torch.cuda.get_device_properties(device).multi_processor_count


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make the tensors' device current: Triton launches on the current one."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    return contextlib.nullcontext()


def launch_kernel(
    kernel: Any,
    programs: int,
    arguments: Mapping[str, Tensor | int | float],
    constants: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
    max_registers: int | None = None,
) -> Any:
    """Launch a kernel on a one-dimensional grid, the only kind without a limit of 65,535.

    All launches pass through here, so that tests can see what would run on devices that they do
    not have. What comes back is what Triton compiled; None where it interprets.
    """
    return kernel[(programs,)](
        **arguments,
        **constants,
        num_warps=num_warps,
        num_stages=num_stages,
        # Multiply-adds are part of the error budget; some Triton versions default to none.
        enable_fp_fusion=True,
        **({} if max_registers is None else {"maxnreg": max_registers}),
    )


def launch_tiles(
    kernel: Any,
    programs: int,
    arguments: Mapping[str, Tensor | int | float],
    constants: Mapping[str, Any],
    settings: Settings,
) -> None:
    """:func:`launch_kernel` of a kernel that works on tiles of the similarity matrix."""
    blocks = {
        "BLOCK_ROWS": settings.block_rows,
        "BLOCK_COLUMNS": settings.block_columns,
        "BLOCK_DEPTH": settings.block_depth,
    }
    launch_kernel(
        kernel,
        programs,
        arguments,
        {**constants, **blocks},
        settings.num_warps,
        settings.num_stages,
        settings.max_registers,
    )


def coordinate_scale(formula: PairFormula) -> float:
    """Coordinate of a similarity of 1: what makes a squared distance a base-2 logit."""
    scale = float(formula.gamma) / math.log(2)
    return math.sqrt(scale) if formula.name == "circle" else scale


def formula_arguments(formula: PairFormula) -> dict[str, float]:
    """The formula's numbers, in coordinates, under the names that every kernel gives them.

    ``fixed_shift`` is what exponents are taken relative to where that needs no running maximum: no
    more than normalised pairs call for, since exponent and shift are rounded at their size.
    """
    optimum_pos, optimum_neg, margin_pos, margin_neg = formula.constants
    scale = coordinate_scale(formula)
    if formula.name == "circle":
        vertex_pos = scale * (optimum_pos + margin_pos) / 2
        floor_pos = scale * (margin_pos - optimum_pos) / 2
        vertex_neg = scale * (optimum_neg + margin_neg) / 2
        floor_neg = scale * (optimum_neg - margin_neg) / 2
        farthest = max(vertex_pos + scale, scale - vertex_neg, floor_pos, floor_neg)
        return {
            "vertex_pos": vertex_pos,
            "floor_pos": floor_pos,
            "vertex_neg": vertex_neg,
            "floor_neg": floor_neg,
            "fixed_shift": min(max(farthest**2 - REACH.value, 0.0), REACH.value),
        }
    return {
        "vertex_pos": scale * margin_pos,
        "floor_pos": 0.0,
        "vertex_neg": scale * margin_neg,
        "floor_neg": 0.0,
        "fixed_shift": 0.0,
    }
