"""Devices and settings for tests of ``python -m bench tune``."""

from __future__ import annotations

import torch

from bench.tune.grid import Gpu
from circle_kernels.backends.triton.settings import Settings

H100 = Gpu("sm_90", 132, 32)
MI300 = Gpu("gfx942", 304, 64)
BASE, FAST, FASTER = (Settings(64, 64, 32, 4, stages) for stages in (2, 3, 4))


def no_data(
    regime: str, rows: int, dim: int, *, dtype: torch.dtype, device: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes alone: what is drawn on the CPU cannot be moved to a pretended device."""
    embeddings = torch.empty(rows, dim, dtype=dtype, device=device)
    return embeddings, torch.empty(rows, dtype=torch.int64, device=device)
