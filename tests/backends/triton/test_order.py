"""What the Triton kernels compute depends neither on the order of programs nor on old memory.

A device runs the programs of a launch in any order and side by side. Interpreted, they run one
after the other: in every order they have to leave the same bits, and none may touch what another
stores.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circle_kernels import (
    CircleFormula,
    UnifiedFormula,
    circle_loss,
    class_circle_loss,
    class_unified_loss,
    pair_logsumexp,
)
from circle_kernels.formula import PairFormula
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.eager import logsumexps
from tests.support.formulas import FUNCTIONS
from tests.support.targets import INTERPRETED

pytest.importorskip("triton", minversion="3.3")
pytest.importorskip("numpy")  # the interpreter's

from circle_kernels.backends.triton.conditions import Hardware, Limits, assuming
from circle_kernels.backends.triton.launch import Launch, observe_launches
from circle_kernels.backends.triton.settings import INTERPRETER
from circle_kernels.backends.triton.settings_table import load_table
from tests.support.interpreter.order import in_any_order

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]

# Large problems: every one in label order, in several bands and in chunks of 256.
LARGE = Limits(sorted_tiles=0, partial_bytes=2**12, smallest_band=2, workspace_bytes=4 * 256 * 256)
CIRCLE, FACES = CircleFormula(), CircleFormula(m=0.25, gamma=256.0)
UNDETACHED = CircleFormula(m=0.25, gamma=64.0, detach_weights=False)
UNIFIED = UnifiedFormula(m=0.35, gamma=64.0)
SINGLE, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Problem:
    """One problem of the public functions, the same each time that it is asked for."""

    dtype: torch.dtype
    formula: PairFormula
    n: int
    m: int | None = None  # references, or class weights; None for self mode
    d: int = 24
    classes: bool = False
    layout: str = "as it is"
    normalize: bool = True
    multiprocessors: int = 0  # of a large problem
    small: bool = True  # whether a small problem is one in plans, too

    def __str__(self) -> str:
        formula = self.formula.name.partition(" ")[0]
        formula = f"{formula}-g{self.formula.gamma:g}-{self.formula.detach_weights}"
        columns = "" if self.m is None else f"x{self.m}" + "-classes" * self.classes
        return f"{self.dtype}-{self.n}{columns}-D{self.d}-{formula}-{self.layout}".replace(" ", "-")

    def assumed(self) -> contextlib.AbstractContextManager[Any]:
        """What its plans go by."""
        if not self.multiprocessors:
            return contextlib.nullcontext() if self.small else assuming(limits=Limits(small_rows=0))
        return assuming(hardware=Hardware(INTERPRETER, self.multiprocessors), limits=LARGE)

    def tensors(self) -> list[Tensor]:
        """Embeddings and labels, and where there are any those of the other side."""
        generator = torch.Generator().manual_seed(self.n + self.d)
        tensors = []
        for size in filter(None, (self.n, self.m)):
            embeddings = _laid_out(torch.randn(size, self.d + 3, generator=generator), self)
            labels = torch.randint(0, 1 + self.n // 4, (size,), generator=generator)
            tensors += [embeddings.requires_grad_(), labels]
        if self.classes:
            tensors[1] = torch.randint(0, self.m or 0, (self.n,), generator=generator)
            tensors[1][-1] = -100  # to be ignored
            del tensors[3]
        return tensors

    def run(self) -> list[Tensor]:
        """Results of both passes."""
        tensors = self.tensors()
        if self.classes:
            options = {"m": self.formula.m, "gamma": self.formula.gamma, "reduction": "none"}
            loss = class_unified_loss if self.formula is UNIFIED else class_circle_loss
            results = (loss(*tensors, **options, normalize=self.normalize, backend="triton"),)
        else:
            results = pair_logsumexp(
                *tensors, formula=self.formula, normalize=self.normalize, backend="triton"
            )
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.rand(self.n, generator=generator) - 0.3 for _ in results]
        return [*results, *torch.autograd.grad(results, tensors[::2], upstream)]


def _laid_out(wide: Tensor, problem: Problem) -> Tensor:
    """Three columns less, in the problem's dtype and layout."""
    if problem.layout == "unaligned":  # rows begin anywhere, and not one after the other
        return wide.to(problem.dtype)[:, 1:-2]
    narrow = wide[:, 3:].to(problem.dtype)
    return narrow.t().contiguous().t() if problem.layout == "transposed" else narrow.contiguous()


