"""A case measured: all variants timed in turn or gauged for memory, as rows for a results file."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.measuring import memory
from bench.measuring.cases import Case
from bench.measuring.errors import first_line
from bench.measuring.timing import Effort, Step, capture, clock_for, time_interleaved, warm_up
from bench.measuring.variants import Function, Variant


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
            **(rounded(asdict(samples[name])) if name in samples else {}),
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


def rounded(samples: dict[str, Any]) -> dict[str, Any]:
    """Four digits say all that a stopwatch knows."""
    return {
        key: [float(f"{value:.4g}") for value in values] if isinstance(values, list) else values
        for key, values in samples.items()
    }
