"""What ``python -m bench gpu`` measures, most important first, and in which rows it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType

from bench.measuring.cases import Case
from bench.measuring.memory import default_limit
from bench.measuring.sweep import BuiltFunctions, Method, gauge_case, time_case
from bench.measuring.timing import Effort
from bench.measuring.variants import VARIANTS

EVERY = ("triton", "eager", "compile", "pml", "mm")
NOT_COMPILED = ("triton", "eager", "pml", "mm")
CAPTURED = ("triton", "eager", "mm")
PROFILED = ("triton",)

# The size that bounds are stated for, that of small batches, and that of large ones.
MAIN = (16_384, 512)
SMALL = (256, 512)
LARGE = (65_536, 512)

_SAMPLE_SECONDS = 0.02
# What a task takes beyond its rounds: data, and compiling Triton's kernels once for each dtype and
# depth; torch.compile takes far longer. A task that would take longer than is left is not begun.
_OVERHEAD_SECONDS = {"time": 8.0, "graph": 8.0, "memory": 4.0}
_COMPILE_SECONDS = 30.0
# A task that takes this many times as long is stopped.
_PATIENCE = 3.0
_PROFILED_STEPS = 10

NO_TIME_LEFT = "not measured: no time left"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """Variants on one case: times, times of steps replayed from CUDA graphs, or peak memory.

    Other stages' tasks are subclasses: they run what they will, in as many rows as variants.

    Args:
        kind: ``"time"``, ``"graph"``, ``"memory"`` or a subclass's, which its rows have too.
        case: the input.
        variants: names, as in :data:`bench.measuring.variants.VARIANTS`.
        seconds: how long to add rounds; memory has none.
    """

    kind: str
    case: Case
    variants: tuple[str, ...]
    seconds: float = 1.0

    def __str__(self) -> str:
        return f"{self.kind} {self.case}"

    @property
    def expected_seconds(self) -> float:
        """How long the task is likely to take."""
        compiling = _COMPILE_SECONDS if "compile" in self.variants else 0.0
        rounds = 0.0 if self.kind == "memory" else self.seconds
        return rounds + _OVERHEAD_SECONDS.get(self.kind, 0.0) + compiling

    @property
    def longest_seconds(self) -> float:
        """How long the task may take, in a process that has yet to start."""
        return 20.0 + _PATIENCE * self.expected_seconds

    def run(self, built: BuiltFunctions) -> list[dict[str, Any]]:
        """Measure in this process: one row per variant."""
        method = Method(
            {name: VARIANTS[name] for name in self.variants},
            Effort(self.seconds, sample_seconds=_SAMPLE_SECONDS),
            default_limit(self.case.device),
            captured=self.kind == "graph",
        )
        if self.kind == "memory":
            return [gauge_case(method, self.case, name) for name in self.variants]
        # A graph holds what its function allocated when it was built; it is built for itself.
        functions = {} if method.captured else built.of(self.case)
        return time_case(method, self.case, functions)

    def rows_without_result(self, status: str) -> list[dict[str, Any]]:
        """The rows that say why there is no result."""
        return [
            {"kind": self.kind, **self.case.as_dict(), "variant": name, "status": status}
            for name in self.variants
        ]


@dataclass(frozen=True)
class ProfileTask(Task):
    """What a step launches, how often and for how long, as the profiler sees it on the device."""

    @property
    def expected_seconds(self) -> float:
        return _OVERHEAD_SECONDS["time"]

    def run(self, built: BuiltFunctions) -> Rows:
        """One row per variant, with a list of launches, the longest first."""
        rows = self.rows_without_result("ok")
        for row in rows:
            row["launches"] = _profile(row["variant"], self.case)
        return rows


def _profile(variant: str, case: Case) -> list[dict[str, Any]]:
    work = VARIANTS[variant].work(case)
    on_device = torch.device(case.device).type == "cuda"
    kind = DeviceType.CUDA if on_device else DeviceType.CPU
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_device:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(3):
        work.step()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(_PROFILED_STEPS):
            work.step()
        if on_device:
            torch.cuda.synchronize()
    launches = [
        {
            "name": event.key,
            "count": event.count / _PROFILED_STEPS,
            "microseconds": round(event.self_device_time_total / _PROFILED_STEPS, 2)
            if on_device
            else round(event.self_cpu_time_total / _PROFILED_STEPS, 2),
        }
        for event in profile.key_averages()
        if event.device_type == kind
    ]
    return sorted(launches, key=lambda launch: -launch["microseconds"])


def all_tasks(device: str) -> list[Task]:
    """The whole list; what stands first is measured whatever happens."""

    def case(
        size: tuple[int, int], regime: str = "random", dtype: str = "bfloat16"
    ) -> Case:  # bfloat16 is what networks train in
        return Case(*size, regime, dtype, device)

    depths = [(8_192, depth) for depth in (64, 128, 256, 1_024, 2_048)]
    rows = [(size, 512) for size in (256, 4_096, 1_024, 128, 512, 2_048, 8_192, 32_768)]
    return [
        Task("time", case(MAIN), EVERY, seconds=6.0),
        # Next to one another, so that torch.compile compiles once for both.
        Task("time", case(MAIN, "trained"), EVERY, seconds=4.0),
        Task("graph", case(SMALL), CAPTURED, seconds=2.0),
        Task("graph", case(SMALL, dtype="float32"), CAPTURED, seconds=2.0),
        *(ProfileTask("profile", case(size), PROFILED) for size in (MAIN, (512, 256))),
        Task("memory", case(LARGE), NOT_COMPILED),
        Task("time", case(LARGE), NOT_COMPILED, seconds=4.0),
        Task("memory", case(MAIN), EVERY),
        Task("time", case(MAIN, dtype="float32"), EVERY, seconds=4.0),
        Task("time", case(MAIN, "trained", "float32"), EVERY, seconds=4.0),
        *(Task("graph", case((size, 512)), CAPTURED) for size in (64, 128, 512, 1_024)),
        *(Task("time", case(size), _peers(size)) for size in rows),
        *(Task("time", case(size), NOT_COMPILED) for size in depths),
        Task("time", case(LARGE, "trained"), NOT_COMPILED),
        Task("time", case(LARGE, dtype="float32"), NOT_COMPILED),
        Task("memory", case(MAIN, dtype="float32"), NOT_COMPILED),
        Task("memory", case(LARGE, dtype="float32"), NOT_COMPILED),
        *(Task("time", case(size, dtype="float32"), NOT_COMPILED) for size in rows),
        *(Task("time", case(size, dtype="float32"), NOT_COMPILED) for size in depths),
        *(Task("time", case(size, "trained"), NOT_COMPILED) for size in (*rows, *depths)),
        *(Task("graph", case((size, 512), dtype="float32"), CAPTURED) for size in (512, 1_024)),
        *(Task("memory", case(size), NOT_COMPILED) for size in rows[-2:]),
    ]


def quick_tasks(device: str) -> list[Task]:
    """A few small ones, to see that everything runs."""
    return [
        Task("time", Case(2_048, 512, "random", "bfloat16", device), NOT_COMPILED, seconds=0.5),
        Task("graph", Case(*SMALL, "random", "bfloat16", device), CAPTURED, seconds=0.5),
        ProfileTask("profile", Case(512, 256, "random", "bfloat16", device), PROFILED),
        Task("memory", Case(2_048, 512, "random", "bfloat16", device), NOT_COMPILED),
    ]


def _peers(size: tuple[int, int]) -> tuple[str, ...]:
    """Compiling takes as long as ten sizes: only where it shows how torch.compile scales."""
    return EVERY if size[0] in (1_024, 4_096) else NOT_COMPILED
