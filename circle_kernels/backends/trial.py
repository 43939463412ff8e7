"""Small problems that a backend can be tried on: what it says beside float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends import reference
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.backends.saved_bytes import with_padding
from circle_kernels.formula import CircleFormula

# Errors allowed of log-sum-exps and, by dtype, of gradients, beside the largest entry: several
# times what rounding costs, in float32 with the tf32 products of gradients that PyTorch may be set
# to.
OF_SUMS = 1e-4
OF_GRADIENTS = {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float32: 2e-3}
_RESULTS = ("lse_pos", "lse_neg", "the embeddings' gradient", "the references' gradient")


def fault(backend: Any, device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with the results of a backend's two passes, or ``""``.

    Raises:
        Exception: whatever the backend does.
    """
    for name, problem in _problems(dtype):
        for what, error in errors(backend, problem, device, dtype).items():
            most = OF_SUMS if what.startswith("lse") else OF_GRADIENTS[dtype]
            if not error <= most:
                return f"{what} of {name} is wrong by {error:.2g}, where {most:g} is allowed"
    return ""


def errors(
    backend: Any, problem: PairProblem, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """How far each result of a problem in float64 is from the truth, beside its largest entry.

    Infinity where something is NaN, or infinite and should not be, or the other way round.

    Raises:
        Exception: whatever the backend does.
    """
    truths = _results(reference, problem)
    results = _results(backend, _moved(problem, device, dtype))
    pairs = zip(_RESULTS, results, truths, strict=False)
    return {what: _error(value, truth) for what, value, truth in pairs}


def errors_in_blocks(
    backend: Any, problem: PairProblem, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """:func:`errors` of the gradient of a batch's first half, as the process has it that holds
    these rows: of them among themselves, and beside others whose sums are known."""
    half = problem.embeddings.shape[0] // 2
    truth = _results(reference, problem)[2][:half]
    moved = _moved(problem, device, dtype)
    lse_pos, lse_neg, _ = backend.forward(moved)
    statistics = torch.stack([lse_pos, lse_neg, *_upstream(lse_pos)])
    own = moved._replace(embeddings=moved.embeddings[:half], labels=moved.labels[:half])
    beside = own._replace(ref_emb=moved.embeddings[half:], ref_labels=moved.labels[half:])
    total = torch.zeros_like(truth)
    for block, of_columns in ((own, None), (beside, statistics[:, half:].contiguous())):
        *sums, grad_lse_pos, grad_lse_neg = statistics[:, :half]
        passed = Passed(backend.save(block, *sums), grad_lse_pos, grad_lse_neg, of_columns)
        total += backend.backward(block, passed, Needs(True, False))[0].double().cpu()
    return {"the embeddings' gradient": _error(total, truth)}


def errors_of_scales(
    backend: Any, problem: PairProblem, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """:func:`errors` of the gradient of a learned gamma, beside differences of the truth."""
    formula: Any = problem.formula
    step = 1e-5
    scaled = [replace(formula, gamma=formula.gamma * (1 + side * step)) for side in (1, -1)]
    sums = [torch.stack(reference.forward(problem._replace(formula=each))[:2]) for each in scaled]
    slopes = ((sums[0] - sums[1]) / (2 * step)).nan_to_num(0.0)  # of empty sets
    truth = (slopes * torch.stack(_upstream(sums[0][0]))).sum(1)
    moved = _moved(problem, device, dtype)
    lse_pos, _, saved = backend.forward(moved)
    ours = backend.scale_gradients(moved, Passed(saved, *_upstream(lse_pos)))
    return {"the scale's gradient": _error(ours.double().cpu(), truth)}


def _error(value: Tensor, truth: Tensor) -> float:
    finite = truth.isfinite()
    if not torch.equal(finite, value.isfinite()) or not torch.equal(value[~finite], truth[~finite]):
        return math.inf
    error, scale = (value - truth)[finite].abs(), truth[finite].abs()
    return (error.max() / scale.max()).nan_to_num(0.0).item() if len(error) else 0.0


def _problems(dtype: torch.dtype) -> Iterator[tuple[str, PairProblem]]:
    """In float64, with numbers that the dtype has; each row has a positive and a negative."""
    generator = torch.Generator().manual_seed(0)

    def side(rows: int, depth: int) -> tuple[Tensor, Tensor]:
        values = torch.randn(rows, depth, generator=generator, dtype=torch.float64, device="cpu")
        return values.to(dtype).double(), torch.arange(rows, device="cpu") * 7 % 10

    # Tiles of up to 256 by 128 beside the diagonal, in label order some without positives, and none
    # of them whole at the end; a depth that is a multiple, and not.
    formula = CircleFormula(gamma=16)
    yield "a batch alone", PairProblem(*side(650, 64), None, None, formula, True)
    yield "a batch with references", PairProblem(*side(650, 72), *side(700, 72), formula, True)


def _moved(problem: PairProblem, device: torch.device, dtype: torch.dtype) -> PairProblem:
    embeddings, labels, ref_emb, ref_labels = problem[:4]
    listed, own_columns = problem.listed, problem.own_columns
    return problem._replace(
        embeddings=embeddings.to(device, dtype),
        labels=labels.to(device),
        ref_emb=None if ref_emb is None else ref_emb.to(device, dtype),
        ref_labels=None if ref_labels is None else ref_labels.to(device),
        listed=None if listed is None else with_padding(listed.to(device)),
        own_columns=None if own_columns is None else own_columns.to(device),
    )


def _results(backend: Any, problem: PairProblem) -> list[Tensor]:
    """Log-sum-exps and the gradients of both sides, in float64 on the CPU."""
    lse_pos, lse_neg, saved = backend.forward(problem)
    passed = Passed(saved, *_upstream(lse_pos))
    gradients = backend.backward(problem, passed, Needs(True, not problem.self_mode))
    results = (lse_pos, lse_neg, *gradients)
    return [each.double().cpu() for each in results if each is not None]


def _upstream(lse: Tensor) -> tuple[Tensor, Tensor]:
    """Other numbers for each row and kind, so that no mix-up can cancel."""
    upstream = torch.linspace(0.5, 1.5, len(lse), dtype=lse.dtype, device=lse.device)
    return upstream, upstream.flip(0)
