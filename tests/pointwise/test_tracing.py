"""Functions of the similarity as programs: their values, autograd's derivatives, and refusals."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circle_kernels import PairFormula
from circle_kernels.pointwise.program import Instruction, Program
from circle_kernels.pointwise.tracing import trace

F64 = torch.float64
# With the places where these functions have corners.
SIMILARITY = torch.cat(
    [torch.linspace(-1.2, 1.2, 97, dtype=F64), torch.tensor([-1, -0.5, 0, 0.25, 0.5, 1], dtype=F64)]
)
NUMBER = 0.7
ONE_NUMBER = torch.tensor(0.3)


def _in_place(s: Tensor) -> Tensor:
    result = s * 3
    result += s
    result.mul_(2).clamp_(min=-1)
    result[...] = result + 1
    return result


def _with_loop(s: Tensor) -> Tensor:
    total = torch.zeros_like(s)
    for power in range(1, 5):
        total = total + s**power / math.factorial(power)
    return total


def _out_of_place_views(s: Tensor) -> Tensor:
    return (s.view(-1) * 2).view(s.shape) + s.reshape(-1).reshape_as(s)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda s: s,
    "constant": lambda s: torch.full_like(s, 3.0),
    "ones": torch.ones_like,
    "zeros": torch.zeros_like,
    "negative": lambda s: -s,
    "sum": lambda s: s + 2,
    "reversed difference": lambda s: 2 - s,
    "scaled sum": lambda s: torch.add(s, s * s, alpha=3),
    "scaled difference": lambda s: torch.sub(s, s * s, alpha=0.5),
    "rsub": lambda s: torch.rsub(s, 2.0, alpha=3),
    "rsub of tensors": lambda s: torch.rsub(s, s * s, alpha=3),
    "quotient": lambda s: s / (s + 3),
    "reciprocal": lambda s: (s + 2).reciprocal(),
    "one over": lambda s: 1 / (s + 2),
    "abs": lambda s: abs(s - 0.25),
    "sign": lambda s: torch.sign(s) * s,
    "exp": lambda s: torch.exp(2 * s),
    "expm1": torch.expm1,
    "log": lambda s: torch.log(s + 1.5),
    "log1p": lambda s: torch.log1p(s * s),
    "sqrt": lambda s: torch.sqrt(s + 1.5),
    "rsqrt": lambda s: torch.rsqrt(s + 1.5),
    "sin": lambda s: torch.sin(4 * s),
    "cos": lambda s: torch.cos(4 * s),
    "tan": lambda s: torch.sin(s) / torch.cos(s),
    "tanh": torch.tanh,
    "sigmoid": lambda s: torch.sigmoid(5 * s),
    "relu": lambda s: F.relu(s - 0.25),
    "clipped relu": lambda s: F.relu(s * 8 - 2).clamp(max=2),
    "softplus": F.softplus,
    "steep softplus": lambda s: F.softplus(s, beta=30),
    "silu by hand": lambda s: s * torch.sigmoid(s),
    "log sigmoid": F.logsigmoid,
    "huber": lambda s: F.smooth_l1_loss(s, torch.zeros_like(s), reduction="none", beta=0.5),
    "squared error": lambda s: F.mse_loss(s, torch.ones_like(s), reduction="none"),
    "clamp": lambda s: s.clamp(-0.5, 0.5) * s,
    "clamp from below": lambda s: s.clamp(min=0.25),
    "clamp from above": lambda s: s.clamp(max=0.25),
    "clamp_min": lambda s: s.clamp_min(0.5) ** 2,
    "maximum": lambda s: torch.maximum(s, 0.5 - s),
    "minimum": lambda s: torch.minimum(s, 0.5 - s),
    "tie": lambda s: torch.maximum(s, s),
    "tie with a number": lambda s: torch.maximum(s, torch.tensor(0.0, dtype=F64)),
    "tie with another number": lambda s: torch.minimum(torch.tensor(0.25, dtype=F64), s),
    "where": lambda s: torch.where(s > 0.25, s * s, 3 * s),
    "where of numbers": lambda s: torch.where(s >= 0.5, 1.0, -2.0) * s,
    "nested where": lambda s: torch.where(s < 0, s, torch.where(s <= 0.5, s * s, 1 + s)),
    "masks": lambda s: torch.where((s > -0.5) & ~(s > 0.5) | (s == 1), s, -s),
    "xor of masks": lambda s: torch.where((s != 0) & (s < 2), 1 / (s + 3), s),
    "mask as number": lambda s: (s > 0.25) * s,
    "mask as logit": lambda s: (s > 0.25).to(s.dtype),
    "number as mask": lambda s: s.bool() * 2.0 + torch.where(s.bool(), s, 1.0),
    "masks added": lambda s: ((s > 0.25).to(s.dtype) + (s > 0.5)) * s,
    "booleans added": lambda s: ((s > 0.25) + (s > 0.5)) * s,
    "booleans multiplied and added": lambda s: ((s > 0.25) * (s > 0.5) + (s > -0.5)) * s,
    "booleans counted": lambda s: ((s > 0.25) * 1 + (s > 0.5)) * s,
    "masked fill": lambda s: (s * s).masked_fill(s < 0, 0.5),
    "square": torch.square,
    "cube": lambda s: s**3,
    "power 0": lambda s: s**0 + s,
    "power 1": lambda s: s**1,
    "power 7": lambda s: s**7,
    "power -2": lambda s: (s + 2) ** -2,
    "square root as power": lambda s: (s + 2) ** 0.5,
    "power 1.5": lambda s: (s + 2) ** 1.5,
    "power -0.5": lambda s: (s + 2) ** -0.5,
    "detached weight": lambda s: F.relu(1.25 - s).detach() * (s - 0.75),
    "detached whole": lambda s: (s * s).detach(),
    "detached twice": lambda s: s.detach().detach() * s,
    "data of a global": lambda s: s * NUMBER,
    "a tensor with one number": lambda s: s * ONE_NUMBER + torch.tensor(2.0),
    "NaN": lambda s: torch.where(s > 0.9, math.nan, s),
    "infinity": lambda s: torch.where(s > 0.5, -math.inf, s),
    "in place": _in_place,
    "loop": _with_loop,
    "views": _out_of_place_views,
    "clone": lambda s: s.clone() + s.contiguous(),
    "float and back": lambda s: s.to(torch.float32).to(s.dtype) * 0 + s,
    "module": nn.Softplus(beta=2),
    "layers": nn.Sequential(nn.Tanh(), nn.ReLU()),
    "lerp": lambda s: torch.lerp(s, s * s, 0.3),
    "addcmul": lambda s: torch.addcmul(s, s, s, value=0.5),
    "hypot by hand": lambda s: (s * s + 1).sqrt(),
    "reused": lambda s: (s * s + 1) * (s * s + 1) - (s * s + 1),
}


@functools.cache
def traced(name: str) -> tuple[Program, Program]:
    return trace("positive", FUNCTIONS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_program_has_the_values_and_the_derivative_of_its_function(name: str) -> None:
    function = FUNCTIONS[name]
    program, slope = traced(name)
    similarity = SIMILARITY.clone().requires_grad_()
    expected = function(similarity)
    torch.testing.assert_close(
        program(SIMILARITY), expected.detach(), rtol=1e-13, atol=1e-13, equal_nan=True
    )
    if expected.requires_grad:
        (derivative,) = torch.autograd.grad(expected.sum(), similarity)
    else:
        derivative = torch.zeros_like(SIMILARITY)
    torch.testing.assert_close(slope(SIMILARITY), derivative, rtol=1e-12, atol=1e-12)
    # So has what autograd makes of the program, which the reference backend differentiates.
    result = program(similarity)
    if result.requires_grad:
        (of_program,) = torch.autograd.grad(result.sum(), similarity)
        torch.testing.assert_close(of_program, derivative, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_programs_compute_in_the_dtype_of_the_similarities(dtype: torch.dtype) -> None:
    for name in FUNCTIONS:
        for program in traced(name):
            assert program(SIMILARITY.to(dtype)).dtype == dtype


def test_programs_take_any_shape() -> None:
    program, _ = trace("positive", FUNCTIONS["where"])
    for shape in ((), (0,), (3, 0), (2, 3, 4), (1, 1)):
        assert program(torch.rand(shape)).shape == shape
    constant, _ = trace("positive", FUNCTIONS["constant"])
    assert constant(torch.rand(2, 3)).shape == (2, 3)


def test_what_is_detached_is_a_constant() -> None:
    similarity = torch.tensor([0.1, 0.9], dtype=F64)
    _, detached = trace("positive", lambda s: s.detach() * s)
    _, whole = trace("positive", lambda s: s * s)
    assert torch.equal(detached(similarity), similarity)
    assert torch.equal(whole(similarity), 2 * similarity)


def test_functions_are_traced_once_and_under_any_mode() -> None:
    calls = []

    def function(s: Tensor) -> Tensor:
        calls.append(s)
        return s * NUMBER

    with torch.no_grad(), torch.inference_mode():
        formula = PairFormula.from_functions(function, lambda s: s)
    made = len(calls)
    formula.positive_logits(SIMILARITY)
    assert len(calls) == made
    assert torch.equal(formula.positive_slopes(SIMILARITY), torch.full_like(SIMILARITY, NUMBER))
    torch.set_default_dtype(torch.float64)
    try:
        assert PairFormula.from_functions(function, lambda s: s) == formula
    finally:
        torch.set_default_dtype(torch.float32)


def _branch(s: Tensor) -> Tensor:
    return s if s.sum() > 0 else -s


def _in_place_of_argument(s: Tensor) -> Tensor:
    return s.mul_(2)


PARAMETER = nn.Parameter(torch.tensor(2.0))
MANY = torch.rand(3)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (3, TypeError, "must be a function of a tensor, got int 3"),
        (None, TypeError, "must be a function of a tensor, got NoneType"),
        (lambda s: torch.special.bessel_j0(s), ValueError, "operation 'special_bessel_j0'.*cann"),
        (lambda s: torch.erf(s), ValueError, "operation 'erf', which cannot be fused"),
        (lambda s: s.acos(), ValueError, "operation 'acos', which cannot be fused"),
        (F.elu, ValueError, "operation 'elu', which cannot be fused"),
        (F.relu6, ValueError, "operation 'hardtanh', which cannot be fused"),
        (lambda s: (s * 3).long() * s, ValueError, "compute with floats, and casts one to torch.i"),
        (lambda s: (s * 3).to(torch.uint8) * s, ValueError, "casts one to torch.uint8"),
        (lambda s: ~((s > 0) * 1) * s, ValueError, "compute with floats, and changes bits"),
        (lambda s: ((s > 0) * 3 & 2) * s, ValueError, "compute with floats, and changes bits"),
        (lambda s: s.view(torch.int64) * s, ValueError, "compute with floats, and views bits"),
        (lambda s: s * 1j, ValueError, "compute with real numbers, got complex 1j"),
        (lambda s: s * torch.rand_like(s), ValueError, "operation 'rand"),
        (lambda s: s.sort().values, ValueError, "operation 'sort'"),
        (lambda s: s.cumsum(1), ValueError, "operation 'cumsum'"),
        (lambda s: s - s.mean(), ValueError, "operation '(mean|sum)'"),
        (lambda s: s.flip(0), ValueError, "operation 'flip'"),
        (lambda s: s.softmax(1), ValueError, "operation '_softmax'|operation '(amax|sum)'"),
        (lambda s: s**s, ValueError, "operation 'pow'"),
        (_branch, ValueError, "asks for the value of a similarity.*use torch.where"),
        (lambda s: s * float(s.max()), ValueError, "asks for the value of a similarity"),
        (lambda s: s if s > 0 else -s, ValueError, "asks for the value.*use torch.where"),
        (lambda s: s * float(s), ValueError, "asks for the value of a similarity"),
        (lambda s: s * s.item(), ValueError, "asks for the value of a similarity"),
        (lambda s: s * s.sum().item(), ValueError, "asks for the value of a similarity"),
        (lambda s: s * MANY, ValueError, r"of the similarity and of numbers, got a torch.float32"),
        (lambda s: s * PARAMETER, ValueError, "must not hold a tensor that needs a gradient"),
        (nn.PReLU().double(), ValueError, "must not hold a tensor that needs a gradient"),
        (lambda s: s.sum(), ValueError, r"one logit for each similarity: wanted .* shape \(2, 3\)"),
        (lambda s: s.T, ValueError, r"one logit for each similarity: wanted .* got a torch.float"),
        (lambda s: s[0], ValueError, "one logit for each similarity"),
        (lambda s: 3.0, ValueError, "one logit for each similarity.*got float 3.0"),
        (lambda s: (s, s), ValueError, "one logit for each similarity.*got tuple"),
        (lambda s: None, ValueError, "one logit for each similarity.*got NoneType"),
        (lambda s: s > 0, ValueError, "must return logits, got booleans; use torch.where"),
        (lambda s: (s > 0) & (s < 1), ValueError, "must return logits, got booleans"),
        (lambda s: s**65, ValueError, "powers of at most 64, got 65"),
        (lambda s, t: s, TypeError, "missing 1 required positional argument"),
        (lambda s: s.undefined(), AttributeError, "undefined"),
    ],
)
@pytest.mark.parametrize("place", ["positive", "negative"])
def test_what_cannot_be_fused_is_named_when_the_formula_is_made(
    place: str, function: Any, error: type, message: str
) -> None:
    functions = {"positive": lambda s: -s, "negative": lambda s: s, place: function}
    with pytest.raises(error, match=f"(?s){message}") as caught:
        PairFormula.from_functions(**functions)
    if error is ValueError:
        assert str(caught.value).startswith(f"{place} ")


def test_too_many_operations_are_told_with_their_number() -> None:
    def polynomial(s: Tensor) -> Tensor:
        for step in range(200):
            s = torch.sin(s) + step
        return s

    with pytest.raises(ValueError, match=r"positive must have at most 128 operations.* got \d+"):
        PairFormula.from_functions(polynomial, lambda s: s)


@pytest.mark.parametrize(
    ("gamma", "error"),
    [(0.0, ValueError), (-1.0, ValueError), (math.inf, ValueError), ("1", TypeError)],
)
def test_gamma_is_a_finite_number_above_0(gamma: Any, error: type) -> None:
    with pytest.raises(error, match="gamma must be"):
        PairFormula.from_functions(lambda s: -s, lambda s: s, gamma=gamma)


def test_programs_drop_what_nobody_needs_and_compute_nothing_twice() -> None:
    def function(s: Tensor) -> Tensor:
        torch.exp(s)
        return (s * s + 1) * (s * s + 1)

    program, _ = trace("positive", function)
    assert [each.operation for each in program.instructions] == ["multiply", "add", "multiply"]
    constant, slope = trace("positive", lambda s: torch.full_like(s, 2.0) * 3)
    assert constant.text == "copy 6.0"
    assert slope.text == "copy 0.0"


def test_places_are_not_constants() -> None:
    """Place 2 is not the constant 2.0, which Python holds equal."""
    of_place = Program.of(
        [Instruction("exp", (0,)), Instruction("sin", (0,)), Instruction("add", (1, 2))]
    )
    of_constant = Program.of([Instruction("exp", (0,)), Instruction("add", (1, 2.0))])
    assert of_place != of_constant
    assert Program("add 0 1").text != Program("add 0 1.0").text
    assert Program("add 0 0") != Program("add 0 0.0")
    assert Program("add 0 0.0")(SIMILARITY).equal(SIMILARITY)
    assert Program("add 0 0")(SIMILARITY).equal(2 * SIMILARITY)
