"""The sweep of the loss: every case timed, then gauged for memory, as rows for a results file."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench import memory
from bench.cases import Case
from bench.progress import progress_bar
from bench.timing import Effort, clock_for, time_interleaved, warm_up
from bench.variants import Function, Variant, Work


@dataclass(frozen=True)
class Plan:
    """What one run does."""

    sizes: list[tuple[int, int]]
    memory_sizes: list[tuple[int, int]]
    regimes: list[str]
    dtypes: list[str]
    device: str
    variants: dict[str, Variant]
    left_out: list[str]
    effort: Effort
    memory_limit: float

    def cases(self, sizes: list[tuple[int, int]], regimes: list[str]) -> Iterator[Case]:
        """Every combination; the regimes of a size follow one another."""
        for dtype in self.dtypes:
            for rows, dim in sizes:
                for regime in regimes:
                    yield Case(rows, dim, regime, dtype, self.device)

    def unusable(self, name: str, case: Case) -> str | None:
        """Why a variant does not run a case, or None."""
        if name in self.left_out:
            return "skipped: compiling takes longer than the rest of a quick run"
        return self.variants[name].unusable(case, self.memory_limit)


def measure(plan: Plan) -> Iterator[list[dict[str, Any]]]:
    """The rows of one case after the other, with a progress bar."""
    timed = list(plan.cases(plan.sizes, plan.regimes))
    # Peaks do not depend on the values, so one regime is enough.
    gauged = [
        (case, name)
        for case in plan.cases(plan.memory_sizes, plan.regimes[:1])
        for name in plan.variants
    ]
    with progress_bar(len(timed) + len(gauged), "case") as progress:
        functions: dict[str, Function] = {}
        size = None
        for case in timed:
            progress.set_description(f"time {case}")
            if size != (case.rows, case.dim, case.dtype):
                size = (case.rows, case.dim, case.dtype)
                # Without this, old sizes would count against the compiler's limit of recompiles.
                torch.compiler.reset()
                functions = {}
            yield time_case(plan, case, functions)
            progress.update()
        for case, name in gauged:
            progress.set_description(f"memory {case} {name}")
            yield [gauge_case(plan, case, name)]
            progress.update()


def time_case(plan: Plan, case: Case, functions: dict[str, Function]) -> list[dict[str, Any]]:
    """One row per variant. ``functions`` keeps what was built for this size."""
    clock = clock_for(case.device)
    status: dict[str, str] = {}
    works: dict[str, Work] = {}
    step_seconds: dict[str, float] = {}
    for name, variant in plan.variants.items():
        reason = plan.unusable(name, case)
        if reason is None:
            try:
                if name not in functions:
                    functions[name] = variant.build()
                work = variant.work(case, functions[name])
                step_seconds[name] = warm_up(work, clock)
                works[name] = work
            # A peer that fails is a result, whatever its exception.
            except Exception as error:
                reason = f"failed: {_first_line(error)}"
        status[name] = reason or "ok"
    samples = time_interleaved(works, step_seconds, plan.effort, clock)
    del works
    gc.collect()
    return [
        {
            "kind": "time",
            **case.as_dict(),
            "variant": name,
            "status": status[name],
            **(_rounded(asdict(samples[name])) if name in samples else {}),
        }
        for name in plan.variants
    ]


def gauge_case(plan: Plan, case: Case, name: str) -> dict[str, Any]:
    """The row of one variant's peak memory."""
    status = plan.unusable(name, case)
    row: dict[str, Any] = {"kind": "memory", **case.as_dict(), "variant": name}
    if status is None:
        try:
            peak = memory.measure(name, case)
            row.update(peak_bytes=peak.bytes, method=peak.method)
        # As in time_case: out of memory, or a compiler's error, is a result.
        except Exception as error:
            status = f"failed: {_first_line(error)}"
    return {**row, "status": status or "ok"}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _rounded(samples: dict[str, Any]) -> dict[str, Any]:
    """Four digits say all that a stopwatch knows."""
    return {
        key: [float(f"{value:.4g}") for value in values] if isinstance(values, list) else values
        for key, values in samples.items()
    }
