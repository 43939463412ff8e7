"""Which backend serves a problem, and its two functions called as they want to be."""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor

from circle_kernels.backends import cpu
from circle_kernels.backends.addressable import (
    all_addressable,
    lacks_memory,
    materialized,
    obstacle,
)
from circle_kernels.backends.problem import HOOKS, PairProblem

_BEST_BACKEND = {"cuda": "triton", "cpu": "cpu"}  # by type of device


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

    ``"auto"`` is triton for CUDA and ROCm tensors, cpu for CPU tensors, and tiled for others and,
    with one warning, where those cannot serve.

    Raises:
        RuntimeError: a backend asked for by name that cannot serve, with the reason; an instruction
            set asked for by name that the C++ kernel cannot take.
    """
    best = _BEST_BACKEND.get(device.type, "tiled") if backend == "auto" else backend
    reason = _unusable_reason(best, device, dtype)
    if reason is None:
        return best
    if backend != "auto":
        raise RuntimeError(
            f"backend={backend!r} cannot serve {dtype} tensors on {device}: {reason}"
        )
    _warn_once(
        f"circle_kernels: the tiled backend, several times slower, serves {dtype} tensors on "
        f"{device.type}, since {best} cannot: {reason}. backend='tiled' asks for it without this "
        "warning."
    )
    return "tiled"


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def load_backend(backend: str, problem: PairProblem) -> Any:
    """The module that serves a problem, by :func:`resolve_backend`.

    Asked for inside the ops and not above them, so that compilers do not have to trace imports.
    """
    embeddings = problem.embeddings
    return _module(resolve_backend(backend, embeddings.device, embeddings.dtype), problem)


def _module(backend: str, problem: PairProblem) -> Any:
    if backend == "triton" and problem.listed is None:
        from circle_kernels.backends import triton

        return triton
    if backend == "cpu":
        return cpu
    from circle_kernels.backends import tiled

    return tiled


def _behind_the_gate(implementation: Any, backend: str, tensors: dict[str, Tensor | None]) -> Any:
    """The implementation, or tiled where it would read memory that some tensor does not have.

    Raises:
        RuntimeError: such a tensor, and a backend that was asked for by name; a tensor whose memory
            is gone, which no backend can read.
    """
    if all_addressable(*tensors.values()):
        return implementation
    from circle_kernels.backends import tiled

    for name, tensor in tensors.items():
        reason = None if tensor is None else obstacle(tensor)
        if reason is not None and backend not in ("auto", "tiled"):
            raise RuntimeError(f"backend={backend!r} cannot read {name}: {reason}")
        if tensor is not None and lacks_memory(tensor):
            raise RuntimeError(f"circle_kernels: the storage of {name} was freed or resized")
    return tiled


# Of a device without, such as meta, torch does not even say that it is off.
_has_autocast = functools.cache(torch.amp.is_autocast_available)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Nothing is cast down. Entering a context that changes nothing would cost microseconds."""
    if _has_autocast(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def run_forward(
    problem: PairProblem, backend: str, *, readable: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Both log-sum-exps, and what the backend saves for its backward.

    ``readable`` says that every tensor is addressable, as somebody has found out.
    """
    embeddings = problem.embeddings
    implementation = load_backend(backend, problem)
    if embeddings.shape[0] == 0 or problem.columns.shape[0] == 0:
        lse_pos, lse_neg = (
            embeddings.new_full((len(embeddings),), -math.inf, dtype=problem.result_dtype)
            for _ in range(2)
        )
        return lse_pos, lse_neg, new_saved(problem, implementation)
    if not readable:
        implementation = _behind_the_gate(implementation, backend, problem.tensors)
    with without_autocast(embeddings.device.type):
        return implementation.forward(problem)


def new_saved(problem: PairProblem, implementation: Any) -> Tensor:
    """What an implementation's forward pass saves, with nothing in it."""
    return problem.embeddings.new_empty(implementation.saved_shape(problem), dtype=torch.uint8)


def run_backward(
    problem: PairProblem,
    passed: Sequence[Tensor],  # lse_pos, lse_neg, saved, grad_lse_pos, grad_lse_neg
    backend: str,
    needs_embeddings: bool,
    needs_references: bool,
    *,
    readable: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for both sides; None for one that is not needed.

    ``readable`` says that every tensor is addressable, as somebody has found out.

    Raises:
        RuntimeError: tensors that are not those of the forward pass.
    """
    embeddings, ref_emb = problem.embeddings, problem.ref_emb
    if embeddings.shape[0] == 0 or problem.columns.shape[0] == 0:
        return (
            embeddings.new_zeros(embeddings.shape),
            None if ref_emb is None else ref_emb.new_zeros(ref_emb.shape),
        )
    lse_pos, lse_neg, saved, grad_lse_pos, grad_lse_neg = passed
    readable = readable or all_addressable(*problem.tensors.values(), *passed)
    if not readable:
        grad_lse_pos, grad_lse_neg = materialized(grad_lse_pos), materialized(grad_lse_neg)
    vectors = (lse_pos, lse_neg, grad_lse_pos, grad_lse_neg)
    names = ("lse_pos", "lse_neg", "grad_lse_pos", "grad_lse_neg")
    rows, dtype = embeddings.shape[:1], problem.result_dtype
    for name, value in zip(names, vectors, strict=True):
        if value.shape != rows or value.dtype != dtype:
            _refuse_passed(name, f"{dtype} of shape {tuple(rows)}", value)
    if saved.dtype != torch.uint8:
        _refuse_passed("saved", "bytes", saved)
    for name, labels, side in (
        ("labels", problem.labels, embeddings),
        ("ref_labels", problem.ref_labels, ref_emb),
    ):
        if labels is None or side is None:
            continue
        if labels.shape != side.shape[:1] or labels.dtype != torch.int64:
            _refuse_passed(name, f"int64 of shape {tuple(side.shape[:1])}", labels)
        if side.dtype != embeddings.dtype or side.shape[1:] != embeddings.shape[1:]:
            wanted = f"{embeddings.dtype} of {embeddings.shape[1]} columns"
            _refuse_passed("ref_emb", wanted, side)
    implementation = _who_saved(saved, problem, backend)
    if not readable:
        tensors = {**problem.tensors, **dict(zip(names, vectors, strict=True)), "saved": saved}
        implementation = _behind_the_gate(implementation, backend, tensors)
    with without_autocast(embeddings.device.type):
        return implementation.backward(
            problem,
            lse_pos,
            lse_neg,
            saved,
            grad_lse_pos,
            grad_lse_neg,
            needs_embeddings=needs_embeddings,
            needs_references=needs_references,
        )


def _refuse_passed(name: str, wanted: str, value: Tensor) -> NoReturn:
    raise RuntimeError(
        f"circle_kernels: the backward pass wants {name} to be {wanted}, got {value.dtype} of "
        f"shape {tuple(value.shape)}; {HOOKS}"
    )


def _who_saved(saved: Tensor, problem: PairProblem, backend: str) -> Any:
    """The implementation that ran the forward pass, whatever ``"auto"`` would be by now: all but
    tiled save something."""
    if backend == "auto":
        best = _BEST_BACKEND.get(problem.embeddings.device.type, "tiled")
        backend = "tiled" if saved.numel() == 0 else best
    return _module(backend, problem)


def saves_labels(saved: Tensor, problem: PairProblem, backend: str) -> bool:
    """Whether the backward pass finds labels in what the forward pass saved."""
    return _who_saved(saved, problem, backend).saves_labels(problem)
