"""What a run of ``python -m bench tune`` tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Extent(NamedTuple):
    """How many of the settings that can be worth a try are tried."""

    same_tile: bool = False  # only other warps and stages for the current tile
    most: int | None = None  # those nearest to the current ones; None for all


EVERYTHING = Extent()
QUICK = Extent(same_tile=True)


@dataclass(frozen=True)
class Search:
    """What one run tries."""

    kernels: Sequence[str]  # the most important first
    dtypes: Sequence[str]  # as well
    depths: Sequence[int]  # ascending
    device: str
    extent: Extent = EVERYTHING
