"""Where kernels meet devices: what can be used, and the launch itself, which can be observed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from circle_kernels.backends.triton.conditions import hardware_is_assumed
from circle_kernels.backends.triton.formula.arguments import has_code
from circle_kernels.backends.triton.interpreted import takes_bfloat16
from circle_kernels.backends.triton.primitives import load_tile
from circle_kernels.backends.triton.settings import Settings
from circle_kernels.formula import CircleFormula, PairFormula

# Triton decides when a kernel is defined, from TRITON_INTERPRET, whether it is interpreted.
INTERPRETED = not isinstance(load_tile, triton.runtime.JITFunction)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def status() -> str:
    """Whether Triton can be used in this process, as one sentence."""
    if INTERPRETED:
        dtypes = "float32, float16 and bfloat16" if takes_bfloat16() else "float32 and float16"
        return f"usable: in Triton's interpreter on {dtypes} CPU tensors (TRITON_INTERPRET is set)"
    if not torch.cuda.is_available():
        return "not usable: PyTorch sees no CUDA or ROCm device"
    reason = unusable_reason(torch.device("cuda"), torch.float32, CircleFormula())
    return "usable: on CUDA and ROCm tensors" if reason is None else f"not usable: {reason}"


def unusable_reason(device: torch.device, dtype: torch.dtype, formula: PairFormula) -> str | None:
    """Why the kernels cannot take these tensors with this formula; None where they can."""
    if not has_code(formula):
        return f"the Triton kernels have no code for {type(formula).__name__}"
    if dtype not in DTYPES:
        return f"the Triton kernels take float16, bfloat16 and float32, not {dtype}"
    if hardware_is_assumed():
        return None
    if INTERPRETED:
        if device.type != "cpu":
            return "TRITON_INTERPRET is set, and the interpreter takes CPU tensors"
        if dtype == torch.bfloat16 and not takes_bfloat16():
            return (
                "TRITON_INTERPRET is set, and the interpreter multiplies or rounds bfloat16 "
                "wrongly; it takes float32 and float16, and backend='cpu' or 'tiled' takes bfloat16"
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


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make the tensors' device current: Triton launches on the current one."""
    if device.type == "cuda" and not hardware_is_assumed():
        return torch.cuda.device(device)
    return contextlib.nullcontext()


# Of a kernel; None in place of a pointer to what is not there.
Argument = Tensor | int | float | None


class Launch(NamedTuple):
    """One launch of a kernel, on a one-dimensional grid."""

    kernel: Any
    programs: int
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int | None

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told."""
        return _compiler_options(self.num_warps, self.num_stages, self.max_registers)

    @property
    def settings(self) -> Settings | None:
        """The settings of a kernel that works on tiles of the similarity matrix."""
        if "BLOCK_COLUMNS" not in self.constants:
            return None
        return Settings(
            self.constants["BLOCK_ROWS"],
            self.constants["BLOCK_COLUMNS"],
            self.constants["BLOCK_DEPTH"],
            self.num_warps,
            self.num_stages,
            self.max_registers,
            self.constants.get("COLUMN_SLICES", 1),
        )


# Takes a launch's place: it gets what would be launched, and what launches it.
Observer = Callable[[Launch, Callable[[Launch], Any]], Any]

_observed: Callable[[Launch], Any] | None = None


@contextlib.contextmanager
def observe_launches(observer: Observer) -> Iterator[None]:
    """Have ``observer(launch, proceed)`` called in place of every launch, in this process.

    ``proceed(launch)`` launches; an observer that does not call it leaves results as they are in
    memory. What the observer returns is what the launch returns. Of two the later one comes first,
    and its ``proceed`` calls the other.
    """
    global _observed
    before = _observed
    proceed = before or (lambda launch: _run(*launch))
    _observed = lambda launch: observer(launch, proceed)  # noqa: E731
    try:
        yield
    finally:
        _observed = before


def launch_kernel(
    kernel: Any,
    programs: int,
    arguments: Mapping[str, Argument],
    constants: Mapping[str, Any] = MappingProxyType({}),
    num_warps: int = 4,
    num_stages: int = 1,
    max_registers: int | None = None,
) -> Any:
    """Launch a kernel on a one-dimensional grid, the only kind without a limit of 65,535.

    All launches pass through here. What comes back is what Triton compiled; None where it
    interprets.
    """
    if _observed is not None:
        return _observed(
            Launch(kernel, programs, arguments, constants, num_warps, num_stages, max_registers)
        )
    return _run(kernel, programs, arguments, constants, num_warps, num_stages, max_registers)


def _run(
    kernel: Any,
    programs: int,
    arguments: Mapping[str, Argument],
    constants: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
    max_registers: int | None,
) -> Any:
    options = _compiler_options(num_warps, num_stages, max_registers)
    return kernel[(programs,)](**arguments, **constants, **options)


def _compiler_options(num_warps: int, num_stages: int, max_registers: int | None) -> dict[str, Any]:
    # Multiply-adds are part of the error budget; some Triton versions default to none.
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if max_registers is not None:
        options["maxnreg"] = max_registers
    return options


def launch_tiles(
    kernel: Any,
    programs: int,
    arguments: Mapping[str, Argument],
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
