"""What a process of a group is asked to do: steps that are timed, gauged, recorded or played back.

All processes of a group are asked the same at the same time, since their steps need one another.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.distributed.methods import SharedCase, SharedWork, method_named
from bench.distributed.traffic import Watch
from bench.measuring.memory import peak_above_baseline
from bench.measuring.worker import Answer

# A process that waits for one that has failed gives up after this.
_TIMEOUT = timedelta(seconds=240)
_WARM_UP_ROWS = 256
_WARM_UP_CLASSES = 300


@dataclass
class Steps:
    """Some steps of one method in one process, one entry for each round.

    Args:
        compute: processor seconds of the calling thread outside of collectives.
        processor: processor seconds of the process, with what moves data.
        wall: seconds.
        sent_bytes: of one step, by collective.
        calls: of one step, by collective.
        loss: the last.
    """

    compute: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    sent_bytes: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    loss: float = 0.0

    def take(self, work: SharedWork, watch: Watch) -> None:
        """Run one step and add what it took."""
        work.reset()
        gc.collect()  # not while the clocks run
        with watch:
            marks = time.perf_counter(), time.process_time(), time.thread_time()
            loss = work.step()
            wall, processor, thread = (
                clock() - mark
                for clock, mark in zip(
                    (time.perf_counter, time.process_time, time.thread_time), marks, strict=True
                )
            )
        self.wall.append(wall)
        self.processor.append(processor)
        self.compute.append(thread - watch.traffic.seconds)
        self.sent_bytes, self.calls = watch.traffic.sent_bytes, watch.traffic.calls
        self.loss = loss.item()


@dataclass(frozen=True)
class Recording:
    """What one process received in its first step and in one after it, and what came of it."""

    steps: tuple[list[list[Tensor]], list[list[Tensor]]]
    loss: float
    gradient: Tensor


def start(rank: int, processes: int, store: str) -> Answer:
    """Join the others, who meet at the file ``store``; without one, play alone."""
    torch.set_num_threads(1)
    if store:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, processes),
            rank=rank,
            world_size=processes,
            timeout=_TIMEOUT,
        )
    else:
        # A group whose collectives return at once; the watch puts there what was recorded.
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
    tasks: dict[str, Callable[..., Any]] = {
        "time": time_methods,
        "memory": gauge,
        "record": record,
        "play": play,
    }

    def answer(request: tuple[Any, ...], tell: Callable[[Any], None]) -> Any:
        task, *arguments = request
        return tasks[task](*arguments)

    return answer


def time_methods(case: SharedCase, names: Sequence[str], rounds: int) -> dict[str, Steps]:
    """Steps of all methods in turn; of one that needs no group, only the first process's."""
    rank = dist.get_rank()
    works = {
        name: work for name in names if (work := _work(case, name, alone_too=rank == 0)) is not None
    }
    steps = {name: Steps() for name in works}
    for each_round in range(-1, rounds):  # the first is to warm up
        for name in names:
            dist.barrier()
            if name in works:
                steps[name].take(works[name], Watch())
        if each_round < 0:
            steps = {name: Steps() for name in works}
    return steps


def gauge(case: SharedCase, name: str) -> int | None:
    """Bytes of the peak of one step above what it is given; None where this process does nothing.

    Raises:
        Exception: whatever the method raises.
    """
    tiny = replace(
        case,
        rows=min(case.rows, _WARM_UP_ROWS),
        classes=min(case.classes, _WARM_UP_CLASSES),
    )
    alone_too = dist.get_rank() == 0
    warm_up = _work(tiny, name, alone_too=alone_too)
    work = _work(case, name, alone_too=alone_too)
    if warm_up is None or work is None:
        return None
    warm_up.step()  # libraries and connections start
    del warm_up
    if not method_named(case, name).alone:
        dist.barrier()
    return peak_above_baseline(work.step).bytes


def record(case: SharedCase, name: str, path: str) -> None:
    """Keep in a file what the first process receives in two steps, and what they give."""
    work = _work(case, name, alone_too=False)
    assert work is not None
    watches = Watch(record=True), Watch(record=True)
    for watch in watches:
        with watch:
            loss = work.step()
    if dist.get_rank() == 0:
        assert work.embeddings.grad is not None
        steps = (watches[0].recorded, watches[1].recorded)
        torch.save(Recording(steps, loss.item(), work.embeddings.grad), path)


def play(case: SharedCase, alone: str, recordings: dict[str, str], rounds: int) -> dict[str, Steps]:
    """Steps of the first process, played back, in turn with the whole batch in one process.

    Raises:
        RuntimeError: a played step does not give what the recorded one gave.
    """
    whole = _work(case, alone, alone_too=True)
    assert whole is not None
    shares = {}
    for name, path in recordings.items():
        work = _work(case, name, alone_too=True)
        assert work is not None
        recording = torch.load(path, weights_only=False)
        with Watch(play=recording.steps[0]):
            work.step()
        shares[name] = work, recording
    steps = {name: Steps() for name in (alone, *shares)}
    whole.step()
    for _ in range(rounds):
        steps[alone].take(whole, Watch())
        for name, (work, recording) in shares.items():
            steps[name].take(work, Watch(play=recording.steps[1]))
            gradient = work.embeddings.grad
            if gradient is None or not torch.equal(gradient, recording.gradient):
                raise RuntimeError(f"the played step of {name} has another gradient")
    return steps


def _work(case: SharedCase, name: str, *, alone_too: bool) -> SharedWork | None:
    method = method_named(case, name)
    if method.alone and not alone_too:
        return None
    return SharedWork(method, case, dist.get_rank(), dist.get_world_size())
