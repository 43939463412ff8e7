"""What plans call an estimate at half, at double and at 0, timed in turn with what it is.

Problems are chosen by the plans themselves: those whose launches become others.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu.tasks import Rows, Task
from bench.measuring.cases import Case
from bench.measuring.data import PER_CLASS
from bench.measuring.sweep import BuiltFunctions, rounded
from bench.measuring.timing import Effort, clock_for, time_interleaved, warm_up
from bench.measuring.variants import GAMMA, M
from circle_kernels import CircleFormula
from circle_kernels.backends.choice import BACKENDS
from circle_kernels.backends.problem import Needs, PairProblem, Passed

if TYPE_CHECKING:
    from circle_kernels.backends.triton.conditions import Hardware, Limits

_EFFORT = Effort(seconds=1.0, min_rounds=9, max_rounds=60, sample_seconds=0.01)


class Size(NamedTuple):
    """A problem; without references it is compared with itself."""

    rows: int
    depth: int
    references: int | None = None
    classes: bool = False

    def __str__(self) -> str:
        if self.references is None:
            return "self"
        return f"{self.references} {'classes' if self.classes else 'references'}"

    @property
    def work(self) -> int:
        """Multiply-adds of its product."""
        return self.rows * (self.references or self.rows) * self.depth


# Limits that 0 turns a way of working off by, or on for every size; others would be no plan at all.
AT_0 = ("sides_bytes", "sorted_tiles", "small_rows", "class_columns")

_ROWS = [part * 2**exponent for exponent in range(7, 14) for part in (2, 3)]  # 256 to 24,576
SIZES = [
    *(Size(rows, depth) for rows in _ROWS for depth in (128, 512, 1024)),
    *(Size(rows, 2048) for rows in _ROWS[:4]),
    *(Size(rows, 512, rows) for rows in _ROWS),
    *(Size(rows, 512, 2**e, classes=True) for rows in (256, 4_096) for e in range(14, 20)),
]


class UnderLimits:
    """A step of a backend, below autograd, under limits; what the stopwatch runs."""

    has_backward = True
    compiles = False

    def __init__(self, module: Any, problem: PairProblem, limits: Limits) -> None:
        self._module, self._problem, self._limits = module, problem, limits
        self._saved: Tensor | None = None

    def reset(self) -> None:
        """Drop what the last forward pass left."""
        self._saved = None

    def forward(self) -> Tensor:
        """The sum of both log-sum-exps of each row."""
        from circle_kernels.backends.triton.conditions import assuming

        with assuming(limits=self._limits):
            lse_pos, lse_neg, self._saved = self._module.forward(self._problem)
        return lse_pos + lse_neg

    def backward(self, loss: Tensor) -> None:
        """Gradients of the mean of the rows' losses."""
        from circle_kernels.backends.triton.conditions import assuming

        slopes = torch.sigmoid(loss) / len(loss)
        needs = Needs(embeddings=True, references=not self._problem.self_mode)
        with assuming(limits=self._limits):
            self._module.backward(self._problem, Passed(self._saved, slopes, slopes), needs)


