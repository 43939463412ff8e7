"""A check of the kernels on the device at hand, before a result of theirs is relied on.

Compilers have faults, as Triton 3.6 has on sm_100 and sm_103 (triton-lang/triton 9871, 10590 and
10821), and no one has run the kernels on every device. The first problem of each dtype on a device
waits for a few small ones, whose results are compared with float64. What came out is remembered.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import triton

from circle_kernels._version import __version__
from circle_kernels.backends import remembered, trial
from circle_kernels.backends import triton as kernels
from circle_kernels.backends.triton import launch
from circle_kernels.backends.triton.conditions import (
    Limits,
    assuming,
    conditions_on,
    hardware_is_assumed,
    hardware_of,
)
from circle_kernels.formula import PairFormula

VARIABLE = "CIRCLE_KERNELS_SELF_CHECK"  # "0" takes the kernels as they are
MEASURED: frozenset[str] = frozenset()  # architectures (sm_90) that all tests ran on: none so far

_found: dict[tuple[torch.device, torch.dtype], str] = {}  # what was wrong; "" where nothing was
_lock = threading.Lock()


def unusable_reason(device: torch.device, dtype: torch.dtype, formula: PairFormula) -> str | None:
    """That of ``launch``, or what the check found, which the first call for a dtype runs."""
    reason = launch.unusable_reason(device, dtype, formula)
    if reason is None and _found.get((device, dtype)) != "" and _is_checked(device):
        with _lock:
            reason = _known(device, dtype, or_run=True)
    return reason or None


def status() -> str:
    """That of ``launch``, with what checks have found; nothing is run."""
    words = launch.status()
    if not words.startswith("usable") or not _is_checked(torch.device("cuda")):
        return words
    device = torch.device("cuda", torch.cuda.current_device())
    failures = [reason for dtype in launch.DTYPES if (reason := _known(device, dtype))]
    if len(failures) == len(launch.DTYPES):
        return f"not usable: {failures[0]}"
    return "; but ".join([words, *failures])


def _is_checked(device: torch.device) -> bool:
    return not (
        launch.INTERPRETED
        or hardware_is_assumed()
        or os.environ.get(VARIABLE) == "0"
        or hardware_of(device).architecture in MEASURED
    )


def _known(device: torch.device, dtype: torch.dtype, *, or_run: bool = False) -> str | None:
    """What is wrong, ``""`` where nothing is, None where nobody knows."""
    if (device, dtype) in _found:
        return _found[device, dtype]
    key = _key(device, dtype)
    failure = remembered.recall(key)
    # What a CUDA graph captures does not run, and the check waits for its results.
    if failure is None and or_run and not torch.cuda.is_current_stream_capturing():
        try:
            # A thread has none of its caller's modes: autocast, inference, transforms, and fake
            # tensors, under which compilers choose a backend for all runs of a graph.
            with _waiting_allowed(), ThreadPoolExecutor(1) as thread:
                failure = thread.submit(check, device, dtype).result()
            remembered.remember(key, failure)
        except torch.OutOfMemoryError:  # which says nothing of the kernels
            return None
        except Exception as error:  # no result, for a reason that the next process may not have
            failure = _words(f"{dtype} ended in {type(error).__name__}: {error}")
    if failure is not None:
        _found[device, dtype] = failure
    return failure


@contextlib.contextmanager
def _waiting_allowed() -> Iterator[None]:
    """Whoever looks for waits has to wait this once."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _key(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """All that may change what a check finds."""
    hardware, _, table = conditions_on(device)
    return {
        "device": f"{torch.cuda.get_device_name(device)}, {hardware.architecture}",
        "driver": _driver(),
        "versions": f"{__version__}, torch {torch.__version__}, triton {triton.__version__}",
        "kernels": remembered.digest(_sources(), repr(table)),
        "dtype": str(dtype),
    }


def _driver() -> str:
    nvidia, amd = "/proc/driver/nvidia/version", "/sys/module/amdgpu/version"
    path = Path(amd if torch.version.hip else nvidia)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "unknown"


@functools.cache
def _sources() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return remembered.digest(*(file.read_text("utf-8") for file in files))


def check(device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with results of the kernels, or ``""``.

    Raises:
        Exception: what the kernels, their compiler or the driver raise.
    """
    for order, limits in (
        ("any", Limits()),  # a batch alone is then a small one
        ("any", Limits(small_rows=0)),
        ("label", Limits(sorted_tiles=0)),
    ):
        with assuming(limits=limits):
            wrong = trial.fault(kernels, device, dtype)
        if wrong:
            return _words(
                f"{dtype}, with rows in {order} order, failed: {wrong}",
                f"; without the files in {remembered.folder()} they are checked again",
            )
    return ""


def _words(what: str, then: str = "") -> str:
    return (
        f"its self-check in {what}. Another version of Triton may compile the kernels right; "
        f"{VARIABLE}=0 takes them as they are{then}"
    )
