"""Launch settings of devices, for the interpreter."""

from __future__ import annotations

from circle_kernels.backends.triton.settings import listed_depths, listed_settings
from circle_kernels.backends.triton.settings_table import INTERPRETER, KERNELS, Table


def interpreted_table(architecture: str) -> Table:
    """A table that has the interpreter take the tiles of a device."""
    return {
        (kernel, INTERPRETER, size): tuple(
            (depth, listed_settings(kernel, architecture, size, depth))
            for depth in (*reversed(listed_depths(kernel, architecture, size)), 1)
        )
        for kernel in KERNELS
        for size in (2, 4)
    }
