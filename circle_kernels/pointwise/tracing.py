"""From functions of tensors to programs: what torch says of a function while it runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from circle_kernels.arguments import describe
from circle_kernels.pointwise.program import MASKS, Instruction, Program
from circle_kernels.pointwise.torch_names import SAME

# Of a program: more than any formula in use has, and little enough to keep in registers.
_MOST_INSTRUCTIONS = 128
_LARGEST_POWER = 64

Operand = int | float

_OF_BOOLEANS = {"add": "or", "mul": "and"}
_COPIES = frozenset(("alias", "clone", "expand", "view", "lift_fresh"))
_CASTS = frozenset(("_to_copy", "convert_element_type"))
# What torch says of 'if' and float(): of several similarities, then of one while it is traced.
_ASKED_FOR_A_VALUE = (
    "Boolean value of Tensor",
    "one element tensors",
    "cannot be converted to Scalar",
    "data-dependent",
    "proxy",
)
_CONSTANTS = {"ones_like": 1.0, "zeros_like": 0.0}


def trace(name: str, function: Callable[[Tensor], Tensor]) -> tuple[Program, Program]:
    """A function of similarities as a program, and its derivative as autograd has it.

    Raises:
        TypeError, ValueError: something that is not a pointwise function of its argument alone, or
            that has an operation which no program has; the message has its ``name``.
    """
    if not callable(function):
        raise TypeError(f"{name} must be a function of a tensor, got {describe(function)}")
    similarity = torch.linspace(-0.9, 0.9, 6, dtype=torch.float64, device="cpu").view(2, 3)

    def value(similarity: Tensor) -> Tensor:
        result = function(similarity)
        if not isinstance(result, Tensor) or result.shape != similarity.shape:
            raise ValueError(
                f"{name} must return one logit for each similarity: wanted a tensor of shape "
                f"{tuple(similarity.shape)}, got {describe(result)}"
            )
        if result.requires_grad and not similarity.requires_grad:
            raise ValueError(
                f"{name} must not hold a tensor that needs a gradient: it would be held constant"
            )
        return result

    def slope(similarity: Tensor) -> Tensor:
        result, derive = torch.func.vjp(value, similarity)  # type: ignore[misc]
        return derive(torch.ones_like(result))[0]

    with torch.inference_mode(False), torch.enable_grad():
        with _asking_for_no_value(name):
            value(similarity)
        return _program_of(name, value, similarity), _program_of(name, slope, similarity)


def _program_of(name: str, function: Callable[[Tensor], Tensor], similarity: Tensor) -> Program:
    return _Translation(name, _graph_of(name, function, similarity)).program()


def _graph_of(name: str, function: Callable[[Tensor], Tensor], similarity: Tensor) -> GraphModule:
    with _asking_for_no_value(name):
        # Without what is done in place, of which a graph does not say what it changes.
        pure = torch.func.functionalize(function, remove="mutations_and_views")
        graph = make_fx(pure, decomposition_table=_decompositions())(similarity)
    graph.graph.eliminate_dead_code()
    return graph


@contextmanager
def _asking_for_no_value(name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not any(each in str(error) for each in _ASKED_FOR_A_VALUE):
            raise
        raise ValueError(
            f"{name} must compute with tensors alone: it asks for the value of a similarity, as "
            "'if' and float() do; use torch.where"
        ) from error


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """As a dict, which takes longer to make than a function to trace."""
    return dict(core_aten_decompositions().items())


class _Translation:
    """A graph of torch's operations on its way to a program."""

    def __init__(self, name: str, graph: GraphModule) -> None:
        self._name = name
        self._graph = graph
        self._instructions: list[Instruction] = []
        self._places: dict[str, int] = {}  # of what has been computed already

    def program(self) -> Program:
        operands: dict[Node, Operand] = {}
        for node in self._graph.graph.nodes:
            if node.op == "placeholder":
                operands[node] = 0
            elif node.op == "get_attr":
                operands[node] = self._held(getattr(self._graph, node.target))
            elif node.op == "output":
                result = node.args[0]
                return self._ended(operands[result] if isinstance(result, Node) else result)
            else:
                arguments = [
                    operands[each] if isinstance(each, Node) else _constant(each)
                    for each in node.args
                ]
                operands[node] = self._translate(node, arguments)
        raise AssertionError("a graph without an output")

    def _ended(self, result: Operand) -> Program:
        if result == 0 or isinstance(result, float) or result != len(self._instructions):
            self._instructions.append(Instruction("copy", (result,)))
        elif self._is_mask(result):
            raise ValueError(f"{self._name} must return logits, got booleans; use torch.where")
        program = Program.of(self._instructions)
        if len(program.instructions) > _MOST_INSTRUCTIONS:
            raise ValueError(
                f"{self._name} must have at most {_MOST_INSTRUCTIONS} operations, and its "
                f"derivative as many, got {len(program.instructions)}"
            )
        return program

    def _held(self, value: object) -> float:
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                f"{self._name} must be a function of the similarity and of numbers, got "
                f"{describe(value)} in it"
            )
        return float(value)

    def _translate(self, node: Node, arguments: list[Any]) -> Operand:
        kind = str(node.target).split(".")[-2]
        if kind != "_to_copy":
            kind = kind.removesuffix("_copy")  # of what elsewhere are views
        if kind in _COPIES:
            (given,) = node.all_input_nodes
            if node.meta["val"].dtype != given.meta["val"].dtype:
                raise ValueError(f"{self._name} must compute with floats, and views bits of one")
            return arguments[0]
        if kind in _OF_BOOLEANS and node.meta["val"].dtype == torch.bool:
            return self._add(_OF_BOOLEANS[kind], *map(self._as_mask, arguments))
        if kind.startswith("bitwise") and node.meta["val"].dtype != torch.bool:
            raise ValueError(f"{self._name} must compute with floats, and changes bits of integers")
        if kind == "copy":  # of what is assigned to a slice that is all
            return arguments[1]
        if kind in _CASTS:
            dtype: Any = node.kwargs.get("dtype", [*arguments, None][1])
            return self._cast(arguments[0], dtype)
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in ("full_like", "full"):
            return arguments[1]
        if kind == "scalar_tensor":
            return arguments[0]
        if kind in ("maximum", "minimum"):
            # Of two equal ones each gets half of the gradient, and of bounds none.
            arguments = [self._in_a_place(each) for each in arguments]
        if kind in SAME and not node.kwargs.keys() - {"dtype"}:
            return self._add(SAME[kind], *arguments)
        if kind in ("lt", "le"):
            return self._add("greater" if kind == "lt" else "greater_equal", *arguments[::-1])
        if kind in ("add", "sub"):
            first, second = arguments[:2]
            if node.kwargs.get("alpha", 1) != 1:
                second = self._add("multiply", second, _constant(node.kwargs["alpha"]))
            return self._add("add" if kind == "add" else "subtract", first, second)
        if kind == "rsub":
            return self._add("subtract", arguments[1], arguments[0])
        if kind == "relu":
            return self._add("maximum", 0.0, arguments[0])
        if kind in ("clamp", "clamp_min", "clamp_max"):
            return self._clamped(kind, arguments, node.kwargs)
        if kind == "reciprocal":
            return self._add("divide", 1.0, arguments[0])
        if kind == "rsqrt":
            return self._add("divide", 1.0, self._add("sqrt", arguments[0]))
        if kind == "pow" and isinstance(arguments[1], float):
            return self._power(arguments[0], arguments[1])
        raise ValueError(
            f"{self._name} uses torch's operation {kind!r}, which cannot be fused; what can: "
            f"{', '.join(sorted({*SAME, 'add', 'sub', 'pow', 'relu', 'clamp'}))}"
        )

    def _cast(self, value: Operand, dtype: torch.dtype | None) -> Operand:
        if dtype == torch.bool:
            return self._as_mask(value)
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"{self._name} must compute with floats, and casts one to {dtype}")
        return value if dtype is None else self._as_number(value)

    def _in_a_place(self, value: Operand) -> int:
        """The place of a value, also of a constant."""
        if isinstance(value, int):
            return value
        self._instructions.append(Instruction("copy", (value,)))
        return len(self._instructions)

    def _clamped(self, kind: str, arguments: list[Any], named: dict[str, Any]) -> Operand:
        value, *bounds = arguments
        if kind == "clamp":
            low = bounds[0] if bounds else named.get("min")
            high = bounds[1] if len(bounds) > 1 else named.get("max")
        else:
            low, high = (bounds[0], None) if kind == "clamp_min" else (None, bounds[0])
        if low is not None:
            value = self._add("maximum", value, low)
        return value if high is None else self._add("minimum", value, high)

    def _power(self, base: Operand, exponent: float) -> Operand:
        if exponent == 0.5:
            return self._add("sqrt", base)
        if exponent != round(exponent):
            return self._add("exp", self._add("multiply", self._add("log", base), exponent))
        if abs(exponent) > _LARGEST_POWER:
            raise ValueError(
                f"{self._name} must have powers of at most {_LARGEST_POWER}, got {exponent}"
            )
        result: Operand = 1.0
        for digit in bin(abs(round(exponent)))[2:]:
            result = self._add("multiply", result, result)
            if digit == "1":
                result = self._add("multiply", result, base)
        return result if exponent >= 0 else self._add("divide", 1.0, result)

    def _add(self, operation: str, *operands: Any) -> Operand:
        """The place of an instruction's result, or its value where that is known."""
        wanted = tuple(
            self._as_mask(each) if _takes_mask(operation, place) else self._as_number(each)
            for place, each in enumerate(operands)
        )
        if operation == "multiply" and 1.0 in map(_number, wanted):
            return wanted[0] if _number(wanted[1]) == 1.0 else wanted[1]
        if operation in ("add", "subtract") and _number(wanted[1]) == 0.0:
            return wanted[0]
        instruction = Instruction(operation, wanted)
        if all(isinstance(each, float) for each in wanted) and operation not in MASKS:
            known = Program.of([instruction])
            return known(torch.zeros((), dtype=torch.float64, device="cpu")).item()
        key = repr(instruction)  # place 2 is not the constant 2.0
        if key not in self._places:
            self._instructions.append(instruction)
            self._places[key] = len(self._instructions)
        return self._places[key]

    def _as_number(self, value: Operand) -> Operand:
        if not isinstance(value, (int, float)):
            raise ValueError(f"{self._name} must compute with real numbers, got {describe(value)}")
        return self._add("number", value) if self._is_mask(value) else value

    def _as_mask(self, value: Operand) -> Operand:
        return value if self._is_mask(value) else self._add("not_equal", value, 0.0)

    def _is_mask(self, value: Operand) -> bool:
        return (
            isinstance(value, int)
            and value > 0
            and self._instructions[value - 1].operation in MASKS
        )


def _takes_mask(operation: str, place: int) -> bool:
    return operation in ("and", "or", "not", "number") or (operation == "where" and place == 0)


def _constant(value: Any) -> Any:
    """Numbers as floats: integers are places."""
    return float(value) if isinstance(value, (bool, int)) else value


def _number(operand: Operand) -> float:
    """The constant, or NaN, which equals nothing."""
    return operand if isinstance(operand, float) else math.nan
