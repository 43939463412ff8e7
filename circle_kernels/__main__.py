"""``python -m circle_kernels``: what to paste into an issue.

Versions, the machine, the backends and why some cannot be used, and what each backend makes of a
small problem. The exit status is 1 where a result is wrong.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from circle_kernels._version import __version__
from circle_kernels.backends import cpu, trial
from circle_kernels.backends.choice import available_backends, resolve_backend
from circle_kernels.formula import CircleFormula
from circle_kernels.losses.functional import circle_loss
from circle_kernels.options import BackendName

_PACKAGES = ("triton", "pytorch-metric-learning", "sentence-transformers", "numpy")
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "KMP_AFFINITY",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "TRITON_CACHE_DIR",
    "TRITON_INTERPRET",
)


def main() -> int:
    """Print the report; 1 where a backend that should be usable computes something wrong."""
    for name, describe in _FACTS.items():
        print(f"{name}: {_or_error(describe)}")
    try:
        backends = available_backends()
    except Exception as error:  # a package that a backend needs is there and broken
        print(f"backends: {type(error).__name__}: {error}")
        return 1
    print("backends:")
    for name, status in backends.items():
        print(f"  {name}: {status}")
    print("self-check, errors of a loss and its gradient in float32 beside float64:")
    results = list(self_checks(backends))
    for place, found, is_right in results:
        print(f"  {place}: {'ok' if is_right else 'WRONG'}, {found}")
    return int(not all(is_right for _, _, is_right in results))


def self_checks(backends: dict[str, str]) -> Iterator[tuple[str, str, bool]]:
    """Of ``"auto"``, and of each usable backend on each device that it serves: which, how far it is
    from the reference in float64 or what it raised, and whether that is right."""
    truth = _loss_and_gradient("reference", torch.device("cpu"), torch.float64)
    for name, status in {"auto": "usable", **backends}.items():
        for device in _devices() if status.startswith("usable") else ():
            backend = cast(BackendName, name)  # the table's own
            try:
                if name != "auto":  # which takes all
                    resolve_backend(backend, device, torch.float32, CircleFormula())
            except RuntimeError:  # it takes no tensors of this device
                continue
            try:
                found = _loss_and_gradient(backend, device, torch.float32)
            except Exception as error:  # a backend that does not run is what is looked for
                yield f"{name} on {device}", f"{type(error).__name__}: {error}", False
                continue
            loss, gradient = (
                float((ours.double().cpu() - true).abs().max() / true.abs().max())
                for ours, true in zip(found, truth, strict=True)
            )
            is_right = loss <= trial.OF_SUMS and gradient <= trial.OF_GRADIENTS[torch.float32]
            yield f"{name} on {device}", f"{loss:.1e} and {gradient:.1e}", is_right


def _loss_and_gradient(
    backend: BackendName, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Of one small batch, whose numbers float32 has, with tiles that are not full."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(150, 40, generator=generator, dtype=torch.float32)
    embeddings = embeddings.to(device, dtype).requires_grad_()
    labels = torch.arange(150, device=device) % 11
    loss = circle_loss(embeddings, labels, gamma=16.0, backend=backend)
    loss.backward()
    assert embeddings.grad is not None
    return loss.detach(), embeddings.grad


def _devices() -> list[torch.device]:
    """The CPU, and every accelerator that PyTorch sees."""
    found = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:
        count = torch.accelerator.device_count()
        found += [torch.device(accelerator.type, index) for index in range(count)]
    return found


def _or_error(describe: Callable[[], str]) -> str:
    """What is missing or broken here must not keep the rest from being told."""
    try:
        return describe()
    except Exception as error:
        return f"unknown ({type(error).__name__}: {error})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torch() -> str:
    built_for = [f"CUDA {torch.version.cuda}" if torch.version.cuda else ""]
    built_for.append(f"ROCm {torch.version.hip}" if torch.version.hip else "")
    return f"{torch.__version__}, {' '.join(filter(None, built_for)) or 'neither CUDA nor ROCm'}"


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text("utf-8").splitlines() if listed.is_file() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return f"{', '.join(sorted(names)) or platform.processor()}, {os.cpu_count()} logical cores"


def _instruction_sets() -> str:
    levels = cpu.supported_levels()
    return f"{cpu.loaded().level()} of {', '.join(levels)}" if levels else cpu.status()


def _threads() -> str:
    of_torch = "with" if torch.backends.openmp.is_available() else "without"
    ours = ""
    if cpu.supported_levels():
        ours = f"; the C++ kernel {'with' if cpu.loaded().has_openmp else 'without'} it"
    return f"{torch.get_num_threads()}, PyTorch {of_torch} OpenMP{ours}"


def _accelerators() -> str:
    names = []
    for device in _devices()[1:]:
        name = str(device)
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            name += f" {torch.cuda.get_device_name(device)} (capability {major}.{minor})"
        names.append(name)
    return ", ".join(names) or "none"


def _variables() -> str:
    given = {
        name: value
        for name, value in sorted(os.environ.items())
        if name in _VARIABLES or name.startswith("CIRCLE_KERNELS_")
    }
    return ", ".join(f"{name}={value}" for name, value in given.items()) or "none is set"


_FACTS: dict[str, Callable[[], str]] = {
    "circle_kernels": lambda: f"{__version__} in {Path(__file__).parent}",
    "python": lambda: f"{platform.python_version()} ({platform.python_implementation()})",
    "torch": _torch,
    **{package: partial(_version, package) for package in _PACKAGES},
    "system": platform.platform,
    "processor": _processor,
    "instruction set of the C++ kernel": _instruction_sets,
    "threads": _threads,
    "accelerators": _accelerators,
    "environment variables": _variables,
}

if __name__ == "__main__":
    sys.exit(main())
