"""What one run of ``python -m bench loss`` measures: every case timed, then gauged for memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.measuring.cases import Case
from bench.measuring.sweep import BuiltFunctions, Method, gauge_case, time_case
from bench.reporting.progress import progress_bar


@dataclass(frozen=True)
class Plan:
    """What one run does."""

    sizes: list[tuple[int, int]]
    memory_sizes: list[tuple[int, int]]
    small_sizes: list[tuple[int, int]]
    regimes: list[str]
    dtypes: list[str]
    device: str
    method: Method
    small_steps: Method  # of the small sizes

    def cases(self, sizes: list[tuple[int, int]], regimes: list[str]) -> Iterator[Case]:
        """Every combination; the regimes of a size follow one another."""
        for dtype in self.dtypes:
            for rows, dim in sizes:
                for regime in regimes:
                    yield Case(rows, dim, regime, dtype, self.device)


def measure(plan: Plan) -> Iterator[list[dict[str, Any]]]:
    """The rows of one case after the other, with a progress bar."""
    timed = list(plan.cases(plan.sizes, plan.regimes))
    # Peaks do not depend on the values, so one regime is enough.
    gauged = [
        (case, name)
        for case in plan.cases(plan.memory_sizes, plan.regimes[:1])
        for name in plan.method.variants
    ]
    small = list(plan.cases(plan.small_sizes, plan.regimes[:1]))
    with progress_bar(len(small) + len(timed) + len(gauged), "case") as progress:
        built = BuiltFunctions()
        for case in small:
            progress.set_description(f"small step {case}")
            rows = time_case(plan.small_steps, case, built.of(case))
            yield [{**row, "kind": "small"} for row in rows]
            progress.update()
        for case in timed:
            progress.set_description(f"time {case}")
            yield time_case(plan.method, case, built.of(case))
            progress.update()
        for case, name in gauged:
            progress.set_description(f"memory {case} {name}")
            yield [gauge_case(plan.method, case, name)]
            progress.update()
