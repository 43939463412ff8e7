"""A pointwise function of the similarity as a list of instructions, which every backend can run.

PyTorch evaluates them here, the C++ kernel as byte code, the Triton kernels as generated source.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# What an instruction computes, of tensors. Comparisons and what combines them give masks, which
# ``where`` chooses by and ``number`` makes 1 or 0 of. As in torch, the larger and the smaller of
# two numbers are NaN where one of them is.
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "copy": lambda x: x,
    "detach": torch.Tensor.detach,  # what it returns is a constant to who differentiates
    "negative": torch.negative,
    "absolute": torch.abs,
    "sign": torch.sign,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "add": torch.add,
    "subtract": torch.subtract,
    "multiply": torch.multiply,
    "divide": torch.divide,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "greater": torch.greater,
    "greater_equal": torch.greater_equal,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "where": torch.where,
    "number": lambda mask: mask,  # in the dtype of the similarities
}
_BOUNDED: dict[str, Callable[..., Tensor]] = {
    "maximum": lambda x, bound: torch.clamp(x, min=bound),
    "minimum": lambda x, bound: torch.clamp(x, max=bound),
}
# Whose results are masks.
MASKS = frozenset(("greater", "greater_equal", "equal", "not_equal", "and", "or", "not"))


class Instruction(NamedTuple):
    """One operation on values that are there: 0 is the similarity, k what instruction k - 1 gave.

    Operands that are floats are constants.
    """

    operation: str  # of OPERATIONS
    operands: tuple[int | float, ...]


@dataclass(frozen=True)
class Program:
    """Instructions, at least one; the last one's result is the function's.

    As text, since place 2 is not the constant 2.0, which Python holds equal.
    """

    text: str

    @staticmethod
    def of(instructions: list[Instruction]) -> Program:
        """The program of these, without those that nobody needs."""
        needed, kept = {len(instructions)}, []
        for place in range(len(instructions), 0, -1):
            if place in needed:
                needed.update(
                    each for each in instructions[place - 1].operands if isinstance(each, int)
                )
        places = {0: 0} | {old: new for new, old in enumerate(sorted(needed - {0}), 1)}
        for place in sorted(needed - {0}):
            operation, operands = instructions[place - 1]
            moved = (places[each] if isinstance(each, int) else each for each in operands)
            kept.append(" ".join((operation, *map(repr, moved))))
        return Program("; ".join(kept))

    @functools.cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """What the text says."""
        return tuple(_parse(each) for each in self.text.split("; "))

    def __call__(self, similarity: Tensor) -> Tensor:
        """The function, elementwise, in the dtype of the similarities; differentiable."""
        values = [similarity]

        def value(operand: int | float) -> Tensor:
            if isinstance(operand, int):
                return values[operand]
            return similarity.new_full((), operand)

        for operation, operands in self.instructions:
            result = _implementation(operation, operands)(*map(value, operands))
            values.append(result.to(similarity.dtype) if operation == "number" else result)
        return values[-1].expand_as(similarity)  # of a constant, too


def _implementation(operation: str, operands: tuple[int | float, ...]) -> Callable[..., Tensor]:
    """What computes it, with torch's derivative of what it stands for: where two numbers are equal,
    that of ``clamp`` beside a bound, of ``relu`` beside a 0 that comes first."""
    if operation in _BOUNDED and isinstance(operands[1], float):
        return _BOUNDED[operation]
    if operation == "maximum" and repr(operands[0]) == "0.0":
        return lambda zero, x: torch.relu(x)
    return OPERATIONS[operation]


def _parse(text: str) -> Instruction:
    operation, *operands = text.split(" ")
    return Instruction(
        operation, tuple(int(each) if each.isdecimal() else float(each) for each in operands)
    )
