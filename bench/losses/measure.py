"""Cases of losses measured, as rows for a results file.

As a program (``python -m bench.losses.measure VARIANT CASE``, as JSON) it gauges one loss' memory.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from bench.losses.variants import VARIANTS, LossCase, LossWork
from bench.measuring import memory
from bench.measuring.errors import first_line
from bench.measuring.sweep import rounded
from bench.measuring.timing import Effort, clock_for, time_interleaved, warm_up

MEMORY_LIMIT = 5e9


def time_case(case: LossCase, effort: Effort, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per variant."""
    clock = clock_for(case.device)
    works: dict[str, LossWork] = {}
    seconds: dict[str, float] = {}
    status: dict[str, str] = {}
    for name in names:
        reason = VARIANTS[name].unusable(case, MEMORY_LIMIT)
        if reason is None:
            try:
                torch.compiler.reset()
                work = LossWork(VARIANTS[name], case)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of compilers, about graphs that they break
                    seconds[name] = warm_up(work, clock)
                works[name] = work
            # A peer that fails is a result, whatever its exception.
            except Exception as error:
                reason = f"failed: {first_line(error)}"
        status[name] = reason or "ok"
    samples = time_interleaved(works, seconds, effort, clock)
    del works
    gc.collect()
    return [
        {
            "kind": "time",
            **case.as_dict(),
            "variant": name,
            "status": status[name],
            **(rounded(asdict(samples[name])) if name in samples else {}),
        }
        for name in names
    ]


def gauge_case(case: LossCase, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per variant: peaks above the inputs, the weights and all gradients."""
    rows = []
    for name in names:
        status = VARIANTS[name].unusable(case, MEMORY_LIMIT)
        row: dict[str, Any] = {"kind": "memory", **case.as_dict(), "variant": name}
        if status is None:
            try:
                peak = _peak(name, case)
                row |= {"peak_bytes": peak.bytes, "method": peak.method}
            # As in time_case.
            except Exception as error:
                status = f"failed: {first_line(error)}"
        rows.append({**row, "status": status or "ok"})
    return rows


def _peak(name: str, case: LossCase) -> memory.Peak:
    if torch.device(case.device).type == "cuda":
        work = LossWork(VARIANTS[name], case)
        return _above_gradients(memory.cuda_peak(work, case.device), work)
    arguments = (name, json.dumps(case.as_dict()))
    return memory.peak_of_child("bench.losses.measure", *arguments)


def _above_gradients(peak: memory.Peak, work: LossWork) -> memory.Peak:
    return replace(peak, bytes=max(peak.bytes - work.gradient_bytes, 0))


def main(arguments: list[str]) -> None:
    """Gauge one loss in this process and print the result as one line of JSON."""
    name, text = arguments
    case = LossCase(**json.loads(text))
    tiny = replace(case, rows=min(case.rows, 128), classes=min(case.classes, 100))
    LossWork(VARIANTS[name], tiny).step()  # libraries and threads start
    work = LossWork(VARIANTS[name], case)
    print(json.dumps(asdict(_above_gradients(memory.peak_above_baseline(work.step), work))))


if __name__ == "__main__":
    main(sys.argv[1:])
