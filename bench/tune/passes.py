"""Passes with other launch settings: whether they run as they should, and how fast.

A pass is the real one, on a real problem, below autograd. It is timed as a CUDA graph, which leaves
out what launching costs, and in turn with the pass as it is.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.measuring.data import make_data
from bench.measuring.errors import first_line
from bench.measuring.timing import Effort, capture, clock_for, time_interleaved, warm_up
from bench.measuring.variants import GAMMA, M
from bench.tune.grid import Size, is_backward
from circle_kernels import CircleFormula, UnifiedFormula
from circle_kernels.backends import triton as triton_backend
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.backends.triton.conditions import assuming
from circle_kernels.backends.triton.launch import INTERPRETED, Launch, observe_launches
from circle_kernels.backends.triton.settings import Settings, fit_depth, fit_tile
from circle_kernels.backends.triton.settings_table import Table, load_table
from circle_kernels.backends.triton.sides import aligned_depth
from circle_kernels.formula import PairFormula

# Passes that are timed in turn; each graph has memory of its own.
_GROUP = 6
# Registers of a thread. A few that are spilled before and after the loop cost nothing that is seen,
# and in the loop time shows them.
MOST_SPILLS = 32


@dataclass(frozen=True)
class Job:
    """One kernel in one dtype and depth on a device."""

    kernel: str  # of the settings table
    architecture: str
    dtype: torch.dtype
    depth: int
    device: str

    def __str__(self) -> str:
        return f"{self.kernel} {str(self.dtype).removeprefix('torch.')} D={self.depth}"


class NotLaunchedError(Exception):
    """A problem takes another kernel than it was made for: a mistake in this program."""


class Pass:
    """One pass of a problem."""

    def __init__(
        self,
        job: Job,
        size: Size,
        formula: PairFormula | None = None,
        dtype: torch.dtype | None = None,
        depth: int | None = None,
        precision: str | None = None,
    ) -> None:
        """The job's pass; what is named stands in for the job's, or for float32's precision."""
        self.job = job
        self.precision = precision
        depth = job.depth if depth is None else depth
        dtype = job.dtype if dtype is None else dtype
        self.aligned_depth = aligned_depth(depth)

        def data(rows: int, seed: int) -> tuple[Tensor, Tensor]:
            made = make_data("random", rows, depth, dtype=dtype, device=job.device, seed=seed)
            return made[0].detach(), made[1]

        self.problem = PairProblem(
            *data(size.rows, 0),
            *(data(size.references, 1) if size.references else (None, None)),
            formula=formula or CircleFormula(m=M, gamma=GAMMA),
            normalize=True,
            precision=precision or torch.get_float32_matmul_precision(),
        )
        self._forward: tuple[Tensor, Tensor, Tensor] | None = None
        if is_backward(job.kernel):
            with self._precision():
                self._forward = triton_backend.forward(self.problem)

    def run(self, settings: Settings) -> tuple[Tensor, ...]:
        """Both log-sum-exps of every row, or the gradients of both sides."""
        with assuming(table=_with_entry(self.job, settings)), self._precision():
            if self._forward is None:
                return triton_backend.forward(self.problem)[:2]
            lse_pos, lse_neg, saved = self._forward
            # Of the mean of the rows' losses.
            slopes = torch.sigmoid(lse_pos + lse_neg) / len(lse_pos)
            gradients = triton_backend.backward(
                self.problem,
                Passed(saved, slopes, slopes),
                Needs(embeddings=True, references=not self.problem.self_mode),
            )
            return tuple(gradient for gradient in gradients if gradient is not None)

    def inspect(self, settings: Settings) -> tuple[tuple[Tensor, ...], int]:
        """Its results, and how many spills its kernels have.

        Raises:
            NotLaunchedError: the pass does not take its settings from the job's entry.
        """
        # Of kernels that work on tiles: their settings, and what Triton compiled.
        launches: list[tuple[Settings, Any]] = []

        def record(launch: Launch, proceed: Callable[[Launch], Any]) -> Any:
            compiled = proceed(launch)
            if launch.settings is not None:
                launches.append((launch.settings, compiled))
            return compiled

        with observe_launches(record):
            results = self.run(settings)
        wanted = fit_depth(settings, self.aligned_depth)
        cut = self.job.kernel.startswith("exact")  # to the tiles that are left
        compiled = [
            found
            for launched, found in launches
            if launched == (fit_tile(wanted, launched) if cut else wanted)
        ]
        if not compiled:
            others = [launched for launched, _ in launches]
            raise NotLaunchedError(f"{self.job}: wanted launches with {wanted}, got {others}")
        # The interpreter compiles nothing.
        return results, sum(found.n_spills for found in compiled if found is not None)

    def compile(self, settings: Settings) -> None:
        """Compile what takes its settings from the job's entry, and run no kernel at all."""

        def warm(launch: Launch, proceed: Callable[[Launch], Any]) -> None:
            if launch.settings == fit_depth(settings, self.aligned_depth) and not INTERPRETED:
                parameters = {**launch.arguments, **launch.constants, **launch.options}
                launch.kernel.warmup(**parameters, grid=(launch.programs,))

        with observe_launches(warm):
            self.run(settings)

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        previous = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision or previous)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(previous)


