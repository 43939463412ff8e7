"""The sweep of the loss: every case timed, then gauged for memory, as rows for a results file."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.measuring import memory
from bench.measuring.cases import Case
from bench.measuring.timing import Effort, Step, capture, clock_for, time_interleaved, warm_up
from bench.measuring.variants import Function, Variant
from bench.reporting.progress import progress_bar


@dataclass(frozen=True)
class Method:
    """How a case is measured.

    Args:
        variants: those that are compared, by name.
        effort: how long to time.
        memory_limit: what would need more bytes than this is skipped.
        left_out: variants that are not run, to save time.
        captured: replay whole steps from CUDA graphs, which leaves out what launching costs.
    """

    variants: dict[str, Variant]
    effort: Effort
    memory_limit: float
    left_out: tuple[str, ...] = ()
    captured: bool = False

    def unusable(self, name: str, case: Case) -> str | None:
        """Why a variant does not run a case, or None."""
        if name in self.left_out:
            return "skipped: compiling takes longer than the rest of a quick run"
        return self.variants[name].unusable(case, self.memory_limit)


@dataclass(frozen=True)
class Plan:
    """What one run does."""

    sizes: list[tuple[int, int]]
    memory_sizes: list[tuple[int, int]]
    regimes: list[str]
    dtypes: list[str]
    device: str
    method: Method

    def cases(self, sizes: list[tuple[int, int]], regimes: list[str]) -> Iterator[Case]:
        """Every combination; the regimes of a size follow one another."""
        for dtype in self.dtypes:
            for rows, dim in sizes:
                for regime in regimes:
                    yield Case(rows, dim, regime, dtype, self.device)


class BuiltFunctions:
    """What variants built for a size; its regimes, one after the other, need not compile again."""

    def __init__(self) -> None:
        self._size: tuple[int, int, str] | None = None
        self._functions: dict[str, Function] = {}

    def of(self, case: Case) -> dict[str, Function]:
        """By variant; empty where the size is another than the last case's."""
        size = (case.rows, case.dim, case.dtype)
        if size != self._size:
            self._size, self._functions = size, {}
            # Without this, old sizes would count against the compiler's limit of recompiles.
            torch.compiler.reset()
        return self._functions


def measure(plan: Plan) -> Iterator[list[dict[str, Any]]]:
    """The rows of one case after the other, with a progress bar."""
    timed = list(plan.cases(plan.sizes, plan.regimes))
    # Peaks do not depend on the values, so one regime is enough.
    gauged = [
        (case, name)
        for case in plan.cases(plan.memory_sizes, plan.regimes[:1])
        for name in plan.method.variants
    ]
    with progress_bar(len(timed) + len(gauged), "case") as progress:
        built = BuiltFunctions()
        for case in timed:
            progress.set_description(f"time {case}")
            yield time_case(plan.method, case, built.of(case))
            progress.update()
        for case, name in gauged:
            progress.set_description(f"memory {case} {name}")
            yield [gauge_case(plan.method, case, name)]
            progress.update()


def time_case(method: Method, case: Case, functions: dict[str, Function]) -> list[dict[str, Any]]:
    """One row per variant. ``functions`` keeps what was built for this size."""
    clock = clock_for(case.device)
    status: dict[str, str] = {}
    works: dict[str, Step] = {}
    step_seconds: dict[str, float] = {}
    for name, variant in method.variants.items():
        reason = method.unusable(name, case)
        if reason is None:
            try:
                if name not in functions:
                    functions[name] = variant.build()
                work: Step = variant.work(case, functions[name])
                if method.captured:
                    work = capture(work)
                step_seconds[name] = warm_up(work, clock)
                works[name] = work
            # A peer that fails is a result, whatever its exception.
            except Exception as error:
                reason = f"failed: {first_line(error)}"
        status[name] = reason or "ok"
    samples = time_interleaved(works, step_seconds, method.effort, clock)
    del works
    gc.collect()
    return [
        {
            "kind": "graph" if method.captured else "time",
            **case.as_dict(),
            "variant": name,
            "status": status[name],
            **(_rounded(asdict(samples[name])) if name in samples else {}),
        }
        for name in method.variants
    ]


def gauge_case(method: Method, case: Case, name: str) -> dict[str, Any]:
    """The row of one variant's peak memory."""
    status = method.unusable(name, case)
    row: dict[str, Any] = {"kind": "memory", **case.as_dict(), "variant": name}
    if status is None:
        try:
            peak = memory.measure(name, case)
            row.update(peak_bytes=peak.bytes, method=peak.method)
        # As in time_case: out of memory, or a compiler's error, is a result.
        except Exception as error:
            status = f"failed: {first_line(error)}"
    return {**row, "status": status or "ok"}


def first_line(error: Exception) -> str:
    """An exception, as short as it stands in tables."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _rounded(samples: dict[str, Any]) -> dict[str, Any]:
    """Four digits say all that a stopwatch knows."""
    return {
        key: [float(f"{value:.4g}") for value in values] if isinstance(values, list) else values
        for key, values in samples.items()
    }
