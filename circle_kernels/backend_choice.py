"""Which backend serves a problem, and its two functions called as they want to be."""

from __future__ import annotations

import functools
import importlib.util
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends import cpu
from circle_kernels.backends.interface import PairProblem

_BEST_BACKEND = {"cuda": "triton", "cpu": "cpu"}  # by type of device
BACKENDS = ("auto", "triton", "cpu", "tiled", "reference")


def available_backends() -> dict[str, str]:
    """Which backends can be used in this process, and if not, why.

    Returns:
        For each backend a sentence that begins with ``"usable"`` or ``"not usable"``.
    """
    return {
        "triton": _triton_status(),
        "cpu": cpu.status(),
        "tiled": "usable: pure PyTorch in tiles, every device and dtype",
        "reference": "usable: naive PyTorch with the whole similarity matrix, for comparison",
    }


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_status() -> str:
    if not _has_triton():
        return "not usable: the package triton is not installed (pip install 'triton>=3.3', Linux)"
    from circle_kernels.backends.triton import launch

    return launch.status()


def _unusable_reason(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot take tensors of this device and dtype; None where it can."""
    if backend in ("tiled", "reference"):
        return None
    if backend == "triton" and _has_triton():
        from circle_kernels.backends.triton import launch

        return launch.unusable_reason(device, dtype)
    if backend == "cpu":
        return cpu.unusable_reason(device, dtype)
    return available_backends()[backend].removeprefix("not usable: ")


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that serves tensors of this device and dtype.

    ``"auto"`` is triton for CUDA and ROCm tensors, cpu for CPU tensors, and tiled for others and
    where those cannot serve.

    Raises:
        RuntimeError: a backend asked for by name that cannot serve, with the reason.
    """
    if backend == "auto":
        best = _BEST_BACKEND.get(device.type, "tiled")
        return best if _unusable_reason(best, device, dtype) is None else "tiled"
    reason = _unusable_reason(backend, device, dtype)
    if reason is not None:
        raise RuntimeError(
            f"backend={backend!r} cannot serve {dtype} tensors on {device}: {reason}"
        )
    return backend


def load_backend(backend: str, problem: PairProblem) -> Any:
    """The module that serves a problem.

    Asked for inside the ops and not above them, so that compilers do not have to trace imports.
    """
    embeddings = problem.embeddings
    resolved = resolve_backend(backend, embeddings.device, embeddings.dtype)
    if resolved == "triton" and problem.listed is None:
        from circle_kernels.backends import triton

        return triton
    if resolved == "cpu":
        return cpu
    from circle_kernels.backends import tiled

    return tiled


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Nothing is cast down. Entering a context that changes nothing would cost microseconds."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def run_forward(problem: PairProblem, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Both log-sum-exps, and what the backend saves for its backward."""
    embeddings = problem.embeddings
    implementation = load_backend(backend, problem)
    if len(embeddings) == 0 or len(problem.columns) == 0:
        lse_pos, lse_neg = (
            embeddings.new_full((len(embeddings),), -math.inf, dtype=problem.result_dtype)
            for _ in range(2)
        )
        return lse_pos, lse_neg, lse_pos.new_empty(implementation.saved_shape(problem))
    with without_autocast(embeddings.device.type):
        return implementation.forward(problem)


def run_backward(
    problem: PairProblem,
    lse_pos: Tensor,
    lse_neg: Tensor,
    saved: Tensor,
    grad_lse_pos: Tensor,
    grad_lse_neg: Tensor,
    backend: str,
    needs_embeddings: bool,
    needs_references: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for both sides; None for one that is not needed."""
    embeddings, ref_emb = problem.embeddings, problem.ref_emb
    if len(embeddings) == 0 or len(problem.columns) == 0:
        return (
            embeddings.new_zeros(embeddings.shape),
            None if ref_emb is None else ref_emb.new_zeros(ref_emb.shape),
        )
    with without_autocast(embeddings.device.type):
        return load_backend(backend, problem).backward(
            problem,
            lse_pos,
            lse_neg,
            saved,
            grad_lse_pos,
            grad_lse_neg,
            needs_embeddings=needs_embeddings,
            needs_references=needs_references,
        )
