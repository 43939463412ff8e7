"""Rows that the processes of a group have between them, as each of them gets to see the others'.

Either everybody's are gathered, or blocks of them travel from process to process in a ring, so that
none has more than three at a time. Only rows and numbers of rows are ever sent, no gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from circle_kernels.distributed.collectives import gather_rows, start_exchange, wait_for

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# What travels in a ring begins at a multiple of so many bytes, so that kernels load it in wide
# pieces.
_ALIGNMENT = 64

Block: TypeAlias = tuple[Tensor, ...]  # tensors with one entry or row for each of some rows


@dataclass(frozen=True)
class Spread:
    """Of which processes each has how many rows, and how they get to see one another's."""

    sizes: tuple[int, ...]
    group: ProcessGroup
    ring: bool  # whether blocks travel

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def own(self) -> slice:
        """This process's among all rows."""
        first = sum(self.sizes[: self.rank])
        return slice(first, first + self.sizes[self.rank])

    def gather(self, local: Block) -> Block:
        """Everybody's rows, from those of this process."""
        return tuple(gather_rows(tensor, self.sizes, self.group) for tensor in local)

    def columns(self, local: Block) -> Columns:
        """What every process has, from what this one has."""
        return Columns(local if self.ring else self.gather(local), self)


@dataclass(frozen=True)
class Columns:
    """Rows of all processes in the order of their ranks."""

    held: Block  # all of them where they are gathered, this process's in a ring
    spread: Spread

    @property
    def own(self) -> Block:
        """This process's rows."""
        return self.held if self.spread.ring else _rows(self.held, self.spread.own)

    def others(self, *local: Tensor) -> Iterator[Block]:
        """The rows of other processes in blocks, and with them what ``local`` has of each.

        Called at once and read later, it has the first block travel meanwhile.
        """
        if self.spread.ring:
            return _travelling((*self.held, *local), self.spread)
        held, own = (*self.held, *self.spread.gather(local)), self.spread.own
        return iter([_rows(held, slice(0, own.start)), _rows(held, slice(own.stop, None))])

    def everything(self, *local: Tensor) -> Iterator[Block]:
        """The rows of all processes in blocks, as :meth:`others`."""
        if self.spread.ring:
            return itertools.chain([(*self.held, *local)], self.others(*local))
        return iter([(*self.held, *self.spread.gather(local))])


def _travelling(local: Block, spread: Spread) -> Iterator[Block]:
    """What other processes have, one after the other: while a block is being worked on, it goes
    on to the next process and the one before it arrives."""
    processes = len(spread.sizes)
    following, preceding = (spread.rank + 1) % processes, (spread.rank - 1) % processes
    # In the order of their arrival, this process's own first.
    sizes = [spread.sizes[(spread.rank - step) % processes] for step in range(processes)]

    def send_on(step: int, block: Tensor) -> tuple[list[dist.Work], Tensor]:
        arriving = block.new_empty(_num_bytes(local, sizes[step]))
        moving = start_exchange([(block, following)], [(arriving, preceding)], spread.group)
        return moving, arriving

    def blocks(moving: list[dist.Work], block: Tensor) -> Iterator[Block]:
        for step in range(1, processes):
            wait_for(moving, spread.group)
            arrived = block
            if step + 1 < processes:
                moving, block = send_on(step + 1, arrived)
            yield _unpack(arrived, local, sizes[step])

    if processes == 1:
        return iter(())
    return blocks(*send_on(1, _pack(local)))


def _rows(block: Block, rows: slice) -> Block:
    return tuple(tensor[rows] for tensor in block)


def _num_bytes(like: Block, rows: int) -> int:
    """Of a block with so many rows."""
    return sum(_padded(_row_bytes(tensor) * rows) for tensor in like)


def _row_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape[1:]) * tensor.itemsize


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pack(block: Block) -> Tensor:
    """One tensor of bytes, since each that is sent costs a message."""
    rows = len(block[0])
    packed = block[0].new_empty(_num_bytes(block, rows), dtype=torch.uint8)
    for given, place in zip(block, _unpack(packed, block, rows), strict=True):
        place.copy_(given)
    return packed


def _unpack(packed: Tensor, like: Block, rows: int) -> Block:
    """Views of what was packed: so many rows, otherwise as ``like``."""
    block, first = [], 0
    for tensor in like:
        size = _row_bytes(tensor) * rows
        piece = packed[first : first + size].view(tensor.dtype)
        block.append(piece.view(rows, *tensor.shape[1:]))
        first += _padded(size)
    return tuple(block)