@dataclass(frozen=True)
class TimedPass:
    """A pass with its settings, as the stopwatch wants it."""

    of: Pass
    settings: Settings
    has_backward: bool = False
    compiles: bool = False

    def reset(self) -> None:
        """Nothing: passes add to nothing."""

    def forward(self) -> Tensor:
        """The pass."""
        return self.of.run(self.settings)[0]

    def backward(self, loss: Tensor) -> None:
        """Nothing: one pass is timed."""


Measure = Callable[[Mapping[str, TimedPass], Effort], Mapping[str, Sequence[float]]]


def measure(steps: Mapping[str, TimedPass], effort: Effort) -> dict[str, list[float]]:
    """Seconds of each step on its CUDA device, one number per round; the steps take turns."""
    clock = clock_for("cuda")
    captured = {name: capture(step) for name, step in steps.items()}
    seconds = {name: warm_up(step, clock) for name, step in captured.items()}
    samples = time_interleaved(captured, seconds, effort, clock)
    return {name: sample.forward for name, sample in samples.items()}


def other_passes(job: Job, sizes: Sequence[Size]) -> Iterator[Pass]:
    """What else takes a job's settings, compiled to other code: nothing of it may spill either."""
    for size in sizes:
        yield Pass(job, size, CircleFormula(detach_weights=False))
        if job.kernel.startswith("exact"):
            yield Pass(job, size, UnifiedFormula(m=0.35))
        yield Pass(job, size, depth=job.depth + 16)  # whose last chunk is masked
        if job.dtype == torch.float32:
            yield Pass(job, size, precision="high")
        else:
            other = torch.float16 if job.dtype == torch.bfloat16 else torch.bfloat16
            yield Pass(job, size, dtype=other)


def why_unusable(
    passes: Sequence[Pass], settings: Settings, expected: Sequence[tuple[Tensor, ...]] | None
) -> tuple[str | None, list[tuple[Tensor, ...]]]:
    """Why settings are left out, or None; and the results of the passes with them.

    Args:
        passes: what has to run with them.
        settings: what to try.
        expected: the passes' results with other settings; None compares with nothing.
    """
    found = []
    try:
        for index, one in enumerate(passes):
            results, spills = one.inspect(settings)
            if spills > MOST_SPILLS:
                return f"{spills} spills", []
            if expected is not None and not _close(results, expected[index]):
                return "results differ from those of the current settings", []
            found.append(results)
        _wait(passes[0].job)
    except NotLaunchedError:
        raise
    # Too much shared memory, or what the compiler refuses: the settings are at fault.
    except Exception as error:
        # Raises where the device is no longer usable.
        _wait(passes[0].job)
        return f"failed: {first_line(error)}", []
    return None, found


def _wait(job: Job) -> None:
    """Until the device has done everything: some errors show only then."""
    if job.device != "cpu":
        torch.cuda.synchronize()


def _close(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """Whether they differ by no more than roundings can make them.

    A log-sum-exp of size gamma is itself rounded, in float32; so are, in the results' dtype,
    weights, their products and the results.
    """
    by_sums = torch.finfo(torch.float32).eps * (16 + 2 * GAMMA)
    for result, other in zip(results, expected, strict=True):
        # Rows without positives have a sum of minus infinity.
        scale = torch.nan_to_num(other, nan=0.0, posinf=0.0, neginf=0.0).abs().max().item()
        tolerance = (by_sums + 4 * torch.finfo(other.dtype).eps) * scale
        if not torch.isclose(result, other, rtol=0.0, atol=tolerance).all():
            return False
    return True


def time_ratios(
    passes: Sequence[Pass],
    baseline: Settings,
    others: Sequence[Settings],
    measure: Measure,
    effort: Effort,
) -> tuple[dict[Settings, float], list[float]]:
    """Time with each settings over time with the baseline, and the baseline's seconds by pass.

    Ratios are medians of rounds in which all took turns, and the geometric mean over the passes.
    """
    ratios = dict.fromkeys(others, 1.0)
    seconds = []
    for timed in passes:
        for start in range(0, max(1, len(others)), _GROUP):
            group = [baseline, *others[start : start + _GROUP]]
            steps = {str(settings): TimedPass(timed, settings) for settings in group}
            samples = measure(steps, effort)
            unit = samples[str(baseline)]
            for settings in group[1:]:
                pairs = zip(samples[str(settings)], unit, strict=True)
                found = statistics.median(sample / one for sample, one in pairs)
                ratios[settings] *= found ** (1 / len(passes))
            if start == 0:
                seconds.append(statistics.median(unit))
    return ratios, seconds


def _with_entry(job: Job, settings: Settings) -> Table:
    """The table with these settings for every depth."""
    return {**load_table(), (job.kernel, job.architecture, job.dtype.itemsize): ((1, settings),)}
