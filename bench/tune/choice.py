"""Which settings one kernel should have in one dtype and depth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from bench.measuring.timing import Effort
from bench.tune.grid import Gpu, candidates, problem_sizes
from bench.tune.passes import Job, Measure, Pass, other_passes, time_ratios, why_unusable
from bench.tune.search import EVERYTHING, Extent
from circle_kernels.backends.triton.settings import Settings, listed_settings, settings_family

# Of the time with the current settings, what others must stay below to replace them.
MOST_RATIO = 0.97
_EFFORT = Effort(seconds=0.7, min_rounds=7, max_rounds=40, sample_seconds=0.004)
_QUICK_EFFORT = Effort(seconds=0.3, min_rounds=5, max_rounds=20, sample_seconds=0.004)


def to_try(job: Job, gpu: Gpu, extent: Extent) -> list[Settings]:
    """Different settings, the current ones first, then those of the architecture's family."""
    itemsize = job.dtype.itemsize
    current = listed_settings(job.kernel, job.architecture, itemsize, job.depth)
    tile_of = current if extent.same_tile else None
    grid = candidates(job.kernel, itemsize, job.depth, gpu, tile_of)
    if extent.most is not None:
        # Sorting is stable: of those as near as one another the grid's first.
        grid = sorted(grid, key=lambda settings: _distance(settings, current))
    if tile_of is None:
        family = settings_family(job.architecture)
        grid = [listed_settings(job.kernel, family, itemsize, job.depth), *grid]
    return list(dict.fromkeys([current, *grid]))[: extent.most]


def _distance(settings: Settings, other: Settings) -> float:
    """By how many doublings and stages they differ."""
    sides = ("block_rows", "block_columns", "block_depth", "num_warps")
    doublings = sum(
        abs(math.log2(getattr(settings, name) / getattr(other, name))) for name in sides
    )
    return doublings + abs(settings.num_stages - other.num_stages)


def new_row(job: Job, current: Settings) -> dict[str, Any]:
    """A row of results before anything is known."""
    return {
        "kernel": job.kernel,
        "dtype": str(job.dtype).removeprefix("torch."),
        "depth": job.depth,
        "current": text_of(current),
        "chosen": None,
        "left_out": {},
    }


def choose_settings(
    job: Job,
    gpu: Gpu,
    extent: Extent,
    broken: Mapping[Settings, str],
    trying: Callable[[Settings | None], None],
    measure: Measure,
) -> tuple[Settings | None, dict[str, Any]]:
    """The settings that a job should have, or None where none run; and what was found, as a row.

    Args:
        job: the kernel, dtype and depth.
        gpu: the device.
        extent: how many are tried, and with it how much effort each is worth.
        broken: settings not to be tried, and why.
        trying: told which settings come next, and None before others are timed.
        measure: times steps in turn.
    """
    current, *grid = to_try(job, gpu, extent)
    sizes = problem_sizes(job.kernel, gpu.multiprocessors)
    passes = [Pass(job, size) for size in sizes]
    usable: list[Settings] = []
    left_out: dict[str, str] = {}
    expected = None
    for settings in (current, *grid):
        trying(settings)
        reason = broken.get(settings)
        if reason is None:
            reason, found = why_unusable(passes, settings, expected)
        if reason is None:
            usable.append(settings)
            expected = expected or found
        else:
            left_out[text_of(settings)] = reason
    row = new_row(job, current)
    row["problems"] = [dataclasses.asdict(size) for size in sizes]
    row["left_out"] = left_out
    if not usable:
        return None, row
    trying(None)
    baseline, *others = usable
    effort = _EFFORT if extent == EVERYTHING else _QUICK_EFFORT
    ratios, seconds = time_ratios(passes, baseline, others, measure, effort)

    def fails_elsewhere(settings: Settings) -> bool:
        trying(settings)
        for other in other_passes(job, sizes):
            reason, _ = why_unusable([other], settings, None)
            if reason is not None:
                left_out[text_of(settings)] = f"for another formula, depth or dtype: {reason}"
                return True
        return False

    chosen = choose(baseline, ratios, fails_elsewhere, keeps_baseline=baseline == current)
    row["chosen"] = text_of(chosen)
    # Allowed, but not in the package's table.
    row["spills"] = max(one.inspect(chosen)[1] for one in passes)
    row["ratio"] = 1.0 if chosen == baseline else float(f"{ratios[chosen]:.4g}")
    row["seconds"] = [float(f"{value:.4g}") for value in seconds]
    row["ratios"] = {text_of(settings): float(f"{found:.4g}") for settings, found in ratios.items()}
    return chosen, row


def choose(
    baseline: Settings,
    ratios: Mapping[Settings, float],
    rejected: Callable[[Settings], bool],
    keeps_baseline: bool = True,
) -> Settings:
    """The fastest that is not rejected, or the baseline.

    Args:
        baseline: what all were timed beside.
        ratios: time with each over time with the baseline.
        rejected: asked from the fastest on, until one is not.
        keeps_baseline: the baseline stays unless others are faster by more than the margin.
    """
    most = MOST_RATIO if keeps_baseline else 1.0
    for settings in sorted(ratios, key=lambda settings: ratios[settings]):
        if ratios[settings] >= most:
            break
        if not rejected(settings):
            return settings
    return baseline


def text_of(settings: Settings) -> str:
    """``128x128x64, 8 warps, 3 stages``."""
    tile = f"{settings.block_rows}x{settings.block_columns}x{settings.block_depth}"
    limit = f", {settings.max_registers} registers" if settings.max_registers else ""
    if settings.column_slices > 1:
        limit += f", {settings.column_slices} slices"
    return f"{tile}, {settings.num_warps} warps, {settings.num_stages} stages{limit}"
