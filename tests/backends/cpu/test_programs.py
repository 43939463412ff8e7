"""Formulas of functions as the C++ kernel takes them: byte code, and what it makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circle_kernels import pair_logsumexp
from circle_kernels.backends import cpu
from circle_kernels.backends.cpu_arguments import byte_code
from circle_kernels.formula import PairFormula
from circle_kernels.pointwise.program import OPERATIONS, Program
from tests.support.formulas import FUNCTIONS

pytestmark = [pytest.mark.backends, pytest.mark.sanitized]

NAMES = {name: code for code, name in enumerate(OPERATIONS)}


def _run(program: Program, similarity: Tensor) -> Tensor:
    """A program's byte code, by torch."""
    constants, places, instructions = byte_code(NAMES, program)
    values = [similarity, *(similarity.new_tensor(each) for each in constants)]
    values += [similarity.new_full((), math.nan)] * (places - len(values))
    for code, operands, result in instructions:
        assert result > len(constants)
        values[result] = OPERATIONS[list(OPERATIONS)[code]](*(values[each] for each in operands))
        values[result] = (
            values[result].to(similarity.dtype) if code == NAMES["number"] else (values[result])
        )
    return values[result].expand_as(similarity)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_byte_code_is_the_program(name: str) -> None:
    similarity = torch.linspace(-1, 1, 101, dtype=torch.float64)
    for program in FUNCTIONS[name].programs:
        assert torch.equal(_run(program, similarity), program(similarity))


def test_places_are_used_again() -> None:
    """However long a program is, it needs as many places as it holds values at a time."""
    formula = PairFormula.from_functions(
        lambda s: s, lambda s: sum((s * i).cos() * i for i in range(2, 9))
    )
    constants, places, instructions = byte_code(NAMES, formula.programs[1])
    assert len(instructions) > 15
    assert places - 1 - len(constants) <= 3


def test_extension_has_every_operation() -> None:
    """But for detach, which byte code has no use for."""
    assert {*cpu.loaded().OPERATIONS} == {*OPERATIONS} - {"detach"}


USES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda s: (3 * s).exp(),
    "expm1": lambda s: torch.expm1(s),
    "log": lambda s: torch.log(s + 1.5),
    "log1p": lambda s: torch.log1p(s / 2),
    "softplus": lambda s: torch.log1p(torch.exp(-s.abs())) + torch.relu(s),
    "sqrt": lambda s: torch.sqrt(2 - s * s),
    "sin": lambda s: torch.sin(50 * s),
    "cos": lambda s: torch.cos(200 * s),
    "tanh": lambda s: torch.tanh(4 * s),
    "sigmoid": lambda s: torch.sigmoid(-9 * s),
    "divide": lambda s: 1 / (s + 2),
    "powers": lambda s: s**3 - (s + 2) ** -2,
    "bounds": lambda s: s.clamp(-0.2, 0.3),
    "sign and absolute": lambda s: s.sign() * s.abs().sqrt(),
    "masks": lambda s: torch.where(((s > 0) & (s < 0.5)) | ~(s >= -0.4), s * 2, -s),
    "number": lambda s: (s > 0.1) * s,
    "equal": lambda s: torch.where((s == 0.5) | (s != s), s, s * s),
    "constant": lambda s: torch.zeros_like(s) + 2,
    "itself": lambda s: s,
}


def _batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(200, 7, generator=generator, dtype=torch.float64).to(dtype)
    return embeddings, torch.randint(0, 40, (200,), generator=generator)


@pytest.mark.parametrize("name", USES)
def test_operations_are_those_of_torch(name: str) -> None:
    use = USES[name]
    formula = PairFormula.from_functions(lambda s: -use(s), use, gamma=3.0)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        results = []
        for backend in ("cpu", "tiled"):
            embeddings, labels = _batch(torch.float64 if backend == "tiled" else dtype)
            embeddings = embeddings.to(dtype).to(embeddings.dtype).requires_grad_()
            sums = pair_logsumexp(embeddings, labels, formula=formula, backend=backend)
            (gradient,) = torch.autograd.grad(sums[0].sin().sum() + sums[1].cos().sum(), embeddings)
            results.append([*sums, gradient])
        for ours, truth in zip(*results, strict=True):
            scale = truth[truth.isfinite()].abs().max().item()
            torch.testing.assert_close(
                ours.double(), truth, rtol=tolerance, atol=10 * tolerance * max(scale, 1)
            )


POLES: dict[str, Callable[[Tensor], Tensor]] = {
    "minus infinity": lambda s: torch.log(torch.relu(s - 0.5)),
    "minus infinity everywhere": lambda s: torch.log(torch.relu(s - 5)),
    "infinity": lambda s: 1 / torch.relu(0.4 - s),
    "NaN": lambda s: torch.log(s + 0.6),
    "out of range": lambda s: torch.exp(500 * s),
}


@pytest.mark.parametrize("name", POLES)
@pytest.mark.parametrize("kept", [True, False])
def test_infinite_logits_and_nan_are_where_torch_has_them(name: str, kept: bool) -> None:
    pole = POLES[name]
    formula = PairFormula.from_functions(pole, pole)
    embeddings, labels = _batch(torch.float64)
    embeddings.requires_grad_(kept)
    ours, truth = (
        pair_logsumexp(embeddings, labels, formula=formula, backend=backend)
        for backend in ("cpu", "tiled")
    )
    for sums, expected in zip(ours, truth, strict=True):
        # Beside what it fills in for pairs that are not there, the least sum is not -inf to torch.
        expected = expected.masked_fill(expected < -1e307, -math.inf)
        torch.testing.assert_close(sums, expected, rtol=1e-10, atol=1e-10, equal_nan=True)
