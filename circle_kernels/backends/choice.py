"""Which backends there are, which of them serves a problem, and its functions as they want to be
called."""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from circle_kernels.backends.addressable import (
    all_addressable,
    lacks_memory,
    materialized,
    obstacle,
)
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.backends.saved_bytes import HOOKS
from circle_kernels.formula import PairFormula
from circle_kernels.options import check_choice


class Backend(NamedTuple):
    """A backend as the table lists it."""

    module: str  # has what problem.py asks for; loaded when it is first asked for
    install: str = ""  # how to get the package that it needs
    lacks: tuple[str, ...] = ()  # fields of PairProblem that it has no code for, where they are set
    of_torch: bool = False  # both passes are torch's operations, which those who watch can see
    by_autograd: bool = False  # so the forward pass alone is called, to be differentiated


# In the order in which users are told of them.
BACKENDS = {
    "triton": Backend(
        "circle_kernels.backends.triton",
        install="pip install 'triton>=3.3', Linux",
    ),
    "cpu": Backend("circle_kernels.backends.cpu"),
    "tiled": Backend("circle_kernels.backends.tiled", of_torch=True),
    "reference": Backend("circle_kernels.backends.reference", of_torch=True, by_autograd=True),
}
AUTO = "auto"
_BEST_BACKEND = {"cuda": "triton", "cpu": "cpu"}  # by type of device
_EVERYWHERE = "tiled"  # serves every device, dtype and formula, and all that torch calls a tensor

_loaded: dict[str, Any] = {}  # modules, or why there is none


def available_backends() -> dict[str, str]:
    """Which backends can be used in this process, and if not, why.

    Returns:
        For each backend a sentence that begins with ``"usable"`` or ``"not usable"``.
    """
    modules = {name: _module(name) for name in BACKENDS}
    return {
        name: f"not usable: {module}" if isinstance(module, str) else module.status()
        for name, module in modules.items()
    }


def check_backend(name: object) -> None:
    """Require the name of a backend, or ``"auto"``."""
    check_choice("backend", name, (AUTO, *BACKENDS))


def is_by_autograd(name: str) -> bool:
    """Whether a backend is differentiated by autograd."""
    return name != AUTO and BACKENDS[name].by_autograd


def is_of_torch(backend: str, embeddings: Tensor, formula: PairFormula) -> bool:
    """Whether those who watch torch's operations see all that the backend does with these."""
    name = resolve_backend(backend, embeddings.device, embeddings.dtype, formula)
    return BACKENDS[name].of_torch


def _module(name: str) -> Any:
    # Not functools.cache: compilers would look inside.
    if name not in _loaded:
        _loaded[name] = _load(name)
    return _loaded[name]


def _load(name: str) -> Any:
    backend = BACKENDS[name]
    try:
        return importlib.import_module(backend.module)
    except ModuleNotFoundError as error:
        if not backend.install or backend.module.startswith(str(error.name)):
            raise
        return f"the package {error.name} is not installed ({backend.install})"


# Those that compilers look into have to be there before these do.
for _name in filter(is_by_autograd, BACKENDS):
    _module(_name)


def resolve_backend(
    backend: str, device: torch.device, dtype: torch.dtype, formula: PairFormula
) -> str:
    """The backend that serves tensors of this device and dtype with this formula.

    ``"auto"`` is triton for CUDA and ROCm tensors, cpu for CPU tensors, and tiled for others and,
    with one warning, where those cannot serve.

    Raises:
        RuntimeError: a backend asked for by name that cannot serve, with the reason; an instruction
            set asked for by name that the C++ kernel cannot take.
    """
    best = _BEST_BACKEND.get(device.type, _EVERYWHERE) if backend == AUTO else backend
    module = _module(best)
    reason = module if isinstance(module, str) else module.unusable_reason(device, dtype, formula)
    if reason is None:
        return best
    if backend != AUTO:
        raise RuntimeError(
            f"backend={backend!r} cannot serve {dtype} tensors on {device}: {reason}"
        )
    _warn_once(
        f"circle_kernels: the tiled backend, several times slower, serves {dtype} tensors on "
        f"{device.type}, since {best} cannot: {reason}. backend='tiled' asks for it without this "
        "warning."
    )
    return _EVERYWHERE


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def serving(problem: PairProblem, backend: str) -> Any:
    """The module that serves a problem, by :func:`resolve_backend`.

    Asked for inside the ops and not above them, so that compilers do not have to trace imports.
    """
    embeddings = problem.embeddings
    name = resolve_backend(backend, embeddings.device, embeddings.dtype, problem.formula)
    return _for_its_pairs(name, problem)


def _for_its_pairs(name: str, problem: PairProblem) -> Any:
    """The backend's module, or tiled for pairs that it has no code for."""
    wanted = (getattr(problem, field) for field in BACKENDS[name].lacks)
    lacking = any(each is not None and each is not False for each in wanted)
    return _module(_EVERYWHERE if lacking else name)


def which_saved(saved: Tensor, problem: PairProblem, backend: str) -> Any:
    """The module that ran the forward pass, whatever ``"auto"`` would be by now."""
    if backend == AUTO:
        best = _BEST_BACKEND.get(problem.embeddings.device.type, _EVERYWHERE)
        by_tiled = saved.shape == _module(_EVERYWHERE).saved_shape(problem)
        backend = _EVERYWHERE if by_tiled else best
    return _for_its_pairs(backend, problem)


