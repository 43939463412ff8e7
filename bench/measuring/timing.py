"""The stopwatch: interleaved rounds of forward and backward, on CPU and GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


class Step(Protocol):
    """What can be timed; :class:`bench.measuring.variants.Work` is one."""

    @property
    def has_backward(self) -> bool:
        """False for a bare product, of which only the forward pass is timed."""

    @property
    def compiles(self) -> bool:
        """Whether the first step compiles."""

    def reset(self) -> None:
        """Drop the last gradient."""

    def forward(self) -> Tensor:
        """The loss, with its graph."""

    def backward(self, loss: Tensor) -> None:
        """The gradient."""


@dataclass(frozen=True)
class Effort:
    """How long to measure one case.

    Args:
        seconds: rounds are added until this much time is spent ...
        min_rounds: ... but at least so many ...
        max_rounds: ... and at most so many.
        sample_seconds: short steps are repeated until a sample lasts about this long.
    """

    seconds: float = 6.0
    min_rounds: int = 5
    max_rounds: int = 50
    sample_seconds: float = 0.01


@dataclass
class Samples:
    """Seconds per step of one variant, one entry per round."""

    repeats: int
    forward: list[float] = field(default_factory=list)
    forward_backward: list[float] = field(default_factory=list)


class CpuClock:
    """Marks are seconds."""

    def mark(self) -> float:
        return time.perf_counter()

    def wait(self) -> None:
        pass

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """Marks are events in the stream, so that launches can run ahead as they do in training.

    Caches of the device are not flushed between steps: what fits in them is warm, for every
    variant, as it is where embeddings come from the layer before.
    """

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1e3


def clock_for(device: str) -> CpuClock | CudaClock:
    """The clock that measures work on this device."""
    return CudaClock() if torch.device(device).type == "cuda" else CpuClock()


class CapturedStep:
    """A whole step, recorded in a CUDA graph and replayed as one launch."""

    compiles = False

    def __init__(self, work: Step, graph: torch.cuda.CUDAGraph, result: Tensor) -> None:
        self.has_backward = work.has_backward
        self._work = work  # owns what the graph reads and the gradient that it writes
        self._graph = graph
        self._result = result

    def reset(self) -> None:
        """Nothing: a replay overwrites the last gradient."""

    def forward(self) -> Tensor:
        """The loss; the gradient, too, where there is one."""
        self._graph.replay()
        return self._result

    def backward(self, loss: Tensor) -> None:
        """Nothing: it was replayed with the forward pass."""


def capture(work: Step) -> CapturedStep:
    """Record a step on a CUDA device, after others in which its kernels compile.

    Raises:
        RuntimeError: the step does what cannot be recorded, such as waiting for the device.
    """

    def step() -> Tensor:
        work.reset()
        loss = work.forward()
        work.backward(loss)
        return loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    work.reset()
    with torch.cuda.graph(graph):
        result = step()
    return CapturedStep(work, graph, result)


def take_sample(work: Step, clock: Any, repeats: int) -> tuple[float, float]:
    """Mean seconds of the forward pass and of forward and backward together over some steps.

    One step gives both numbers: the forward pass of a training step, and the whole step.
    """
    marks = []
    clock.wait()
    for _ in range(repeats):
        work.reset()
        start = clock.mark()
        loss = work.forward()
        middle = clock.mark()
        work.backward(loss)
        marks.append((start, middle, clock.mark()))
        # Free the graph here, between two marks, and not inside the next step's forward pass.
        del loss
    clock.wait()
    forward = sum(clock.seconds(start, middle) for start, middle, _ in marks)
    whole = sum(clock.seconds(start, end) for start, _, end in marks)
    return forward / repeats, whole / repeats


def warm_up(work: Step, clock: Any) -> float:
    """Run a few steps and return the seconds of the last.

    A step longer than a second needs no second one, unless what took so long was compiling.
    """
    if work.compiles:
        take_sample(work, clock, repeats=1)
    seconds = 0.0
    for _ in range(3):
        seconds = take_sample(work, clock, repeats=1)[1]
        if seconds > 1:
            break
    return seconds


def time_interleaved(
    works: Mapping[str, Step],
    step_seconds: Mapping[str, float],
    effort: Effort,
    clock: Any,
) -> dict[str, Samples]:
    """Time all variants in turn, round by round, so that they share whatever the machine does.

    Args:
        works: what to time, warmed up.
        step_seconds: about how long one step of each takes, from :func:`warm_up`.
        effort: how many rounds.
        clock: see :func:`clock_for`.
    """
    samples = {name: Samples(_repeats(step_seconds[name], effort.sample_seconds)) for name in works}
    begin = time.perf_counter()
    for done in range(effort.max_rounds):
        if done >= effort.min_rounds and time.perf_counter() - begin > effort.seconds:
            break
        for name, work in works.items():
            forward, whole = take_sample(work, clock, samples[name].repeats)
            samples[name].forward.append(forward)
            if work.has_backward:
                samples[name].forward_backward.append(whole)
    return samples


def _repeats(step_seconds: float, sample_seconds: float) -> int:
    return min(max(math.ceil(sample_seconds / max(step_seconds, 1e-7)), 1), 1000)
