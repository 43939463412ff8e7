"""Where tests of devices run: on one, at its sizes, and small in the interpreter."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from tests.backends.triton.gpu.steps import DTYPES, MANY
from tests.support.targets import INTERPRETED, ON_GPU

IN_INTERPRETER = [
    pytest.mark.backends,
    pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]


@dataclass(frozen=True)
class Lane:
    """A device, a number of rows, and which limits plans go by.

    With every limit at 1 rows are in label order, tiles in bands of one block each, and weights in
    chunks as small as there are.
    """

    device: str
    rows: int
    every_limit_1: bool = False

    def __str__(self) -> str:
        return f"{self.device}-{self.rows}{'-every-limit-1' * self.every_limit_1}"

    @contextlib.contextmanager
    def limits(self) -> Iterator[None]:
        """Plans go by the lane's limits."""
        pytest.importorskip("triton", minversion="3.3")
        from circle_kernels.backends.triton.conditions import Limits, assuming

        ones = {field.name: 1 for field in dataclasses.fields(Limits)}
        with assuming(limits=Limits(**ones) if self.every_limit_1 else Limits()):
            yield


_ON_DEVICE = [Lane("cuda", 300), Lane("cuda", MANY), Lane("cuda", MANY, every_limit_1=True)]
BY_LABEL = Lane("cpu", 270, every_limit_1=True)
_INTERPRETED = [Lane("cpu", 150), BY_LABEL]
for_every_lane = pytest.mark.parametrize(
    "lane",
    [
        *(pytest.param(lane, marks=ON_GPU, id=str(lane)) for lane in _ON_DEVICE),
        *(pytest.param(lane, marks=IN_INTERPRETER, id=str(lane)) for lane in _INTERPRETED),
    ],
)
# What a lane takes a while for in the interpreter, it does in one dtype.
for_few_dtypes = pytest.mark.parametrize(
    "dtype", [torch.bfloat16] if INTERPRETED else DTYPES, ids=str
)


def skip_without_memory(lane: Lane, columns: int) -> None:
    """The float64 oracle with its gradient holds about ten matrices."""
    needed = 10 * 8 * lane.rows * columns
    if lane.device == "cuda" and torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"the oracle needs {needed / 1e9:.1f} GB")
