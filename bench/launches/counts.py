"""What one call asks of host and device: operators, kernels, waits, for each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.launches.watched import NodeOfLoss
from bench.measuring.cases import Case
from bench.measuring.operators import CountOperators
from bench.measuring.variants import GAMMA, M, Work
from circle_kernels.formula import CircleFormula
from circle_kernels.operation.batch import Operation, operation_of

TARGET = "sm_90"  # the device that is pretended; small batches take as many launches on every one
PASSES = ("forward", "backward")


@dataclass
class Counts:
    """Of one pass.

    Args:
        operators: PyTorch's, each of which goes through its dispatcher.
        kernels: Triton's, each launched from Python.
        launches: the kernels, and the operators that launch at least one.
        waits: how often the host waits for the device.
        profiled: kernels that a profiler saw on a device; None where there is none.
    """

    operators: int
    kernels: int
    launches: int
    waits: int
    profiled: int | None = None


def count_triton(case: Case) -> dict[str, Counts]:
    """Both passes of the Triton backend, on fake tensors of a pretended device."""
    from bench.offline.pretended import DEVICES, pretend_device

    with pretend_device(DEVICES[TARGET]) as launches:
        embeddings = torch.empty(
            case.rows, case.dim, dtype=case.torch_dtype, device="cuda", requires_grad=True
        )
        labels = torch.empty(case.rows, dtype=torch.int64, device="cuda")
        operation = operation_of(CircleFormula, m=M, gamma=GAMMA, backend="triton")
        return count_without_engine(operation, (embeddings, labels), launches)


def count_without_engine(
    operation: Operation, batch: tuple[Tensor, Tensor], launches: Sequence[Any] = ()
) -> dict[str, Counts]:
    """Both passes of a loss that is one node of autograd's graph, without autograd's engine.

    The engine would ask a driver for streams, so what it does is done here.

    Args:
        operation: whose loss, reduced by its mean.
        batch: embeddings and labels.
        launches: where launches of kernels are recorded.
    """
    node = NodeOfLoss(operation, "mean")
    forward_counts, loss = _count(lambda: node.forward(*batch), launches)
    backward_counts, _ = _count(lambda: node.backward(loss), launches)
    return {"forward": forward_counts, "backward": backward_counts}


def count_with_engine(work: Work) -> dict[str, Counts]:
    """Both passes of any work on CPU tensors; its operators are the same on a device."""
    work.reset()
    forward_counts, loss = _count(work.forward)
    backward_counts, _ = _count(lambda: work.backward(loss))
    return {"forward": forward_counts, "backward": backward_counts}


def _count(function: Callable[[], Any], launches: Sequence[Any] = ()) -> tuple[Counts, Any]:
    before = len(launches)
    with CountOperators() as seen:
        result = function()
    kernels = len(launches) - before
    return (
        Counts(len(seen.names), kernels, kernels + len(seen.launching), len(seen.waiting)),
        result,
    )


def profile_kernels(work: Work) -> dict[str, int]:
    """Kernels of each pass as a profiler sees them, of work on a device."""
    for _ in range(3):
        work.step()  # kernels compile
    work.reset()
    kernels = {}
    loss = None
    for name in PASSES:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            if loss is None:
                loss = work.forward()
            else:
                work.backward(loss)
            torch.cuda.synchronize()
        kernels[name] = count_kernels(seen.events())
    return kernels


def count_kernels(events: Iterable[Any]) -> int:
    """Kernels among a profiler's events, which are also copies and what the host does."""
    return sum(
        event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        for event in events
    )
