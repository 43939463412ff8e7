"""The table of launch settings: settings.json beside this file, and a file that a user may name.

A file is an object whose ``entries`` are objects, one for each kernel, architecture, size of an
element and smallest depth; ``python -m bench tune`` writes such files.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Names a file whose entries go before those of the package.
SETTINGS_VARIABLE = "CIRCLE_KERNELS_TRITON_SETTINGS"

KERNELS = {
    "rectangle": "forward pass over every tile, with negatives only",
    "rectangle_in_any_order": "the same with both kinds of pairs, which take registers",
    "small_rectangle": "the same where so few large tiles would leave multiprocessors without one",
    "triangle": "forward pass over the tiles on and above the diagonal",
    "exact_sums": "forward pass over what these leave",
    "weights": "backward pass, of tiles with negatives only",
    "weights_in_any_order": "the same with both kinds of pairs",
    "exact_weights": "backward pass over what these leave",
    "small_batch": "both passes of small batches, each in one launch",
}
# Not a device: Triton's interpreter, which runs the kernels on CPU tensors.
INTERPRETER = "interpreter"
_ARCHITECTURE = re.compile(rf"sm_\d{{2,3}}|gfx[\w-]+|{INTERPRETER}")

# Matrix instructions take no less than 16; scales and labels are padded to multiples of 256.
_BLOCKS = (16, 32, 64, 128, 256)
_CHOICES = {
    "bytes": (2, 4),
    "block_rows": _BLOCKS,
    "block_columns": _BLOCKS,
    "block_depth": _BLOCKS,
    "num_warps": (1, 2, 4, 8, 16),
    "num_stages": (1, 2, 3, 4, 5, 6, 7, 8),
}
_REQUIRED = ("kernel", "family", *_CHOICES)
_OPTIONAL = ("depth", "max_registers", "column_slices", "note")
_COLUMN_SLICES = (1, 2, 4)
# What a thread of NVIDIA's devices can have.
_MOST_REGISTERS = 255

# Float32 tiles are multiplied in chunks of the depth, each summed apart and then added, and all
# kernels have to see the same bits of a similarity. The interpreter sums in float64.
FLOAT32_DEPTH = 32

_BUILT_IN = Path(__file__).with_name("settings.json")


@dataclass(frozen=True)
class Settings:
    """Tile shape and launch options of one kernel."""

    block_rows: int
    block_columns: int
    block_depth: int
    num_warps: int
    num_stages: int
    # Of a thread, where the compiler would rather spill a few to fit one more block (NVIDIA).
    max_registers: int | None = None
    # Of a tile, from products on one after the other: all at once they may not fit the registers.
    column_slices: int = 1


@dataclass(frozen=True)
class Entry:
    """Settings, and what they are for."""

    kernel: str  # of KERNELS
    family: str  # the first architecture of a family, or any architecture for itself
    bytes: int  # per element
    depth: int  # the smallest that takes them
    settings: Settings


# (kernel, family, bytes per element) -> (smallest depth, settings), the largest depth first.
Table = Mapping[tuple[str, str, int], tuple[tuple[int, Settings], ...]]


@functools.cache
def load_table() -> Table:
    """The package's entries, and in their place those of the file that the environment names.

    Raises:
        ValueError: a file that cannot be read, or an entry that is wrong; the message names both
            and says what is wanted.
    """
    entries = read_entries(_BUILT_IN)
    path = os.environ.get(SETTINGS_VARIABLE)
    if path:
        entries += read_entries(Path(path))
    return make_table(entries)


def make_table(entries: Iterable[Entry]) -> Table:
    """A table of entries; of two for the same the later one holds."""
    found: dict[tuple[str, str, int], dict[int, Settings]] = {}
    for entry in entries:
        key = (entry.kernel, entry.family, entry.bytes)
        found.setdefault(key, {})[entry.depth] = entry.settings
    return {
        key: tuple((depth, depths[depth]) for depth in sorted(depths, reverse=True))
        for key, depths in found.items()
    }


def is_architecture(name: object) -> bool:
    """Whether entries can be for it: ``sm_89``, ``gfx942`` and the like."""
    return isinstance(name, str) and _ARCHITECTURE.fullmatch(name) is not None


def read_entries(path: Path) -> list[Entry]:
    """The entries of a file, in its order; ValueError as in :func:`load_table`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"settings file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"settings file {path} is not JSON: {error}") from error
    rows = content.get("entries") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"settings file {path}: wanted an object with a list of 'entries'")
    entries: list[Entry] = []
    seen: dict[tuple[str, str, int, int], int] = {}
    for number, row in enumerate(rows, start=1):
        try:
            entry = _read_entry(row)
            first = seen.setdefault((entry.kernel, entry.family, entry.bytes, entry.depth), number)
            if first != number:
                raise ValueError(
                    f"wanted one for each kernel, family, bytes and depth, as entry {first} has"
                )
        except ValueError as error:
            raise ValueError(
                f"settings file {path}, entry {number} ({json.dumps(row)}): {error}"
            ) from error
        entries.append(entry)
    return entries


