"""Launches planned for GPUs that this machine does not have.

The package is run on fake tensors under the hardware of another device: it plans its launches
exactly as it would there, and each launch is recorded instead of run. Needs no GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

from circle_kernels.backends import triton as triton_backend
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.backends.triton.conditions import Hardware, assuming
from circle_kernels.backends.triton.launch import Launch, observe_launches
from circle_kernels.formula import PairFormula


@dataclass(frozen=True)
class Device:
    """A GPU model: how to compile for it and what a block of threads may use of it."""

    target: GPUTarget
    shared_memory: int  # bytes per block, opt-in
    multiprocessors: int
    # Of a multiprocessor, per cycle: multiply-adds of its matrix units in bfloat16 with float32
    # sums (tf32: half of it). From the makers' peak rates, numbers of units and boost clocks.
    multiply_adds: int
    threads: int  # that a multiprocessor can hold
    multiprocessor_memory: int  # shared, bytes

    @property
    def hardware(self) -> Hardware:
        """What of it decides how work is split."""
        arch = self.target.arch
        architecture = f"sm_{arch}" if self.target.backend == "cuda" else arch
        return Hardware(architecture, self.multiprocessors)


DEVICES = {
    "sm_80": Device(GPUTarget("cuda", 80, 32), 166_912, 108, 1024, 2048, 167_936),  # A100
    "sm_86": Device(GPUTarget("cuda", 86, 32), 101_376, 82, 256, 1536, 102_400),  # RTX 3090
    "sm_89": Device(GPUTarget("cuda", 89, 32), 101_376, 128, 256, 1536, 102_400),  # RTX 4090, L40
    "sm_90": Device(GPUTarget("cuda", 90, 32), 232_448, 132, 2048, 2048, 233_472),  # H100, H200
    "sm_100": Device(GPUTarget("cuda", 100, 32), 232_448, 148, 4096, 2048, 233_472),  # B200
    "sm_120": Device(GPUTarget("cuda", 120, 32), 101_376, 170, 256, 1536, 102_400),  # RTX 5090
    "gfx942": Device(GPUTarget("hip", "gfx942", 64), 65_536, 304, 1024, 2048, 65_536),  # MI300X
}


class ProductsInPlace(TorchDispatchMode):
    """Products onto fake sums are these: faking them would copy on a device that is not there."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten.addmm.dtype_out, torch.ops.aten.addmm.out):
            return kwargs["out"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def pretend_device(device: Device) -> Iterator[list[Launch]]:
    """Plan for ``device``; record launches instead of running them.

    Inside, tensors made with ``device="cuda"`` are fake: they have shapes and dtypes, no data, and
    an operation that would need the data (a host synchronisation) raises.
    """
    launches: list[Launch] = []
    with (
        assuming(hardware=device.hardware),
        observe_launches(lambda launch, proceed: launches.append(launch)),
        FakeTensorMode(),
        ProductsInPlace(),
    ):
        yield launches


def plan_launches(
    device: Device,
    *,
    dtype: torch.dtype,
    num_rows: int,
    depth: int,
    formula: PairFormula,
    num_references: int | None = None,
    normalize: bool = True,
    classes: bool = False,
    listed: bool = False,
    one_batch: bool = False,
    own_columns: bool = False,
    both_sides: bool = False,
    learned_scale: bool = False,
) -> list[Launch]:
    """The launches of one forward and one backward pass (to both sides where there are two).

    Of ``one_batch`` all are rows, whose sums are known before the backward pass: pairs count for
    references, too, whose gradient is another problem's.
    """
    with pretend_device(device) as launches:
        embeddings = torch.empty(num_rows, depth, dtype=dtype, device="cuda")
        labels = torch.empty(num_rows, dtype=torch.int64, device="cuda")
        ref_emb = ref_labels = None
        if num_references is not None:
            ref_emb = torch.empty(num_references, depth, dtype=dtype, device="cuda")
            if not classes:
                ref_labels = torch.empty(num_references, dtype=torch.int64, device="cuda")
        problem = PairProblem(embeddings, labels, ref_emb, ref_labels, formula, normalize)
        problem = problem._replace(
            own_columns=torch.empty_like(labels) if own_columns else None, both_sides=both_sides
        )
        if listed:
            shape = num_rows, len(problem.columns)
            kinds = torch.empty(shape, dtype=torch.uint8, device="cuda")
            problem = problem._replace(listed=kinds)
        # Below autograd, whose engine would ask the driver for streams.
        lse_pos, lse_neg, saved = triton_backend.forward(problem)
        statistics = None
        if one_batch:
            saved = triton_backend.save(problem, lse_pos, lse_neg)
            if num_references is not None:
                statistics = torch.empty(4, num_references, device="cuda")
        passed = Passed(saved, torch.empty_like(lse_pos), torch.empty_like(lse_neg), statistics)
        needs = Needs(embeddings=True, references=ref_emb is not None and not one_batch)
        triton_backend.backward(problem, passed, needs)
        if learned_scale:
            triton_backend.scale_gradients(problem, passed)
    return launches
