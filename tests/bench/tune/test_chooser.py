"""Settings that end or hang the process in which they are tried."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from bench.tune.chooser import Choice, Chooser
from bench.tune.grid import Gpu
from bench.tune.passes import Job
from bench.tune.search import QUICK, Extent
from circle_kernels.backends.triton.settings import Settings
from tests.bench.gpu.gpu_tasks import FAR_AWAY
from tests.bench.tune.tuning import BASE, FAST, FASTER, H100


def breaks_at_some(
    job: Job, gpu: Gpu, extent: Extent, broken: dict, trying: Any, measure: Any
) -> Choice:
    """Ends its process with one of the settings and hangs with another."""
    for settings in (BASE, FAST, FASTER):
        trying(settings)
        if job.depth == 64 and settings not in broken:
            if settings == BASE:
                os.abort()
            if settings == FAST:
                time.sleep(FAR_AWAY)
    trying(None)
    if job.depth == 1:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
    return FASTER, {"broken": broken, "process": os.getpid()}


def test_settings_that_end_the_process_are_left_out() -> None:
    # Waits for what hangs, the first time that it is tried, and for all else as long as it takes.
    hangs = {FAST: 1.0}

    def patience(settings: Settings | None) -> float:
        return FAR_AWAY if settings is None else hangs.pop(settings, FAR_AWAY)

    jobs = [Job("triangle", "sm_90", torch.float32, depth, "cpu") for depth in (64, 128, 1)]
    tried = []
    with Chooser(H100, QUICK, breaks_at_some, patience) as chooser:
        settings, row = chooser.choose(jobs[0], lambda: tried.append(1))
        assert settings == FASTER
        assert row["broken"] == {
            BASE: "failed: the process ended with code -6",
            FAST: "failed: took longer than 1 s",
        }
        assert len(tried) == 3
        # The process goes on with the next job, of which nothing is known to be broken.
        assert chooser.choose(jobs[1], lambda: None)[1] == {"broken": {}, "process": row["process"]}
        settings, row = chooser.choose(jobs[2], lambda: None)
    assert settings is None
    assert row["failed"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