@dataclass(frozen=True)
class CompareTask(Task):
    """One limit on one problem: as it is, and with each of some other values."""

    limit: str = ""
    values: tuple[int, ...] = ()  # the usual one first
    size: Size = SIZES[0]
    backend: str = "triton"
    effort: Effort = _EFFORT

    @property
    def expected_seconds(self) -> float:
        """Compiling, and rounds."""
        return 10.0 + self.effort.seconds

    @property
    def longest_seconds(self) -> float:
        """Where every kernel of every value has yet to compile, after a process has started."""
        return 120.0

    def run(self, built: BuiltFunctions) -> Rows:
        """A row per value, with samples of rounds in which all took their turn."""
        from circle_kernels.backends.triton.conditions import Limits

        module = importlib.import_module(BACKENDS[self.backend].module)
        problem = self.problem()
        clock = clock_for(self.case.device)
        steps = {}
        for value in self.values:
            limits = dataclasses.replace(Limits(), **{self.limit: value})
            steps[str(value)] = UnderLimits(module, problem, limits)
        seconds = {name: warm_up(work, clock) for name, work in steps.items()}
        samples = time_interleaved(steps, seconds, self.effort, clock)
        return [
            {**row, **rounded(dataclasses.asdict(samples[str(value)])), **self._described(value)}
            for value, row in zip(self.values, self.rows_without_result("ok"), strict=True)
        ]

    def problem(self) -> PairProblem:
        """Random embeddings, drawn on the device."""
        generator = torch.Generator(self.case.device).manual_seed(0)

        def side(length: int) -> tuple[Tensor, Tensor]:
            values = torch.randn(
                length, self.size.depth, generator=generator, device=self.case.device
            )
            labels = torch.arange(length, device=self.case.device) // PER_CLASS
            return values.to(self.case.torch_dtype), labels

        problem = PairProblem(
            *side(self.size.rows), None, None, CircleFormula(m=M, gamma=GAMMA), normalize=True
        )
        if self.size.references is None:
            return problem
        ref_emb, ref_labels = side(self.size.references)
        return problem._replace(
            ref_emb=ref_emb, ref_labels=None if self.size.classes else ref_labels
        )

    def _described(self, value: int) -> dict[str, Any]:
        return {
            "limit": self.limit,
            "value": value,
            "usual": self.values[0],
            "sides": str(self.size),
        }


def compare_tasks(
    device: str,
    hardware: Hardware,
    sizes: Iterable[Size] = SIZES,
    *,
    dtype: str = "bfloat16",
    backend: str = "triton",
    effort: Effort = _EFFORT,
) -> tuple[list[Task], list[str]]:
    """For each limit the problems for which another value of it is another plan; and limits for
    which there is none."""
    from circle_kernels.backends.triton.conditions import Limits

    ordered = sorted(sizes, key=lambda size: size.work)
    usual = Limits()
    plans = {size: _plan(size, usual, hardware, dtype) for size in ordered}
    found: list[list[Task]] = []
    without = []
    for name, value in dataclasses.asdict(usual).items():
        mattering: dict[Size, list[int]] = {}
        for other in (value // 2, 2 * value, *((0,) if name in AT_0 else ())):
            limits = dataclasses.replace(usual, **{name: other})
            others = [
                size for size in ordered if _plan(size, limits, hardware, dtype) != plans[size]
            ]
            for size in _few(others):
                mattering.setdefault(size, []).append(other)
        if not mattering:
            without.append(name)
        found.append([])
        for size in mattering:
            values = (value, *mattering[size])
            found[-1].append(
                CompareTask(
                    "compare",
                    Case(size.rows, size.depth, "random", dtype, device),
                    tuple(f"{name}={each}, {size}" for each in values),
                    limit=name,
                    values=values,
                    size=size,
                    backend=backend,
                    effort=effort,
                )
            )
    # One problem of each limit, then the second of each: time may not be enough for all.
    rounds = itertools.zip_longest(*found)
    return [task for each in rounds for task in each if task is not None], without


def _few(sizes: list[Size]) -> list[Size]:
    """One in the middle and the largest; what matters there matters most."""
    return list(dict.fromkeys([sizes[len(sizes) // 2], sizes[-1]])) if sizes else []


def _plan(size: Size, limits: Limits, hardware: Hardware, dtype: str) -> list[Any]:
    """What of its launches would show that it is planned in another way."""
    from bench.offline.pretended import plan_launches
    from circle_kernels.backends.triton.conditions import assuming

    with assuming(limits=limits):
        launches = plan_launches(
            _Pretended(hardware),
            dtype=getattr(torch, dtype),
            num_rows=size.rows,
            depth=size.depth,
            formula=CircleFormula(m=M, gamma=GAMMA),
            num_references=size.references,
            classes=size.classes,
        )
    return [
        (
            launch.kernel.__name__,
            launch.programs,
            {name: value for name, value in launch.arguments.items() if isinstance(value, int)},
            {name: str(value) for name, value in launch.constants.items()},
            launch.options,
        )
        for launch in launches
    ]


class _Pretended(NamedTuple):
    """What planning asks of a device."""

    hardware: Hardware
