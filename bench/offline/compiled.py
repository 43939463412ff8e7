"""Recorded launches compiled for the real target, and what their machine code uses.

Needs no GPU; registers, spills and instructions come from the disassemblers bundled with Triton.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.compiler import ASTSource

from bench.offline.disassembly import TilePath, tile_paths
from bench.offline.pretended import Device
from circle_kernels.backends.triton.launch import Launch

_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Specialization:
    """A kernel and everything that its compilation depends on; equal ones are compiled once."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]  # arguments known to be multiples of 16
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        constants = "-".join(f"{value}" for _, value in self.constants)
        dtype = dict(self.signature).get("rows_ptr", "")
        return f"{self.kernel.__name__}[{dtype}-{constants}]"


def specialize(launch: Launch) -> Specialization:
    """What Triton's own launcher would specialise on: ones, multiples of 16, dtypes, constants."""
    arguments = {**launch.arguments, **launch.constants}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible: list[str] = []
    for parameter in launch.kernel.params:
        name, value = parameter.name, arguments[parameter.name]
        if (
            parameter.is_constexpr
            or value is None
            or (type(value) is int and value == 1 and not parameter.do_not_specialize)
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
    return Specialization(
        launch.kernel,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(divisible),
        tuple(launch.options.items()),
    )


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses, per thread and per block."""

    registers: int
    spills: int  # to local memory: instructions (NVIDIA), registers and bytes (AMD)
    shared_memory: int  # bytes per block
    matrix_instructions: int
    exponentials: int
    paths: tuple[TilePath, ...] = ()  # through the tile loop, cheapest first (NVIDIA)


def compile_for(device: Device, kernel: Specialization) -> Resources:
    """Compile a kernel for a device and read what it uses."""
    names = [parameter.name for parameter in kernel.kernel.params]
    source = ASTSource(
        fn=kernel.kernel,
        signature=dict(kernel.signature),
        constexprs=dict(kernel.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in kernel.divisible},
    )
    compiled = triton.compile(source, target=device.target, options=dict(kernel.options))
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
        Path(path).write_bytes(cubin)
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
