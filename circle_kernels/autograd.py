"""``pair_logsumexp``: the fused operation, its gradient, and the choice of who computes it.

Everything above this module is ordinary PyTorch on vectors of length N; everything below it is a
backend's two functions (see backends/interface.py).
"""

from __future__ import annotations

import functools
import importlib.util
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from circle_kernels.arguments import check_choice, check_pair_inputs, check_skip_below
from circle_kernels.backends import cpu
from circle_kernels.backends.interface import PairProblem, result_dtype
from circle_kernels.formula import FORMULAS, PairFormula, formula_from_parameters
from circle_kernels.reference import pair_logsumexp_reference

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


def pair_logsumexp(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    formula: PairFormula,
    normalize: bool = True,
    skip_below: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the pair logits of each row, over its positives and over its negatives.

    With ``s_ij`` the cosine similarity of embedding i and reference j, computes for every row

        ``lse_pos_i = log sum_{j: label_j == label_i} exp z_p(s_ij)``
        ``lse_neg_i = log sum_{j: label_j != label_i} exp z_n(s_ij)``

    without storing the (N, M) similarities. These are the two sums inside Eq. 1 and Eq. 6 of
    Sun et al., CVPR 2020 (arXiv 2002.10857).

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64.
        labels: (N,) integers, any values.
        ref_emb: (M, D) references, same dtype and device. Without them the batch is compared with
            itself and an embedding is not compared with itself.
        ref_labels: (M,) integers.
        formula: the pair logits, for example :class:`circle_kernels.CircleFormula`.
        normalize: ``False`` takes plain inner products instead of cosines.
        skip_below: share of a row's total weight that a backend may leave out of the gradient to
            save work, in [0, 1); 0 is exact. See :func:`circle_kernels.circle_loss`.
        backend: ``"auto"``, ``"triton"``, ``"cpu"``, ``"tiled"`` or ``"reference"``; see
            :func:`available_backends`.

    Returns:
        ``(lse_pos, lse_neg)``, each (N,), float32 (float64 for float64 input), ``-inf`` where the
        row has no such pair. Differentiable once with respect to both sets of embeddings;
        gradients come in the inputs' dtype. A NaN or infinity in an embedding makes every
        log-sum-exp that saw it NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the backend asked for cannot serve these tensors; or a second derivative.
    """
    labels, ref_labels = check_pair_inputs(embeddings, labels, ref_emb, ref_labels)
    if type(formula) not in FORMULAS.values():
        wanted = " or ".join(known.__name__ for known in FORMULAS.values())
        raise TypeError(f"formula must be a {wanted}, got {type(formula).__name__} {formula!r}")
    check_skip_below(skip_below)
    check_choice("backend", backend, BACKENDS)
    if backend == "reference":
        dtype = result_dtype(embeddings.dtype)
        with torch.autocast(embeddings.device.type, enabled=False):
            lse_pos, lse_neg = pair_logsumexp_reference(
                embeddings, labels, ref_emb, ref_labels, formula=formula, normalize=normalize
            )
        return lse_pos.to(dtype), lse_neg.to(dtype)
    return _PairLogSumExp.apply(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        formula,
        bool(normalize),
        float(skip_below),
        backend,
    )


class _PairLogSumExp(torch.autograd.Function):
    """Ties a backend's forward to its backward; keeps the inputs and vectors, no matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        formula: PairFormula,
        normalize: bool,
        skip_below: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        inputs = (embeddings, labels, ref_emb, ref_labels)
        keep = ctx.needs_input_grad[0] or ctx.needs_input_grad[2]
        if _is_traced(embeddings, backend):
            lse_pos, lse_neg, saved = _forward_op(
                *inputs, *_encode(formula), normalize, skip_below, backend, keep
            )
        else:
            problem = PairProblem(*inputs, formula, normalize, skip_below, keep)
            lse_pos, lse_neg, saved = _run_forward(problem, backend)
        ctx.save_for_backward(embeddings, labels, ref_emb, ref_labels, lse_pos, lse_neg, saved)
        ctx.formula, ctx.normalize = formula, normalize
        ctx.skip_below, ctx.backend = skip_below, backend
        return lse_pos, lse_neg

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor) -> tuple[Any, ...]:
        embeddings, labels, ref_emb, ref_labels, lse_pos, lse_neg, saved = ctx.saved_tensors
        needs_embeddings, needs_references = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        inputs = (embeddings, labels, ref_emb, ref_labels)
        statistics = (lse_pos, lse_neg, saved, grad_lse_pos, grad_lse_neg)
        needs = (needs_embeddings, needs_references)
        grad_embeddings: Tensor | None
        grad_references: Tensor | None
        if _is_traced(embeddings, ctx.backend):
            encoded = (*_encode(ctx.formula), ctx.normalize, ctx.skip_below, ctx.backend)
            grad_embeddings, grad_references = _backward_op(*inputs, *statistics, *encoded, *needs)
        else:
            problem = PairProblem(*inputs, ctx.formula, ctx.normalize, ctx.skip_below)
            grad_embeddings, grad_references = _run_backward(
                problem, *statistics, ctx.backend, *needs
            )
        return (
            grad_embeddings if needs_embeddings else None,
            None,
            grad_references if needs_references else None,
            *(None,) * 5,
        )