def _read_entry(row: Any) -> Entry:
    if not isinstance(row, dict):
        raise ValueError(f"wanted an object with {', '.join(_REQUIRED)}")
    missing = [name for name in _REQUIRED if name not in row]
    unknown = [name for name in row if name not in _REQUIRED and name not in _OPTIONAL]
    if missing or unknown:
        parts = [f"{', '.join(missing)} missing"] if missing else []
        parts += [f"{', '.join(unknown)} unknown"] if unknown else []
        raise ValueError(
            f"{' and '.join(parts)}: wanted {', '.join(_REQUIRED)} "
            f"and if need be {', '.join(_OPTIONAL)}"
        )
    kernel, family, depth = row["kernel"], row["family"], row.get("depth", 1)
    if kernel not in tuple(KERNELS):
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if not is_architecture(family):
        raise ValueError(f"family must be an architecture such as sm_89 or gfx942, got {family!r}")
    if type(depth) is not int or depth < 1:
        raise ValueError(f"depth must be a whole number of at least 1, got {depth!r}")
    for name, choices in {**_CHOICES, "column_slices": _COLUMN_SLICES}.items():
        value = row.get(name, 1)
        # True and 2.0 equal numbers that are wanted.
        if type(value) is not int or value not in choices:
            wanted = ", ".join(str(choice) for choice in choices)
            raise ValueError(f"{name} must be one of {wanted}, got {value!r}")
    settings = Settings(
        row["block_rows"],
        row["block_columns"],
        row["block_depth"],
        row["num_warps"],
        row["num_stages"],
        _read_max_registers(row.get("max_registers"), family),
        row.get("column_slices", 1),
    )
    reason = unusable_shape(kernel, settings)
    if reason is not None:
        raise ValueError(reason)
    if row["bytes"] == 4 and family != INTERPRETER and settings.block_depth != FLOAT32_DEPTH:
        raise ValueError(
            f"block_depth of 4 bytes must be {FLOAT32_DEPTH}, for all kernels to see the same bits "
            f"of a similarity, got {settings.block_depth}"
        )
    return Entry(kernel, family, row["bytes"], depth, settings)


def _read_max_registers(value: Any, family: str) -> int | None:
    if value is None:
        return None
    if not family.startswith("sm_"):
        raise ValueError(f"max_registers is an option of NVIDIA's devices, not of {family}")
    if type(value) is not int or not 1 <= value <= _MOST_REGISTERS:
        raise ValueError(
            f"max_registers must be a whole number of 1 to {_MOST_REGISTERS}, got {value!r}"
        )
    return value


def unusable_shape(kernel: str, settings: Settings) -> str | None:
    """What a kernel wants of its tiles' shape, where these settings have another; None if not."""
    rows, columns = settings.block_rows, settings.block_columns
    if ("weights" in kernel or kernel == "triangle") and rows < columns:
        return f"block_rows of {kernel} must be at least block_columns, got {rows} and {columns}"
    if settings.column_slices > 1 and "weights" not in kernel and "rectangle" not in kernel:
        return f"column_slices of {kernel} must be 1, got {settings.column_slices}"
    return None
