"""Launch settings by architecture, depth and dtype.

settings_table/settings.json has the entries. Every one of them compiles without spills and within
the shared memory of every device of its family, as ``python -m bench kernels --check`` holds. An
architecture without entries of its own takes those of its family, and one that nobody has named
those of the family with the least shared memory.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
import triton

from circle_kernels.backends.triton.settings_table import (
    INTERPRETER,
    Settings,
    Table,
    is_architecture,
    load_table,
)

__all__ = [
    "INTERPRETER",
    "Settings",
    "amd_architecture",
    "dot_precision",
    "find_settings",
    "fit_depth",
    "fit_tile",
    "is_amd",
    "listed_depths",
    "listed_settings",
    "nvidia_architecture",
    "settings_family",
]

# The families: NVIDIA's architectures by the one with the least shared memory, 99 KB for a block.
_NVIDIA_FAMILY = "sm_86"
_AMD_FAMILY = "gfx942"

_TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
_INTERPRETS_FLOAT64_DOT = _TRITON >= (3, 6)
# Before, slices of a tile went through shared memory, more of it than there is.
_SLICES_IN_REGISTERS = _TRITON >= (3, 4)

# The smallest chunk of the depth that a matrix instruction takes, whatever the dtype.
_MIN_BLOCK_DEPTH = 16


def nvidia_architecture(capability: tuple[int, int]) -> str:
    """What a device of this compute capability is compiled for: ``sm_89`` for (8, 9)."""
    major, minor = capability
    return f"sm_{major}{minor}"


def amd_architecture(name: str) -> str:
    """What ROCm calls a device, without the features behind colons: gfx942:sramecc+:xnack-."""
    return name.partition(":")[0]


def is_amd(architecture: str) -> bool:
    """Whether an architecture is one of AMD's."""
    return architecture.startswith("gfx")


@functools.cache
def settings_family(architecture: str) -> str:
    """The family whose entries an architecture takes where it has none of its own.

    Raises:
        ValueError: the name of no architecture.
    """
    if not is_architecture(architecture):
        raise ValueError(f"wanted an architecture such as sm_89 or gfx942, got {architecture!r}")
    if architecture == INTERPRETER:
        return INTERPRETER
    if is_amd(architecture):
        return _AMD_FAMILY
    return _NVIDIA_FAMILY


def dot_precision(architecture: str, dtype: torch.dtype, precision: str) -> str:
    """How float32 tiles are multiplied: three tf32 products unless the user allowed fewer bits.

    A ``precision`` of ``"high"`` or ``"medium"`` (precision.py) allows plain tf32. AMD's matrix
    instructions take float32 as it is. The interpreter multiplies with numpy, which adds up in an
    order that depends on the tile's shape, so that forward and backward would see different
    similarities of one pair, as they do not on a device; in float64 the order does not show.
    On devices half types ignore the answer.
    """
    if architecture == INTERPRETER:
        return "float64" if _INTERPRETS_FLOAT64_DOT else "ieee"
    if dtype != torch.float32 or is_amd(architecture):
        return "ieee"
    return "tf32x3" if precision == "highest" else "tf32"


def listed_settings(
    kernel: str, architecture: str, itemsize: int, depth: int, table: Table | None = None
) -> Settings:
    """What a table, or that of the package, has for a depth: its own or its family's."""
    table = load_table() if table is None else table
    for family in (architecture, settings_family(architecture)):
        for smallest, settings in table.get((kernel, family, itemsize), ()):
            if depth >= smallest:
                return settings
    raise AssertionError(f"settings.json has no {kernel} of {itemsize} bytes for {architecture}")


def listed_depths(kernel: str, architecture: str, itemsize: int) -> list[int]:
    """Depths above 1 from which the table has other settings for an architecture, ascending."""
    table = load_table()
    families = (architecture, settings_family(architecture))
    entries = [entry for family in families for entry in table.get((kernel, family, itemsize), ())]
    return sorted({depth for depth, _ in entries if depth > 1})


def fit_depth(settings: Settings, depth: int) -> Settings:
    """No chunk larger than the depth needs."""
    needed = max(_MIN_BLOCK_DEPTH, 1 << (depth - 1).bit_length())
    return replace(settings, block_depth=min(settings.block_depth, needed))


def fit_tile(settings: Settings, tile: Settings) -> Settings:
    """No block larger than a tile: tiles are left one by one to kernels that pass them in blocks.

    Entries are chosen kernel by kernel, those of a user's file too, so nothing else holds them to
    each other.
    """
    return replace(
        settings,
        block_rows=min(settings.block_rows, tile.block_rows),
        block_columns=min(settings.block_columns, tile.block_columns),
    )


def find_settings(
    kernel: str, architecture: str, dtype: torch.dtype, depth: int, table: Table | None = None
) -> Settings:
    """The settings of one of ``settings_table.KERNELS``."""
    settings = listed_settings(kernel, architecture, dtype.itemsize, depth, table)
    if not _SLICES_IN_REGISTERS:
        settings = replace(settings, column_slices=1)
    return fit_depth(settings, depth)
