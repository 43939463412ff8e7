"""Source of a Triton function that evaluates the four programs of a formula of functions."""

from __future__ import annotations

import functools
import hashlib
import linecache
import math
import struct
from typing import Any

import triton
import triton.language as tl

from circle_kernels.backends.triton.formula import operations
from circle_kernels.pointwise.program import Instruction, Program

# What the function is asked for, in the order of a formula's programs.
PARTS = ("positive", "negative", "positive slope", "negative slope")

# For each of OPERATIONS of pointwise/program.py.
EXPRESSIONS = {
    "copy": "{}",
    "detach": "{}",
    "negative": "-{}",
    "absolute": "tl.abs({})",
    "sign": "operations.sign({})",
    "exp": "operations.exponential({})",
    "expm1": "operations.expm1({})",
    "log": "tl.log({})",
    "log1p": "operations.log1p({})",
    "sqrt": "tl.sqrt_rn({})",
    "sin": "operations.sine_after({}, 0)",
    "cos": "operations.sine_after({}, 1)",
    "tanh": "operations.tanh({})",
    "sigmoid": "operations.sigmoid({})",
    "add": "{} + {}",
    "subtract": "{} - {}",
    "multiply": "{} * {}",
    "divide": "{} / {}",
    "maximum": "tl.maximum({}, {}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({}, {}, propagate_nan=tl.PropagateNan.ALL)",
    "greater": "{} > {}",
    "greater_equal": "{} >= {}",
    "equal": "{} == {}",
    "not_equal": "{} != {}",
    "and": "{} & {}",
    "or": "{} | {}",
    "not": "{} ^ True",
    "where": "tl.where({}, {}, {})",
    "number": "tl.where({}, 1.0, 0.0)",
}

# Those that are many of the device's.
_LONG = frozenset(("expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid"))


def num_operations(programs: tuple[Program, ...]) -> int:
    """About how many operations of the device the programs take for a pair."""
    return sum(
        16 if each.operation in _LONG else 1
        for program in programs
        for each in program.instructions
    )


@functools.cache
def pair_functions(programs: tuple[Program, Program, Program, Program]) -> Any:
    """The Triton function ``(similarity, PART)`` of a formula's programs, of any shape in float32.

    Its name says what it computes, since some versions of Triton know kernels apart by names of
    the functions that they are given.
    """
    digest = hashlib.sha256("\n".join(program.text for program in programs).encode()).hexdigest()
    name = f"pair_functions_{digest[:16]}"
    source = _source(name, programs)
    # Where inspect looks for it, as it does for code that has no file.
    file = f"{name}.py"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    namespace: dict[str, Any] = {"__name__": __name__, "tl": tl, "operations": operations}
    exec(compile(source, file, "exec"), namespace)
    return triton.jit(namespace[name])


def _source(name: str, programs: tuple[Program, ...]) -> str:
    lines = [f"def {name}(similarity, PART: tl.constexpr):"]
    for part, program in zip(PARTS, programs, strict=True):
        lines.append(f"    if PART == {part!r}:")
        lines += [f"        {line}" for line in _statements(program)]
    return "\n".join([*lines, "    return result", ""])


def _statements(program: Program) -> list[str]:
    """One for each instruction, and before these one for each constant."""
    constants: dict[str, str] = {}

    def name(operand: int | float) -> str:
        if isinstance(operand, int):
            return f"value_{operand}" if operand else "similarity"
        return constants.setdefault(_number(operand), f"constant_{len(constants)}")

    def statement(place: int, instruction: Instruction) -> str:
        expression = EXPRESSIONS[instruction.operation].format(*map(name, instruction.operands))
        return f"value_{place} = {expression}"

    statements = [statement(*each) for each in enumerate(program.instructions, 1)]
    # As tensors, so that operations of constants alone are those of tensors, too.
    filled = [
        f"{each} = tl.full(similarity.shape, {number}, tl.float32)"
        for number, each in constants.items()
    ]
    return [*filled, *statements, f"result = value_{len(statements)}"]


def _number(value: float) -> str:
    """A number as source, in float32."""
    try:
        (value,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        value = math.copysign(math.inf, value)
    if math.isfinite(value):
        return repr(value)
    return 'float("nan")' if math.isnan(value) else f'{"-" * (value < 0)}float("inf")'
