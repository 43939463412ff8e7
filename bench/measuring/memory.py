"""The memory gauge: peak above the inputs, in a fresh process per case on the CPU.

As a program (``python -m bench.measuring.memory VARIANT CASE-AS-JSON``) it is that fresh process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from bench.measuring.cases import Case
from bench.measuring.variants import VARIANTS
from bench.places import ROOT

_WARM_UP_ROWS = 256

# Enough for the naive path at N = 8192 in float32, and left free by an ordinary laptop.
_CPU_LIMIT = 4e9

# glibc raises these thresholds as blocks are freed and then keeps blocks of up to 32 MB for later,
# so that resident memory would also count what is no longer in use. Set, they stay as they are.
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Peak:
    """Peak memory above what was in use before, and how it was found."""

    bytes: int
    method: str


class Steps(Protocol):
    """What can be gauged on a device."""

    def step(self) -> None:
        """One training step."""

    def reset(self) -> None:
        """Drop the last gradient."""


def default_limit(device: str) -> float:
    """How many bytes a benchmark may take where nobody says; more is skipped."""
    if torch.device(device).type == "cuda":
        return 0.8 * torch.cuda.mem_get_info(device)[0]
    try:
        import psutil
    except ImportError:
        return _CPU_LIMIT
    return min(_CPU_LIMIT, 0.6 * psutil.virtual_memory().available)


def measure(variant: str, case: Case) -> Peak:
    """Peak of one training step above its inputs; the gradient counts.

    Raises:
        RuntimeError: the step failed; the message is the last line of its error.
    """
    if torch.device(case.device).type == "cuda":
        # This process has compiled other shapes, and compilers limit how many they take.
        torch.compiler.reset()
        return cuda_peak(VARIANTS[variant].work(case), case.device)
    return peak_of_child("bench.measuring.memory", variant, json.dumps(case.as_dict()))


def peak_of_child(module: str, *arguments: str) -> Peak:
    """What a module of ours, run as a program in a fresh process, prints as its peak.

    Raises:
        RuntimeError: it failed; the message is the last line of its error.
    """
    root = ROOT
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    child = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **RETURN_FREED_MEMORY, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"ended with code {child.returncode}")
    return Peak(**json.loads(child.stdout.splitlines()[-1]))


def peak_above_baseline(run: Callable[[], Any]) -> Peak:
    """Peak resident memory of this process while ``run`` runs, above what is resident now."""
    import psutil

    gc.collect()
    _trim_heap()
    resettable = _reset_high_water_mark()
    baseline = psutil.Process().memory_info().rss
    # Keep the result until the peak is read.
    result = run()
    peak = _high_water_mark(resettable)
    del result
    method = "VmHWM" if resettable else "ru_maxrss, an upper bound"
    return Peak(max(peak - baseline, 0), method)


def _cpu_peak(variant_name: str, case: Case) -> Peak:
    variant = VARIANTS[variant_name]
    function = variant.build()
    work = variant.work(case, function)
    # Libraries and threads start, and where shapes are compiled, the real shape compiles.
    tiny = replace(case, rows=_WARM_UP_ROWS)
    (work if work.compiles else variant.work(tiny, function)).step()
    work.reset()
    return peak_above_baseline(work.step)


def cuda_peak(work: Steps, device: str) -> Peak:
    """Peak of a step on a CUDA device above what is allocated once another one has run."""
    work.step()
    work.reset()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    baseline = torch.cuda.memory_allocated(device)
    work.step()
    torch.cuda.synchronize(device)
    return Peak(torch.cuda.max_memory_allocated(device) - baseline, "max_memory_allocated")


def _trim_heap() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _reset_high_water_mark() -> bool:
    """Make VmHWM start again from what is resident now; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water_mark(resettable: bool) -> int:
    if resettable:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # only on Unix, and on Linux not needed

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: list[str]) -> None:
    """Measure one case in this process and print the result as one line of JSON."""
    variant, case = arguments
    peak = _cpu_peak(variant, Case(**json.loads(case)))
    print(json.dumps({"bytes": peak.bytes, "method": peak.method}))


if __name__ == "__main__":
    main(sys.argv[1:])
