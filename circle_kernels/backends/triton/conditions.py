"""What plans go by, as values: the hardware, limits, and the table of launch settings.

They are the device's, the package's and those of the settings files, unless :func:`assuming` says
otherwise: plans for a device that is not there, or under other limits, are made by the same code.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from circle_kernels.backends.triton.settings import (
    INTERPRETER,
    Settings,
    amd_architecture,
    find_settings,
    is_amd,
    nvidia_architecture,
)
from circle_kernels.backends.triton.settings_table import Table, load_table


class Hardware(NamedTuple):
    """What of a device decides how work is split."""

    architecture: str  # that its settings are listed under, or under its family's: sm_90, gfx942
    multiprocessors: int

    @property
    def is_amd(self) -> bool:
        return is_amd(self.architecture)


@dataclass(frozen=True)
class Limits:
    """Bytes that may be taken, and sizes from which one way of working pays more than another.

    Attributes:
        partial_bytes: of partial sums. Every tile of a triangle leaves a number for each of its
            rows, so large batches go in bands of blocks, and what a band leaves is merged before
            the next one.
        workspace_bytes: of weights of the backward pass: less than the second-level cache of large
            devices (50 MB on an H100), so that the products can find there what the kernel before
            them wrote.
        sides_bytes: of prepared sides that are left for the backward pass: with small batches,
            preparing them again is one launch of few; large ones would hold a second copy of their
            embeddings between the passes.
        smallest_band: blocks that a band has whatever its size: fewer would not fill a device.
        triangle_run: tiles that a program of a triangle visits: few enough to spread, enough to
            share a block.
        sorted_tiles: tiles of 128x128 per multiprocessor from which sorting by label pays, and in
            self mode with it the triangle. Sorting costs a few launches and a copy; it saves half
            of the work around the product, and the triangle half of the product.
        small_rows, small_row_bytes: of batches compared with themselves that take one launch for
            each pass: what those save counts more there than how well they use the device. A
            program holds the gradient of its rows in registers, and deeper ones would not fit.
        class_columns: class weights from which most tiles have no row's class among their columns,
            so that looking pays. Of 128 rows a tile of C / 128 has one with a probability of
            128 * 128 / C, and is then multiplied twice.
    """

    partial_bytes: int = 32 * 2**20
    workspace_bytes: int = 32 * 2**20
    sides_bytes: int = 8 * 2**20
    smallest_band: int = 8
    triangle_run: int = 8
    sorted_tiles: int = 24
    small_rows: int = 1024
    small_row_bytes: int = 2048
    class_columns: int = 2**17


class Conditions(NamedTuple):
    """What a plan goes by."""

    hardware: Hardware
    limits: Limits
    table: Table

    def settings(self, kernel: str, dtype: torch.dtype, depth: int) -> Settings:
        """The settings of one of ``settings_table.KERNELS``."""
        return find_settings(kernel, self.hardware.architecture, dtype, depth, self.table)


@dataclass(frozen=True)
class _Assumed:
    hardware: Hardware | None = None
    limits: Limits = Limits()
    table: Table | None = None


_assumed = _Assumed()


@contextlib.contextmanager
def assuming(**assumed: Any) -> Iterator[None]:
    """Have other ``hardware``, ``limits`` or a ``table`` in place of the usual ones.

    What is not named stays as it is. Under assumed hardware no driver is asked for anything, and
    launches have to be kept from running (``launch.observe_launches``).
    """
    global _assumed
    before = _assumed
    _assumed = replace(before, **assumed)
    try:
        yield
    finally:
        _assumed = before


def conditions_on(device: torch.device) -> Conditions:
    """What plans for a device go by.

    Raises:
        ValueError: a settings file that is not as it should be.
    """
    assumed = _assumed
    return Conditions(
        assumed.hardware or hardware_of(device),
        assumed.limits,
        load_table() if assumed.table is None else assumed.table,
    )


def hardware_is_assumed() -> bool:
    """Whether plans are made for a device that need not be there."""
    return _assumed.hardware is not None


@functools.cache
def hardware_of(device: torch.device) -> Hardware:
    """The hardware that is there."""
    if device.type != "cuda":
        # Interpreted. Few, but enough to make small problems take the split paths.
        return Hardware(INTERPRETER, 4)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        architecture = amd_architecture(properties.gcnArchName)
    else:
        architecture = nvidia_architecture(torch.cuda.get_device_capability(device))
    return Hardware(architecture, properties.multi_processor_count)
