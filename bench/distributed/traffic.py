"""The collectives that a process calls: counted, recorded, and played back without a network.

What goes over the network is not asked of it but computed: each collective is taken at what the
usual ring moves, which is the least that every process has to send.

=====================  =============================================
all-gather             (W - 1) times what a process contributes
all-reduce             2 (W - 1) / W times its tensor
reduce-scatter         (W - 1) / W times its input
all-to-all             (W - 1) / W times its input
broadcast              its tensor
messages               what they hold
=====================  =============================================
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Collective:
    """How one function of ``torch.distributed`` is called, and what it moves.

    Args:
        output: the name of the argument with what is received.
        input: the name of that with what is sent; for some both are one.
        share: of the input's bytes, what a process of W sends.
    """

    output: str
    input: str
    share: Callable[[int], float]


def _gathering(processes: int) -> float:
    return processes - 1


def _scattering(processes: int) -> float:
    return (processes - 1) / processes


def _reducing(processes: int) -> float:
    return 2 * _scattering(processes)


def _once(processes: int) -> float:
    return 1.0 if processes > 1 else 0.0


_GATHER = Collective("output_tensor", "input_tensor", _gathering)
_SCATTER = Collective("output", "input", _scattering)

# Newer names stand for the same as older ones; a PyTorch has one or both.
COLLECTIVES = {
    "all_gather_single": _GATHER,
    "all_gather_into_tensor": _GATHER,
    "all_gather": Collective("tensor_list", "tensor", _gathering),
    "all_reduce": Collective("tensor", "tensor", _reducing),
    "reduce_scatter_single": _SCATTER,
    "reduce_scatter_tensor": _SCATTER,
    "reduce_scatter": Collective("output", "input_list", _scattering),
    "all_to_all_single": _SCATTER,
    "broadcast": Collective("tensor", "tensor", _once),
}


@dataclass
class Traffic:
    """What one process called and sent.

    Args:
        sent_bytes: by collective; messages under ``"messages"``.
        calls: how often each was called.
        seconds: processor time of the calling thread inside of the calls.
    """

    sent_bytes: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, name: str, sent: float) -> None:
        self.sent_bytes[name] = self.sent_bytes.get(name, 0.0) + sent
        self.calls[name] = self.calls.get(name, 0) + 1


class Watch:
    """A context in which the collectives of ``torch.distributed`` are counted.

    Args:
        record: keep what each call received, in ``recorded``.
        play: what to receive instead of calling anything, as another watch recorded it. Nothing
            is sent or waited for then: one process computes what its share of a step is.
    """

    def __init__(self, *, record: bool = False, play: Sequence[list[Tensor]] | None = None) -> None:
        self.traffic = Traffic()
        self.recorded: list[list[Tensor]] = []
        self._record = record
        self._play = None if play is None else list(play)
        self._patches = ExitStack()

    def __enter__(self) -> Watch:
        watched = {
            name: functools.partial(self._call, name, getattr(dist, name))
            for name in COLLECTIVES
            if hasattr(dist, name)
        }
        watched["batch_isend_irecv"] = functools.partial(self._messages, dist.batch_isend_irecv)
        for name, function in watched.items():
            self._patches.enter_context(patch.object(dist, name, function))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patches.close()
        if kind is None and self._play:
            raise RuntimeError(f"{len(self._play)} recorded calls were not made")

    def _call(self, name: str, function: Callable[..., Any], *given: Any, **options: Any) -> Any:
        start = time.thread_time()
        collective = COLLECTIVES[name]
        arguments = inspect.signature(function).bind(*given, **options).arguments
        processes = dist.get_world_size(arguments.get("group"))
        sent = _bytes_of(arguments[collective.input]) * collective.share(processes)
        self.traffic.add(name, sent)
        received = _tensors(arguments[collective.output])
        slot = self._next_slot()
        work = None if self._play is not None else function(*given, **options)
        if arguments.get("async_op"):
            work = _Pending(work, functools.partial(self._arrived, slot, received), self.traffic)
        else:
            self._arrived(slot, received)
        self.traffic.seconds += time.thread_time() - start
        return work

    def _messages(self, function: Callable[..., Any], operations: list[dist.P2POp]) -> list[Any]:
        start = time.thread_time()
        sent = sum(_bytes_of(each.tensor) for each in operations if each.op is dist.isend)
        self.traffic.add("messages", sent)
        received = [each.tensor for each in operations if each.op is not dist.isend]
        slot = self._next_slot()
        arrived = functools.partial(self._arrived, slot, received)
        works = [None] if self._play is not None else function(operations)
        # All have arrived when the last has been waited for, and callers wait for all.
        *earlier, last = works
        self.traffic.seconds += time.thread_time() - start
        return [
            *(_Pending(work, None, self.traffic) for work in earlier),
            _Pending(last, arrived, self.traffic),
        ]

    def _next_slot(self) -> list[Tensor]:
        """What the next call received, or the list in which that is kept."""
        if self._play is not None:
            if not self._play:
                raise RuntimeError("more calls than were recorded")
            return self._play.pop(0)
        slot: list[Tensor] = []
        if self._record:
            self.recorded.append(slot)
        return slot

    def _arrived(self, slot: list[Tensor], received: list[Tensor]) -> None:
        if self._play is not None:
            for memory, content in zip(received, slot, strict=True):
                memory.copy_(content)
        elif self._record:
            slot += [each.clone() for each in received]


class _Pending:
    """What is waited for: the work itself, and what is done once it has come to its end."""

    def __init__(self, work: Any, then: Callable[[], None] | None, traffic: Traffic) -> None:
        self._work, self._then, self._traffic = work, then, traffic

    def wait(self, *arguments: Any) -> Any:
        start = time.thread_time()
        result = True if self._work is None else self._work.wait(*arguments)
        if self._then is not None:
            self._then()
            self._then = None
        self._traffic.seconds += time.thread_time() - start
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _tensors(received: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [received] if isinstance(received, Tensor) else list(received)


@torch.no_grad()
def _bytes_of(sent: Tensor | Sequence[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in _tensors(sent))
