"""A problem as ``circle_kernels._cpu`` takes it: addresses, sizes, strides and enumerations."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.problem import PairProblem
from circle_kernels.formula import CircleFormula, PairFormula, UnifiedFormula

_KINDS = {CircleFormula: "circle", UnifiedFormula: "unified"}  # of extension.FormulaKind

# bfloat16 products that may stand for one of float32, where the machine has instructions for them.
_BFLOAT_TERMS = {"highest": 0, "high": 3, "medium": 1}

_SCALARS = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


def has_code_for(formula: PairFormula) -> bool:
    """Whether the extension knows the formula."""
    return type(formula) in _KINDS


@functools.cache
def reduction_of(extension: ModuleType, name: str) -> object:
    """The reduction of this name."""
    return getattr(extension.Reduction, name)


def describe(extension: ModuleType, problem: PairProblem, kept_tiles: int = 0) -> tuple[Any, ...]:
    """The problem as the extension takes it; it points into the problem's tensors."""
    references, labels = problem.ref_emb, problem.ref_labels
    return (
        _scalar(extension, problem.embeddings.dtype),
        _describe_side(problem.embeddings, problem.labels),
        None if references is None or labels is None else _describe_side(references, labels),
        _describe_formula(extension, problem.formula),
        (
            problem.normalize,
            problem.skip_below,
            kept_tiles,
            torch.get_num_threads(),
            _BFLOAT_TERMS[problem.precision],
            problem.both_sides,
        ),
        (*_describe_matrix(problem.listed), *_describe_matrix(problem.own_columns)),
    )


def _describe_matrix(values: Tensor | None) -> tuple[int, int]:
    return (0, 0) if values is None else (values.data_ptr(), values.stride(0))


def _describe_side(values: Tensor, labels: Tensor) -> tuple[int, ...]:
    return (
        values.data_ptr(),
        *values.shape,
        *values.stride(),
        labels.data_ptr(),
        labels.stride(0),
    )


@functools.cache
def _scalar(extension: ModuleType, dtype: torch.dtype) -> object:
    return getattr(extension.Scalar, _SCALARS[dtype])


@functools.lru_cache(maxsize=16)
def _describe_formula(extension: ModuleType, formula: PairFormula) -> object:
    gamma_pos, gamma_neg = formula.gammas
    optimum_pos, optimum_neg, margin_pos, margin_neg = formula.constants
    return extension.Formula(
        kind=getattr(extension.FormulaKind, _KINDS[type(formula)]),
        gamma_pos=gamma_pos,
        gamma_neg=gamma_neg,
        optimum_pos=optimum_pos,
        optimum_neg=optimum_neg,
        margin_pos=margin_pos,
        margin_neg=margin_neg,
        detach_weights=formula.detach_weights,
    )
