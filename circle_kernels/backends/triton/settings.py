"""Launch settings by architecture, depth and dtype.

Every entry compiles without spills and within the shared memory of every device of its family;
tests/test_triton_compile.py holds that for all of them. Devices that the table has never seen take
the family with the least shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Settings:
    """Tile shape and launch options of one kernel."""

    block_rows: int
    block_columns: int
    block_depth: int
    num_warps: int
    num_stages: int


# Compute capability of NVIDIA devices -> family, named after its first member.
NVIDIA_FAMILIES = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_90", (10, 3): "sm_90"}
# 99 KB of shared memory per block: consumer and inference cards (8.6, 8.9, 12.0, ...).
SMALL_NVIDIA_FAMILY = "sm_86"
AMD_FAMILY = "gfx942"


def nvidia_family(capability: tuple[int, int]) -> str:
    """The row of the table that a device of this compute capability takes."""
    return NVIDIA_FAMILIES.get(capability, SMALL_NVIDIA_FAMILY)


def dot_precision(family: str, dtype: torch.dtype) -> str:
    """How float32 tiles are multiplied: three tf32 products unless the user allowed fewer bits.

    ``torch.set_float32_matmul_precision("high")`` or ``"medium"`` allows plain tf32. AMD's matrix
    instructions take float32 as it is. Half types ignore the answer.
    """
    if family == AMD_FAMILY or dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


# (family, bytes per element) -> settings of the forward kernel and of the workspace kernel.
_FORWARD = {
    ("sm_80", 2): Settings(128, 64, 64, num_warps=8, num_stages=3),
    ("sm_80", 4): Settings(64, 64, 32, num_warps=4, num_stages=2),
    ("sm_86", 2): Settings(128, 64, 64, num_warps=8, num_stages=3),
    ("sm_86", 4): Settings(64, 64, 32, num_warps=4, num_stages=2),
    ("sm_90", 2): Settings(128, 128, 64, num_warps=8, num_stages=3),
    ("sm_90", 4): Settings(64, 64, 32, num_warps=4, num_stages=2),
    ("gfx942", 2): Settings(64, 64, 64, num_warps=4, num_stages=2),
    ("gfx942", 4): Settings(64, 64, 32, num_warps=4, num_stages=2),
}
_WEIGHTS = dict(_FORWARD)


def max_register_depth(family: str, dtype: torch.dtype) -> int:
    """Up to which depth the backward pass keeps its sums in registers."""
    return 256


def forward_settings(family: str, dtype: torch.dtype) -> Settings:
    """Settings of the forward kernel."""
    return _FORWARD[family, dtype.itemsize]


def weights_settings(family: str, dtype: torch.dtype) -> Settings:
    """Settings of the kernel that writes weights to the workspace."""
    return _WEIGHTS[family, dtype.itemsize]


def accumulate_settings(family: str, dtype: torch.dtype, depth: int) -> Settings:
    """Settings of the backward kernel that keeps its sums in registers."""
    return Settings(64, 32, max(16, 1 << (depth - 1).bit_length()), num_warps=4, num_stages=2)
