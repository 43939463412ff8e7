"""The processes that ``torchrun`` started, of which each has a part of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recipes.configuration import ConfigurationError


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, and where it computes."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """Which of ``rows`` rows of a batch this process has.

        Raises:
            ConfigurationError: parts would differ in size, and losses that are averaged in weight.
        """
        if rows % self.count:
            raise ConfigurationError(
                f"training.batch must be a multiple of the {self.count} processes, got {rows}"
            )
        size = rows // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def sum(self, values: Tensor) -> Tensor:
        """Of all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def take_buffers_of_first(self, network: nn.Module) -> None:
        """Give all processes the statistics that the first keeps, and saves."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """For all others."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """This process among those of ``torchrun``, or alone; joins their group unless it has one."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if not device:
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    joined = dist.is_available() and not dist.is_initialized() and "RANK" in os.environ
    if joined:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        if dist.is_available() and dist.is_initialized():
            yield Processes(dist.get_rank(), dist.get_world_size(), place)
        else:
            yield Processes(0, 1, place)
    finally:
        if joined:
            dist.destroy_process_group()
