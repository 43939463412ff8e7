"""A problem as ``circle_kernels._cpu`` takes it: addresses, sizes, strides and enumerations."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circle_kernels.backends.problem import PairProblem
from circle_kernels.formula import CircleFormula, PairFormula, UnifiedFormula
from circle_kernels.pointwise.program import Program

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
    """Whether the extension knows the formula, or can run its programs."""
    return type(formula) in _KINDS or getattr(formula, "is_of_functions", False)


@functools.cache
def reduction_of(extension: ModuleType, name: str) -> object:
    """The reduction of this name."""
    return getattr(extension.Reduction, name)


def bytes_to_save(extension: ModuleType, problem: PairProblem, kept_tiles: int) -> int:
    """``SavedLayout`` of csrc/common/problem.h with so many tiles; sizes may be symbolic."""
    panel: int = extension.PANEL
    rest = tiles_of(extension, problem) if problem.skip_below > 0 else 2 * kept_tiles
    panels = _panels_of(extension, problem.embeddings)
    if problem.both_sides:
        panels += _panels_of(extension, problem.columns)
    entries = kept_tiles * panel * panel + 2 * panels * panel + rest
    header: int = extension.SAVED_HEADER_BYTES
    return header + entries * problem.result_dtype.itemsize


def tiles_of(extension: ModuleType, problem: PairProblem) -> int:
    """How many tiles the similarity matrix has, in self mode from the diagonal on."""
    row_panels = _panels_of(extension, problem.embeddings)
    if problem.ref_emb is None:
        return row_panels * (row_panels + 1) // 2
    return row_panels * _panels_of(extension, problem.ref_emb)


def _panels_of(extension: ModuleType, side: Tensor) -> int:
    panel: int = extension.PANEL
    return (side.shape[0] + panel - 1) // panel


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
        kind=getattr(extension.FormulaKind, _KINDS.get(type(formula), "functions")),
        gamma_pos=gamma_pos,
        gamma_neg=gamma_neg,
        optimum_pos=optimum_pos,
        optimum_neg=optimum_neg,
        margin_pos=margin_pos,
        margin_neg=margin_neg,
        detach_weights=formula.detach_weights,
        programs=_byte_codes(extension, getattr(formula, "programs", ())),
    )


@functools.lru_cache(maxsize=16)
def _byte_codes(extension: ModuleType, programs: tuple[Program, ...]) -> list[ByteCode]:
    """Of a formula's programs, which a learned scale leaves as they are."""
    return [byte_code(extension.OPERATIONS, program) for program in programs]


class ByteCode(NamedTuple):
    """A program as the extension takes it."""

    constants: list[float]
    places: int  # that it needs: the similarities', the constants', and of values
    instructions: list[tuple[int, list[int], int]]  # operation, places of operands, of the result


def byte_code(operations: dict[str, int], program: Program) -> ByteCode:
    """A program with places in memory for its values, used again as soon as a value is done with.

    Place 0 has the similarities, the next ones the constants.
    """
    steps = _without_copies(program)
    constants = {
        repr(each): each for step in steps for each in step.operands if isinstance(each, float)
    }
    place_of_constant = {name: place for place, name in enumerate(constants, 1)}
    last_step = {
        each: index
        for index, step in enumerate(steps)
        for each in step.operands
        if isinstance(each, int)
    }
    place_of_value = {0: 0}
    free: list[int] = []
    places = 1 + len(constants)
    instructions = []
    for index, (operation, operands, value) in enumerate(steps):
        operand_places = [
            place_of_value[each] if isinstance(each, int) else place_of_constant[repr(each)]
            for each in operands
        ]
        # A result may lie where an operand did: pairs do not look at one another.
        done = {each for each in operands if isinstance(each, int) and last_step[each] == index}
        free.extend(place_of_value[each] for each in sorted(done - {0}))
        if not free:
            free.append(places)
            places += 1
        place_of_value[value] = free.pop()
        instructions.append((operations[operation], operand_places, place_of_value[value]))
    return ByteCode(list(constants.values()), places, instructions)


class _Step(NamedTuple):
    """An instruction, and the number of the value that it gives."""

    operation: str
    operands: tuple[int | float, ...]
    value: int


def _without_copies(program: Program) -> list[_Step]:
    """A program's instructions but for those that hand a value on as it is."""
    meant: dict[int, int | float] = {0: 0}
    steps: list[_Step] = []
    for value, (operation, operands) in enumerate(program.instructions, 1):
        known = tuple(meant[each] if isinstance(each, int) else each for each in operands)
        if operation in ("copy", "detach"):
            meant[value] = known[0]
        else:
            meant[value] = value
            steps.append(_Step(operation, known, value))
    result = meant[value]
    if not steps or not isinstance(result, int) or result != steps[-1].value:
        steps.append(_Step("copy", (result,), value + 1))
    return steps