def _is_traced(embeddings: Tensor, backend: str) -> bool:
    """Whether the operation has to be one registered op.

    Compilers must not look inside the kernels; and the C++ kernel reads memory, which fake tensors
    do not have and of which tracers see nothing. In eager mode a registered op would only add tens
    of microseconds to each call.
    """
    if torch.compiler.is_compiling():
        return True
    plain = type(embeddings) in (Tensor, Parameter) and not is_in_torch_dispatch_mode()
    return not plain and resolve_backend(backend, embeddings.device, embeddings.dtype) == "cpu"


def _encode(formula: PairFormula) -> tuple[str, list[float], bool]:
    """A formula as op arguments; :func:`formula_from_parameters` is the way back."""
    return formula.name, formula.parameters(), formula.detach_weights


def _load_backend(backend: str, problem: PairProblem) -> Any:
    """The module that serves a problem.

    Asked for inside the ops and not above them, so that compilers do not have to trace imports.
    """
    embeddings = problem.embeddings
    resolved = resolve_backend(backend, embeddings.device, embeddings.dtype)
    if resolved == "triton":
        from circle_kernels.backends import triton

        return triton
    if resolved == "cpu":
        return cpu
    from circle_kernels.backends import tiled

    return tiled


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Nothing is cast down. Entering a context that changes nothing would cost microseconds."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _run_forward(problem: PairProblem, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Both log-sum-exps, and what the backend saves for its backward."""
    embeddings = problem.embeddings
    implementation = _load_backend(backend, problem)
    if len(embeddings) == 0 or len(problem.columns) == 0:
        lse_pos, lse_neg = (
            embeddings.new_full((len(embeddings),), -math.inf, dtype=problem.result_dtype)
            for _ in range(2)
        )
        return lse_pos, lse_neg, lse_pos.new_empty(implementation.saved_shape(problem))
    with _without_autocast(embeddings.device.type):
        return implementation.forward(problem)


def _run_backward(
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
    with _without_autocast(embeddings.device.type):
        return _load_backend(backend, problem).backward(
            problem,
            lse_pos,
            lse_neg,
            saved,
            grad_lse_pos,
            grad_lse_neg,
            needs_embeddings=needs_embeddings,
            needs_references=needs_references,
        )


def _problem(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    formula: str,
    parameters: list[float],
    detach_weights: bool,
    normalize: bool,
    skip_below: float,
    keep_for_backward: bool = True,
) -> PairProblem:
    """The problem that the arguments of both ops describe."""
    rebuilt = formula_from_parameters(formula, parameters, detach_weights)
    return PairProblem(
        embeddings, labels, ref_emb, ref_labels, rebuilt, normalize, skip_below, keep_for_backward
    )


def _forward(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    formula: str,
    parameters: list[float],
    detach_weights: bool,
    normalize: bool,
    skip_below: float,
    backend: str,
    keep_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _problem(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        formula,
        parameters,
        detach_weights,
        normalize,
        skip_below,
        keep_for_backward,
    )
    return _run_forward(problem, backend)


def _backward(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    lse_pos: Tensor,
    lse_neg: Tensor,
    saved: Tensor,
    grad_lse_pos: Tensor,
    grad_lse_neg: Tensor,
    formula: str,
    parameters: list[float],
    detach_weights: bool,
    normalize: bool,
    skip_below: float,
    backend: str,
    needs_embeddings: bool,
    needs_references: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients for both sides; an empty tensor stands for one that is not needed."""
    problem = _problem(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        formula,
        parameters,
        detach_weights,
        normalize,
        skip_below,
    )
    grad_embeddings, grad_references = _run_backward(
        problem,
        lse_pos,
        lse_neg,
        saved,
        grad_lse_pos,
        grad_lse_neg,
        backend,
        needs_embeddings,
        needs_references,
    )
    return (
        embeddings.new_empty(0) if grad_embeddings is None else grad_embeddings,
        embeddings.new_empty(0) if grad_references is None else grad_references,
    )


_forward_op = torch.library.custom_op(
    "circle_kernels::pair_logsumexp_forward", _forward, mutates_args=()
)
_backward_op = torch.library.custom_op(
    "circle_kernels::pair_logsumexp_backward", _backward, mutates_args=()
)


@_forward_op.register_fake
def _forward_fake(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    formula: str,
    parameters: list[float],
    detach_weights: bool,
    normalize: bool,
    skip_below: float,
    backend: str,
    keep_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _problem(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        formula,
        parameters,
        detach_weights,
        normalize,
        skip_below,
        keep_for_backward,
    )
    rows = embeddings.shape[0]
    lse_pos, lse_neg = (embeddings.new_empty(rows, dtype=problem.result_dtype) for _ in range(2))
    return lse_pos, lse_neg, lse_pos.new_empty(_load_backend(backend, problem).saved_shape(problem))


@_backward_op.register_fake
def _backward_fake(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    needs_embeddings, needs_references = arguments[-2:]
    return (
        embeddings.new_empty(embeddings.shape if needs_embeddings else 0),
        ref_emb.new_empty(ref_emb.shape)
        if needs_references and ref_emb is not None
        else embeddings.new_empty(0),
    )
