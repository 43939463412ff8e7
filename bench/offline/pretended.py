"""Launch plans and compiled kernels for GPUs that this machine does not have.

The package is run on fake tensors of a pretended device: it plans its launches exactly as it would
there, each launch is recorded instead of run, and Triton compiles it for the real target. Needs no
GPU; registers, spills and instructions come from the disassemblers bundled with Triton.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.offline.disassembly import Path, tile_paths
from circle_kernels.backends import choice
from circle_kernels.backends import triton as triton_backend
from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton import launch as launch_module
from circle_kernels.formula import PairFormula

_BINARIES = FilePath(triton.__file__).parent / "backends" / "nvidia" / "bin"
_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")


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
    def capability(self) -> tuple[int, int]:
        return divmod(self.target.arch, 10)


DEVICES = {
    "sm_80": Device(GPUTarget("cuda", 80, 32), 166_912, 108, 1024, 2048, 167_936),  # A100
    "sm_86": Device(GPUTarget("cuda", 86, 32), 101_376, 82, 256, 1536, 102_400),  # RTX 3090
    "sm_89": Device(GPUTarget("cuda", 89, 32), 101_376, 128, 256, 1536, 102_400),  # RTX 4090, L40
    "sm_90": Device(GPUTarget("cuda", 90, 32), 232_448, 132, 2048, 2048, 233_472),  # H100, H200
    "sm_100": Device(GPUTarget("cuda", 100, 32), 232_448, 148, 4096, 2048, 233_472),  # B200
    "sm_120": Device(GPUTarget("cuda", 120, 32), 101_376, 170, 256, 1536, 102_400),  # RTX 5090
    "gfx942": Device(GPUTarget("hip", "gfx942", 64), 65_536, 304, 1024, 2048, 65_536),  # MI300X
}


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel and everything that its compilation depends on."""

    kernel: Any
    programs: int
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]  # arguments known to be multiples of 16
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        constants = "-".join(f"{value}" for _, value in self.constants)
        dtype = dict(self.signature).get("rows_ptr", "")
        return f"{self.kernel.__name__}[{dtype}-{constants}]"


@contextlib.contextmanager
def pretend_device(device: Device) -> Iterator[list[Launch]]:
    """Make the package believe in ``device``; record launches instead of running them.

    Inside, tensors made with ``device="cuda"`` are fake: they have shapes and dtypes, no data, and
    an operation that would need the data (a host synchronisation) raises.
    """
    launches: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **arguments: Any) -> None:
        assert not args, "kernels are launched with keyword arguments"
        launches.append(_describe(kernel, grid[0], arguments))

    is_hip = device.target.backend == "hip"
    properties = SimpleNamespace(
        multi_processor_count=device.multiprocessors, gcnArchName=str(device.target.arch)
    )
    caches = (launch_module.device_family, launch_module.num_multiprocessors)
    with (
        mock.patch.object(triton.runtime.JITFunction, "run", record),
        mock.patch.object(torch.version, "hip", "6.0" if is_hip else None),
        mock.patch.object(
            torch.cuda, "get_device_capability", return_value=None if is_hip else device.capability
        ),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
        mock.patch.object(torch.cuda, "device", return_value=contextlib.nullcontext()),
        # Launches are only recorded: fake tensors may come where kernels would read memory.
        mock.patch.object(choice, "all_addressable", return_value=True),
        FakeTensorMode(),
    ):
        for cache in caches:
            cache.cache_clear()
        try:
            yield launches
        finally:
            for cache in caches:
                cache.cache_clear()


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
) -> list[Launch]:
    """The launches of one forward and one backward pass (to both sides where there are two)."""
    with pretend_device(device) as launches:
        embeddings = torch.empty(num_rows, depth, dtype=dtype, device="cuda")
        labels = torch.empty(num_rows, dtype=torch.int64, device="cuda")
        ref_emb = ref_labels = None
        if num_references is not None:
            ref_emb = torch.empty(num_references, depth, dtype=dtype, device="cuda")
            if not classes:
                ref_labels = torch.empty(num_references, dtype=torch.int64, device="cuda")
        problem = PairProblem(embeddings, labels, ref_emb, ref_labels, formula, normalize)
        # Below autograd, whose engine would ask the driver for streams.
        lse_pos, lse_neg, saved = triton_backend.forward(problem)
        triton_backend.backward(
            problem,
            lse_pos,
            lse_neg,
            saved,
            torch.empty_like(lse_pos),
            torch.empty_like(lse_neg),
            needs_embeddings=True,
            needs_references=ref_emb is not None,
        )
    return launches


def _describe(kernel: Any, programs: int, arguments: dict[str, Any]) -> Launch:
    """What Triton's own launcher would specialise on: ones, multiples of 16, dtypes, constants."""
    options = {name: arguments[name] for name in _OPTIONS if name in arguments}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible: list[str] = []
    for parameter in kernel.params:
        name, value = parameter.name, arguments[parameter.name]
        if parameter.is_constexpr or (
            type(value) is int and value == 1 and not parameter.do_not_specialize
        ):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            divisible.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                divisible.append(name)
    return Launch(
        kernel,
        programs,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(divisible),
        tuple(options.items()),
    )


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses, per thread and per block."""

    registers: int
    spills: int  # to local memory: instructions (NVIDIA), registers and bytes (AMD)
    shared_memory: int  # bytes per block
    matrix_instructions: int
    exponentials: int
    paths: tuple[Path, ...] = ()  # through the tile loop, cheapest first (NVIDIA)


def compile_launch(launch: Launch, device: Device) -> Resources:
    """Compile one recorded launch for a device and read what it uses."""
    names = [parameter.name for parameter in launch.kernel.params]
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    compiled = triton.compile(source, target=device.target, options=dict(launch.options))
    shared_memory = compiled.metadata.shared
    if device.target.backend == "hip":
        return _read_amd(compiled.asm["amdgcn"], shared_memory)
    return _read_nvidia(compiled.asm["cubin"], shared_memory)


def _read_amd(assembly: str, shared_memory: int) -> Resources:
    def number(field: str) -> int:
        match = re.search(rf"\.{field}:\s+(\d+)", assembly)
        assert match is not None, f"no {field} in the assembly"
        return int(match[1])

    return Resources(
        registers=number("vgpr_count"),
        # Scalar registers spill to lanes of vector registers, not to memory.
        spills=number("vgpr_spill_count") + number("private_segment_fixed_size"),
        shared_memory=shared_memory,
        matrix_instructions=len(re.findall(r"\bv_mfma_", assembly)),
        exponentials=len(re.findall(r"\bv_exp_f32", assembly)),
    )


def _read_nvidia(cubin: bytes, shared_memory: int) -> Resources:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        FilePath(path).write_bytes(cubin)
        usage = _run("cuobjdump", "-res-usage", path)
        disassembly = _run("nvdisasm", path)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, f"no register count in: {usage}"
    return Resources(
        registers=int(registers[1]),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", disassembly)),
        shared_memory=shared_memory,
        matrix_instructions=len(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", disassembly)),
        exponentials=len(re.findall(r"\bMUFU\.EX2\b", disassembly)),
        paths=tuple(tile_paths(disassembly)),
    )


def _run(program: str, *arguments: str) -> str:
    return subprocess.run(
        [str(_BINARIES / program), *arguments], capture_output=True, text=True, check=True
    ).stdout
