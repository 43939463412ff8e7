"""What tests run on: backends, devices and instruction sets."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch

from circle_kernels.backends import cpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]
WITH_BFLOAT = ("avx512_bf16", "amx")  # levels of the C++ kernel that only add bfloat16 products


@dataclass(frozen=True)
class Target:
    """A backend on a device, with the dtypes it is tested in."""

    backend: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    tile: int | None = None  # rows and columns of the tiled backend's tiles; None as it chooses
    level: str = ""  # instruction set of the C++ kernel; "" as it chooses

    @property
    def few_dtypes(self) -> tuple[torch.dtype, ...]:
        """For what float16 shows as well as bfloat16 does: interpreted, each takes its time."""
        return tuple(d for d in self.dtypes if not INTERPRETED or d != torch.bfloat16)

    def __str__(self) -> str:
        device = self.device if self.device != self.backend and self.device != "cpu" else ""
        parts = (self.backend, device, self.tile or "", self.level)
        return "-".join(str(part) for part in parts if part)


def _targets() -> list[object]:
    half = (torch.float16, torch.bfloat16)
    if INTERPRETED:
        return [Target("triton", "cpu", (torch.float32, *half))]
    every = (torch.float64, torch.float32, *half)
    return [
        # Levels with bfloat16 products take the one below for every other dtype.
        *(
            Target("cpu", "cpu", (torch.bfloat16,) if level in WITH_BFLOAT else every, level=level)
            for level in cpu.supported_levels()
        ),
        Target("tiled", "cpu", every),
        Target("tiled", "cpu", every, tile=16),
        pytest.param(Target("tiled", "cuda", every), marks=ON_GPU),
        pytest.param(Target("triton", "cuda", (torch.float32, *half)), marks=ON_GPU),
    ]


TARGETS = _targets()
for_every_backend = pytest.mark.parametrize("target", TARGETS, ids=str)
