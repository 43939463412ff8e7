"""What is measured: one size, kind of data, dtype and device."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.measuring.data import REGIMES

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Case:
    """One benchmark input; every field can be written to JSON."""

    rows: int
    dim: int
    regime: str = "random"
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself, where ``dtype`` is its name."""
        return getattr(torch, self.dtype)

    @property
    def matrix_bytes(self) -> int:
        """Size of one (N, N) matrix, the thing that the fused backends never hold."""
        return self.rows**2 * self.torch_dtype.itemsize

    def __str__(self) -> str:
        return f"N={self.rows} D={self.dim} {self.regime} {self.dtype} {self.device}"

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a results file; ``Case(**case.as_dict())`` is the way back."""
        return asdict(self)


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Read ``"256x128,1024x512"`` as pairs of N and D.

    Raises:
        argparse.ArgumentTypeError: anything else; the message names the wrong part.
    """
    sizes = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)x(\d+)", part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(
                f"a size must be ROWSxDIM such as 1024x128, got {part!r}"
            )
        rows, dim = int(match[1]), int(match[2])
        if rows < 2 or dim < 2:
            raise argparse.ArgumentTypeError(
                f"a size needs at least 2 rows and 2 dimensions, got {part!r}"
            )
        sizes.append((rows, dim))
    return sizes


def parse_choices(what: str, choices: tuple[str, ...], text: str) -> list[str]:
    """Read a comma-separated selection from ``choices``.

    Raises:
        argparse.ArgumentTypeError: a name that is not a choice; the message lists the choices.
    """
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in choices:
            raise argparse.ArgumentTypeError(
                f"{what} must be among {', '.join(choices)}; got {name!r}"
            )
    return names


def parse_regimes(text: str) -> list[str]:
    """Read a comma-separated list of data regimes."""
    return parse_choices("regimes", tuple(REGIMES), text)


def parse_dtypes(text: str) -> list[str]:
    """Read a comma-separated list of dtypes."""
    return parse_choices("dtypes", DTYPES, text)