PROBLEMS = [
    Problem(SINGLE, UNDETACHED, 67, layout="unaligned"),
    Problem(HALF, FACES, 67, layout="transposed"),
    Problem(BFLOAT, UNIFIED, 130, d=32, small=False),
    Problem(SINGLE, CIRCLE, 130, d=128, small=False),
    Problem(SINGLE, FACES, 67, 130, d=32),
    Problem(HALF, UNIFIED, 1, 200, layout="unaligned", normalize=False),
    Problem(BFLOAT, UNDETACHED, 67, 41, layout="transposed"),
    Problem(BFLOAT, CIRCLE, 200, 1, d=16),
    Problem(SINGLE, FUNCTIONS["with where"], 67),
    Problem(HALF, FUNCTIONS["with where"], 67, 41),
    Problem(SINGLE, UNIFIED, 67, 96, layout="unaligned", classes=True),
    Problem(HALF, FACES, 67, 200, classes=True),
    Problem(BFLOAT, FACES, 130, 11, d=32, classes=True),
    Problem(SINGLE, FACES, 300, multiprocessors=1),
    Problem(HALF, UNDETACHED, 300, layout="unaligned", multiprocessors=16),
    Problem(BFLOAT, UNIFIED, 270, layout="transposed", multiprocessors=1),
    Problem(SINGLE, UNIFIED, 270, 200, multiprocessors=16),
    Problem(HALF, CIRCLE, 200, 270, layout="transposed", multiprocessors=1),
    Problem(BFLOAT, FACES, 270, 130, layout="unaligned", normalize=False, multiprocessors=16),
    Problem(HALF, FACES, 270, 300, classes=True, multiprocessors=16),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_any_order_over_any_memory_gives_the_same_bits(problem: Problem) -> None:
    with problem.assumed():
        assert in_any_order(problem.run).faults == {}


# Tiles that are higher than wide, as a device's are, and parts of them that are no whole tiles.
HIGHER = {
    "triangle": (64, 16),
    "weights": (64, 16),
    "weights_in_any_order": (64, 32),
    "exact_sums": (16, 16),
    "exact_weights": (32, 16),
}


@pytest.mark.parametrize("limits", [LARGE, Limits(small_rows=0)], ids=["sorted", "unsorted"])
def test_tiles_higher_than_wide_are_stored_once(limits: Limits) -> None:
    """Of two tiles beside each other on the diagonal neither is the other's mirror image."""
    table = {
        (kernel, *key): tuple(
            (depth, replace(each, block_rows=rows, block_columns=columns))
            for depth, each in settings
            for rows, columns in [HIGHER.get(kernel, (each.block_rows, each.block_columns))]
        )
        for (kernel, *key), settings in load_table().items()
    }
    with assuming(table=table, limits=limits):
        assert in_any_order(Problem(SINGLE, FACES, 150).run).faults == {}


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BFLOAT], ids=str)
@pytest.mark.parametrize("m", [None, 41])
def test_any_order_gives_the_same_loss(dtype: torch.dtype, m: int | None) -> None:
    tensors = Problem(dtype, CIRCLE, 67, m).tensors()

    def run() -> list[Tensor]:
        loss = circle_loss(*tensors, backend="triton")
        return [loss, *torch.autograd.grad(loss, tensors[::2])]

    assert in_any_order(run).faults == {}


@pytest.mark.parametrize("multiprocessors", [1, 16])
def test_large_problems_go_in_several_bands_and_chunks(multiprocessors: int) -> None:
    """In self mode, in which every other kernel is launched once."""
    problem = Problem(SINGLE, CIRCLE, 270, multiprocessors=multiprocessors)
    tensors = problem.tensors()
    launches: Counter[str] = Counter()

    def count(launch: Launch, proceed: Callable[[Launch], Any]) -> Any:
        launches[launch.kernel.fn.__name__] += 1
        return proceed(launch)

    with problem.assumed(), observe_launches(count):
        statistics = pair_logsumexp(*tensors, formula=CIRCLE, backend="triton")
        assert max(launches.values()) > 1
        launches.clear()
        torch.autograd.grad(sum(statistics).sum(), tensors[0])
        assert max(launches.values()) > 1


@pytest.mark.parametrize("formula", [FACES, FUNCTIONS["with where"]], ids=["circle", "functions"])
@pytest.mark.parametrize("multiprocessors", [0, 4])
def test_any_order_gives_the_same_of_copies_and_both_sides(
    formula: PairFormula, multiprocessors: int
) -> None:
    problem = Problem(SINGLE, formula, 130, 200, multiprocessors=multiprocessors)
    embeddings, labels, ref_emb, ref_labels = problem.tensors()
    own_columns = torch.arange(130) - 1
    batch = Batch(embeddings, labels, ref_emb, ref_labels, own_columns=own_columns)

    def run() -> list[Tensor]:
        results = logsumexps(batch, Operation(formula, True, 0.0, "triton", both_sides=True))
        return [*results, *torch.autograd.grad(sum(results).sum(), [embeddings, ref_emb])]

    with problem.assumed():
        assert in_any_order(run).faults == {}
