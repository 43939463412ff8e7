"""Functions run in several real processes (gloo)."""

from __future__ import annotations

import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

# A process that waits in vain fails after this; the other may be compiling on a busy machine.
TIMEOUT = timedelta(seconds=240)


def batch(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    embeddings = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(0, 4, (n,), generator=generator)


def _process(rank: int, world_size: int, folder: str, function, arguments: tuple) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        function(rank, *arguments)
        dist.barrier()
    except BaseException:
        Path(folder, f"error-{rank}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def run_processes(tmp_path: Path, world_size: int, function, *arguments) -> None:
    """Run ``function(rank, *arguments)`` in ``world_size`` processes of one gloo group."""
    mp.spawn(_process, (world_size, str(tmp_path), function, arguments), nprocs=world_size)
