"""Where tests of devices run: on one, at its sizes, and small in the interpreter."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from tests.backends.triton.gpu.steps import DTYPES, MANY, SOME
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
    never_small: bool = False  # as more rows would be

    def __str__(self) -> str:
        limits = "-every-limit-1" * self.every_limit_1 + "-never-small" * self.never_small
        return f"{self.device}-{self.rows}{limits}"

    @contextlib.contextmanager
    def limits(self) -> Iterator[None]:
        """Plans go by the lane's limits."""
        pytest.importorskip("triton", minversion="3.3")
        from circle_kernels.backends.triton.conditions import Limits, assuming

        changed = {"small_rows": 0} if self.never_small else {}
        if self.every_limit_1:
            changed = {field.name: 1 for field in dataclasses.fields(Limits)}
        with assuming(limits=Limits(**changed)):
            yield


ON_DEVICE = [
    Lane("cuda", 300),
    Lane("cuda", SOME),
    Lane("cuda", MANY),
    Lane("cuda", MANY, every_limit_1=True),
]
BY_LABEL = Lane("cpu", 270, every_limit_1=True)
_INTERPRETED = [Lane("cpu", 150), Lane("cpu", 150, never_small=True), BY_LABEL]
for_every_lane = pytest.mark.parametrize(
    "lane",
    [
        *(pytest.param(lane, marks=ON_GPU, id=str(lane)) for lane in ON_DEVICE),
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