# Of a device without, such as meta, torch does not even say that it is off.
_has_autocast = functools.cache(torch.amp.is_autocast_available)
_as_it_is = nullcontext()


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Nothing is cast down. Entering a context that changes nothing would cost microseconds."""
    if _has_autocast(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return _as_it_is


def run_forward(module: Any, problem: PairProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Both log-sum-exps, and what the backend saves for its backward."""
    embeddings = problem.embeddings
    if problem.is_empty:
        lse_pos, lse_neg = (
            embeddings.new_full((problem.num_anchors,), -math.inf, dtype=problem.result_dtype)
            for _ in range(2)
        )
        return lse_pos, lse_neg, new_saved(module, problem)
    with without_autocast(embeddings.device.type):
        lse_pos, lse_neg, saved = module.forward(problem)
    return lse_pos, lse_neg, new_saved(module, problem) if saved is None else saved


def new_saved(module: Any, problem: PairProblem) -> Tensor:
    """What a backend's forward pass saves, with nothing in it."""
    return problem.embeddings.new_empty(module.saved_shape(problem), dtype=torch.uint8)


def run_backward(
    module: Any, problem: PairProblem, passed: Passed, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for both sides from addressable tensors; None for one that is not needed.

    Raises:
        RuntimeError: tensors that are not those of the forward pass.
    """
    embeddings, ref_emb = problem.embeddings, problem.ref_emb
    if problem.is_empty:
        return (
            embeddings.new_zeros(embeddings.shape),
            None if ref_emb is None else ref_emb.new_zeros(ref_emb.shape),
        )
    _check_passed(problem, passed)
    with without_autocast(embeddings.device.type):
        return module.backward(problem, passed, needs)


def run_backward_of_any(
    module: Any, problem: PairProblem, passed: Passed, needs: Needs, backend: str
) -> tuple[Tensor | None, Tensor | None]:
    """:func:`run_backward` of tensors that nobody has looked at; ``backend`` is what was asked for.

    Raises:
        RuntimeError: also a tensor that the backend asked for cannot read.
    """
    saved, grad_lse_pos, grad_lse_neg, _ = passed
    passed = passed._replace(
        grad_lse_pos=materialized(grad_lse_pos), grad_lse_neg=materialized(grad_lse_neg)
    )
    tensors = {**problem.named_tensors, **passed._asdict()}
    module = behind_the_gate(module, backend, tensors)
    if is_of_another(saved, module, problem):
        _check_passed(problem, passed)
        passed = passed._replace(saved=run_forward(module, problem)[2])
    return run_backward(module, problem, passed, needs)


def is_of_another(saved: Tensor, module: Any, problem: PairProblem) -> bool:
    """Whether tiled is to run a backward pass whose forward pass another backend ran, before there
    was something that this one cannot do."""
    return module is _module(_EVERYWHERE) and saved.shape != module.saved_shape(problem)


def _check_passed(problem: PairProblem, passed: Passed) -> None:
    """Hooks on saved tensors may give back others."""
    saved, grad_lse_pos, grad_lse_neg, _ = passed
    embeddings, labels, ref_emb, ref_labels = problem[:4]
    rows, dtype = embeddings.shape[:1], problem.result_dtype
    anchors = (problem.num_anchors,)
    if grad_lse_pos.shape != anchors or grad_lse_pos.dtype != dtype:
        _refuse_passed("grad_lse_pos", f"{dtype} of shape {anchors}", grad_lse_pos)
    if grad_lse_neg is not grad_lse_pos and (
        grad_lse_neg.shape != anchors or grad_lse_neg.dtype != dtype
    ):
        _refuse_passed("grad_lse_neg", f"{dtype} of shape {anchors}", grad_lse_neg)
    if saved.dtype != torch.uint8:
        _refuse_passed("saved", "bytes", saved)
    if labels.shape != rows or labels.dtype != torch.int64:
        _refuse_passed("labels", f"int64 of shape {tuple(rows)}", labels)
    if ref_emb is None:
        return
    if ref_labels is not None and (
        ref_labels.shape != ref_emb.shape[:1] or ref_labels.dtype != torch.int64
    ):
        _refuse_passed("ref_labels", f"int64 of shape {tuple(ref_emb.shape[:1])}", ref_labels)
    if ref_emb.dtype != embeddings.dtype or ref_emb.shape[1:] != embeddings.shape[1:]:
        wanted = f"{embeddings.dtype} of {embeddings.shape[1]} columns"
        _refuse_passed("ref_emb", wanted, ref_emb)


def _refuse_passed(name: str, wanted: str, value: Tensor) -> NoReturn:
    raise RuntimeError(
        f"circle_kernels: the backward pass wants {name} to be {wanted}, got {value.dtype} of "
        f"shape {tuple(value.shape)}; {HOOKS}"
    )


def behind_the_gate(module: Any, backend: str, tensors: dict[str, Tensor | None]) -> Any:
    """The module, or tiled where it would read memory that some tensor does not have.

    Raises:
        RuntimeError: such a tensor, and a backend that was asked for by name; a tensor whose memory
            is gone, which no backend can read.
    """
    if all_addressable(*tensors.values()):
        return module
    for name, tensor in tensors.items():
        reason = None if tensor is None else obstacle(tensor)
        if reason is not None and backend not in (AUTO, _EVERYWHERE):
            raise RuntimeError(f"backend={backend!r} cannot read {name}: {reason}")
        if tensor is not None and lacks_memory(tensor):
            raise RuntimeError(f"circle_kernels: the storage of {name} was freed or resized")
    return _module(_EVERYWHERE)
