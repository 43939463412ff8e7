"""Launch settings by architecture, depth and dtype.

Every entry compiles without spills and within the shared memory of every device of its family;
tests/test_triton_compile.py holds that for all of them. Devices that the table has never seen take
the family with the least shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton


@dataclass(frozen=True)
class Settings:
    """Tile shape and launch options of one kernel."""

    block_rows: int
    block_columns: int
    block_depth: int
    num_warps: int
    num_stages: int


# Compute capability of NVIDIA devices -> family, named after its first member.
NVIDIA_FAMILIES = {
    (8, 0): "sm_80",
    (9, 0): "sm_90",
    (10, 0): "sm_100",
    (10, 3): "sm_100",
}
# 99 KB of shared memory per block: consumer and inference cards (8.6, 8.9, 12.0, ...).
SMALL_NVIDIA_FAMILY = "sm_86"
AMD_FAMILY = "gfx942"
# Not a device: Triton's interpreter, which runs the kernels on CPU tensors.
INTERPRETER = "interpreter"

_INTERPRETS_FLOAT64_DOT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)

# (family, bytes per element) -> settings. Forward pass over every tile:
_RECTANGLE = {
    ("sm_80", 2): Settings(128, 128, 64, num_warps=8, num_stages=3),
    ("sm_80", 4): Settings(128, 32, 32, num_warps=8, num_stages=2),
    ("sm_86", 2): Settings(128, 128, 64, num_warps=8, num_stages=3),
    ("sm_86", 4): Settings(128, 32, 32, num_warps=8, num_stages=2),
    ("sm_90", 2): Settings(128, 128, 64, num_warps=8, num_stages=3),
    ("sm_90", 4): Settings(128, 64, 32, num_warps=8, num_stages=2),
    ("sm_100", 2): Settings(128, 128, 64, num_warps=8, num_stages=3),
    ("sm_100", 4): Settings(128, 64, 32, num_warps=8, num_stages=2),
    ("gfx942", 2): Settings(128, 128, 64, num_warps=8, num_stages=2),
    ("gfx942", 4): Settings(128, 64, 32, num_warps=8, num_stages=2),
    ("interpreter", 2): Settings(64, 64, 64, num_warps=4, num_stages=1),
    ("interpreter", 4): Settings(64, 64, 64, num_warps=4, num_stages=1),
}
# The same where so few large tiles would leave multiprocessors without one:
_SMALL_RECTANGLE = {
    ("sm_80", 2): Settings(64, 64, 64, num_warps=4, num_stages=3),
    ("sm_80", 4): Settings(64, 32, 32, num_warps=4, num_stages=2),
    ("sm_86", 2): Settings(64, 64, 64, num_warps=4, num_stages=3),
    ("sm_86", 4): Settings(64, 32, 32, num_warps=4, num_stages=2),
    ("sm_90", 2): Settings(64, 64, 64, num_warps=4, num_stages=3),
    ("sm_90", 4): Settings(64, 64, 32, num_warps=4, num_stages=2),
    ("sm_100", 2): Settings(64, 64, 64, num_warps=4, num_stages=3),
    ("sm_100", 4): Settings(64, 32, 16, num_warps=4, num_stages=2),
    ("gfx942", 2): Settings(64, 64, 64, num_warps=4, num_stages=2),
    ("gfx942", 4): Settings(64, 64, 32, num_warps=4, num_stages=2),
    ("interpreter", 2): Settings(64, 64, 64, num_warps=4, num_stages=1),
    ("interpreter", 4): Settings(64, 64, 64, num_warps=4, num_stages=1),
}
# The same where products are kept, if they take registers that large tiles do not have:
_KEEPING_RECTANGLE = {
    ("sm_80", 2): Settings(128, 64, 64, num_warps=8, num_stages=3),
    ("sm_86", 2): Settings(128, 64, 64, num_warps=8, num_stages=3),
    ("sm_100", 2): Settings(128, 64, 64, num_warps=8, num_stages=3),
}
# Forward pass over the tiles on and above the diagonal, which are square:
_TRIANGLE = {
    ("sm_80", 2): Settings(64, 64, 64, num_warps=4, num_stages=3),
    ("sm_80", 4): Settings(32, 32, 32, num_warps=4, num_stages=2),
    ("sm_86", 2): Settings(128, 128, 64, num_warps=8, num_stages=3),
    ("sm_86", 4): Settings(64, 64, 16, num_warps=8, num_stages=2),
    ("sm_90", 2): Settings(128, 128, 64, num_warps=8, num_stages=3),
    ("sm_90", 4): Settings(64, 64, 32, num_warps=8, num_stages=2),
    # 128x128 ends in a failed assertion of Triton 3.9.
    ("sm_100", 2): Settings(64, 64, 64, num_warps=4, num_stages=3),
    ("sm_100", 4): Settings(64, 64, 32, num_warps=8, num_stages=2),
    ("gfx942", 2): Settings(64, 64, 64, num_warps=4, num_stages=2),
    ("gfx942", 4): Settings(64, 64, 32, num_warps=8, num_stages=2),
    ("interpreter", 2): Settings(64, 64, 64, num_warps=4, num_stages=1),
    ("interpreter", 4): Settings(64, 64, 64, num_warps=4, num_stages=1),
}
# Backward pass: weights to the workspace, in label order:
_WEIGHTS = {
    ("sm_80", 2): Settings(64, 64, 64, num_warps=4, num_stages=3),
    ("sm_80", 4): Settings(64, 32, 32, num_warps=4, num_stages=2),
    ("sm_86", 2): Settings(64, 32, 64, num_warps=4, num_stages=3),
    ("sm_86", 4): Settings(64, 32, 32, num_warps=4, num_stages=2),
    ("sm_90", 2): Settings(128, 128, 64, num_warps=8, num_stages=3),
    ("sm_90", 4): Settings(64, 64, 32, num_warps=4, num_stages=2),
    ("sm_100", 2): Settings(64, 64, 64, num_warps=8, num_stages=3),
    ("sm_100", 4): Settings(64, 32, 32, num_warps=4, num_stages=2),
    ("gfx942", 2): Settings(64, 64, 64, num_warps=4, num_stages=2),
    ("gfx942", 4): Settings(64, 64, 32, num_warps=4, num_stages=2),
    ("interpreter", 2): Settings(64, 64, 64, num_warps=4, num_stages=1),
    ("interpreter", 4): Settings(64, 64, 64, num_warps=4, num_stages=1),
}
# The same in any order, where both kinds of pairs take registers:
_WEIGHTS_IN_ANY_ORDER = {
    ("sm_80", 2): Settings(64, 64, 64, num_warps=4, num_stages=3),
    ("sm_80", 4): Settings(64, 32, 32, num_warps=4, num_stages=2),
    ("sm_86", 2): Settings(64, 32, 64, num_warps=4, num_stages=3),
    ("sm_86", 4): Settings(64, 32, 16, num_warps=4, num_stages=2),
    ("sm_90", 2): Settings(64, 64, 64, num_warps=4, num_stages=3),
    ("sm_90", 4): Settings(64, 64, 32, num_warps=8, num_stages=2),
    ("sm_100", 2): Settings(64, 32, 64, num_warps=4, num_stages=3),
    ("sm_100", 4): Settings(64, 64, 16, num_warps=8, num_stages=2),
    ("gfx942", 2): Settings(64, 64, 64, num_warps=4, num_stages=2),
    ("gfx942", 4): Settings(64, 64, 32, num_warps=4, num_stages=2),
    ("interpreter", 2): Settings(64, 64, 64, num_warps=4, num_stages=1),
    ("interpreter", 4): Settings(64, 64, 64, num_warps=4, num_stages=1),
}
# Weights from products that were kept: without a product of its own the kernel is the same for all.
_WEIGHTS_OF_KEPT = Settings(64, 32, 16, num_warps=4, num_stages=2)
# The smallest chunk of the depth that a matrix instruction takes, whatever the dtype.
_MIN_BLOCK_DEPTH = 16


def nvidia_family(capability: tuple[int, int]) -> str:
    """The rows of the table that a device of this compute capability takes."""
    return NVIDIA_FAMILIES.get(capability, SMALL_NVIDIA_FAMILY)


def dot_precision(family: str, dtype: torch.dtype) -> str:
    """How float32 tiles are multiplied: three tf32 products unless the user allowed fewer bits.

    ``torch.set_float32_matmul_precision("high")`` or ``"medium"`` allows plain tf32. AMD's matrix
    instructions take float32 as it is. The interpreter multiplies with numpy, which adds up in an
    order that depends on the tile's shape, so that forward and backward would see different
    similarities of one pair, as they do not on a device; in float64 the order does not show.
    Half types ignore the answer.
    """
    if dtype != torch.float32 or family == AMD_FAMILY:
        return "ieee"
    if family == INTERPRETER:
        return "float64" if _INTERPRETS_FLOAT64_DOT else "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def rectangle_settings(
    family: str, dtype: torch.dtype, depth: int, small: bool, keeping: bool
) -> Settings:
    """Settings of the forward kernel over every tile, for ``small`` problems or for others."""
    table = _SMALL_RECTANGLE if small else _RECTANGLE
    if keeping and not small:
        table = _RECTANGLE | _KEEPING_RECTANGLE
    return _fit_depth(table[family, dtype.itemsize], depth)


def triangle_settings(family: str, dtype: torch.dtype, depth: int) -> Settings:
    """Settings of the forward kernel over the tiles on and above the diagonal."""
    return _fit_depth(_TRIANGLE[family, dtype.itemsize], depth)


def weights_settings(
    family: str, dtype: torch.dtype, depth: int, by_label: bool, kept: bool
) -> Settings:
    """Settings of the kernel that writes weights, in label order or in any, or from ``kept``."""
    if kept:
        return _WEIGHTS_OF_KEPT
    table = _WEIGHTS if by_label else _WEIGHTS_IN_ANY_ORDER
    return _fit_depth(table[family, dtype.itemsize], depth)


def _fit_depth(settings: Settings, depth: int) -> Settings:
    """No chunk larger than the depth needs."""
    needed = max(_MIN_BLOCK_DEPTH, 1 << (depth - 1).bit_length())
    return replace(settings, block_depth=min(settings.block_depth, needed))
