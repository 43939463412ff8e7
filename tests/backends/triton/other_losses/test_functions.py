"""Programs as Triton source: every operation to a few roundings of float32, also near 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from circle_kernels.formula import PairFormula
from circle_kernels.pointwise.program import MASKS, OPERATIONS, Instruction, Program
from tests.support.targets import INTERPRETED

pytest.importorskip("triton", minversion="3.3")

import triton
import triton.language as tl

from circle_kernels.backends.triton.formula.source import EXPRESSIONS, PARTS, pair_functions

interpreted = [
    pytest.mark.backends,
    pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1"),
]
CONSTANT = -0.75


@triton.jit
def function_kernel(
    values_ptr,
    results_ptr,
    FUNCTIONS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places = tl.arange(0, BLOCK)
    tl.store(results_ptr + places, FUNCTIONS(tl.load(values_ptr + places), PART))


def evaluate(program: Program, values: Tensor, part: str = PARTS[0]) -> Tensor:
    copy = Program.of([Instruction("copy", (0,))])
    programs = [program if each == part else copy for each in PARTS]
    results = torch.empty_like(values)
    functions = pair_functions(tuple(programs))
    function_kernel[(1,)](values, results, functions, part, BLOCK=len(values))
    return results


def of_operation(name: str) -> Program:
    """The similarity and a constant under one operation, as a number."""
    if name in ("and", "or", "not", "number"):
        masks = [Instruction("greater", (0, CONSTANT)), Instruction("greater", (0.5, 0))]
        operands = (1,) if name in ("not", "number") else (1, 2)
        instructions = [*masks, Instruction(name, operands)]
    elif name == "where":
        instructions = [Instruction("greater", (0, CONSTANT)), Instruction(name, (1, 0, 4.0))]
    else:
        instructions = [Instruction(name, (0,) if name in UNARY else (0, CONSTANT))]
    if name in MASKS:
        instructions.append(Instruction("number", (len(instructions),)))
    return Program.of(instructions)


UNARY = {
    *("copy", "detach", "negative", "absolute", "sign", "exp", "expm1", "log", "log1p", "sqrt"),
    *("sin", "cos", "tanh", "sigmoid"),
}


def test_every_operation_has_an_expression() -> None:
    assert EXPRESSIONS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_its_own_program(part: str) -> None:
    if not INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1")
    values = torch.linspace(-1, 1, 16)
    doubled = Program.of([Instruction("multiply", (0, 2.0))])
    assert torch.equal(evaluate(doubled, values, part), 2 * values)


class TestInterpreted:
    pytestmark = interpreted

    @pytest.mark.parametrize("name", OPERATIONS)
    @pytest.mark.parametrize("size", [1e-30, 1e-5, 1.0, 30.0, 3000.0])
    def test_operations_are_right_to_a_few_roundings(self, name: str, size: float) -> None:
        values = size * torch.linspace(-1, 1, 256)
        program = of_operation(name)
        truth = program(values.double())
        result = evaluate(program, values).double()
        finite = truth.abs() < torch.finfo(torch.float32).max
        assert torch.equal(result[~finite].isnan(), truth[~finite].isnan())
        assert not result[~finite].isfinite().any()
        error = (result - truth).abs()[finite]
        # Angles are reduced with an absolute error, and what is below float32's range is lost.
        floor = 1.0 if name in ("sin", "cos") and size > 1 else 0.0
        allowed = 4 * torch.finfo(torch.float32).eps * truth.abs()[finite].clamp_min(floor)
        assert (error <= allowed + 2.0**-126).all(), (error - allowed).max()

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_operations_treat_nan_and_infinity_as_torch_does(self, name: str) -> None:
        values = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
        program = of_operation(name)
        torch.testing.assert_close(evaluate(program, values), program(values), equal_nan=True)

    def test_constants_beyond_float32_are_infinite(self) -> None:
        values = torch.linspace(-1, 1, 16)
        for constant, name in ((1e300, "minimum"), (-1e300, "maximum"), (math.inf, "minimum")):
            program = Program.of([Instruction(name, (0, constant))])
            assert torch.equal(evaluate(program, values), values)

    def test_operations_of_constants_alone_are_those_of_tensors(self) -> None:
        values = torch.linspace(-1, 1, 16)
        masked = [Instruction("greater", (1.0, 0.5)), Instruction("where", (1, 2.5, 7.0))]
        assert torch.equal(evaluate(Program.of(masked), values), torch.full((16,), 2.5))


def test_functions_of_equal_programs_are_one() -> None:
    """So that formulas that are made anew at every step are compiled once."""
    one, other = (
        PairFormula.from_functions(lambda s: 1 - s, lambda s: s * 2, gamma=gamma)
        for gamma in (1.0, 5.0)
    )
    assert pair_functions(one.programs) is pair_functions(other.programs)
