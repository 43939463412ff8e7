"""Both passes see the same bits of a similarity.

The backward pass weighs a pair by 2^(z - lse). Where a row has one pair, or one beside which all
others vanish, that is 1 however large z is, if and only if z is what the forward pass had: with a
large gamma the last bit of a similarity would show in the gradient.
"""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.measuring.data import at_cosine
from circle_kernels import CircleFormula, UnifiedFormula, pair_logsumexp
from circle_kernels.formula import PairFormula
from tests.backends.triton.gpu.lanes import BY_LABEL, IN_INTERPRETER, Lane, for_every_lane
from tests.backends.triton.gpu.steps import for_every_dtype

# So that a last bit, 2^-25 of a similarity, is more than eps of the dtype in a weight; and so that
# the gradient, about as large, is in its range.
_GAMMAS = {torch.float32: 2.0**16, torch.float16: 2.0**15, torch.bfloat16: 2.0**20}
# Rounding of a weight, of its product, and twice by scales that are no powers of two.
_ROUNDINGS = 4


def gradient_error(lane: Lane, formula: PairFormula, inputs: list[Tensor], kind: int) -> float:
    """The largest error of the embeddings' gradient in units of its row's largest entry.

    Args:
        lane: where, and under which limits.
        formula: of the pairs.
        inputs: embeddings and labels, and those of references where there are some.
        kind: 0 for the gradient of positives' log-sum-exps, 1 for that of negatives'.
    """

    def gradient(backend: str, dtype: torch.dtype) -> Tensor:
        embeddings, *others = (
            value.to(lane.device, dtype) if value.is_floating_point() else value.to(lane.device)
            for value in inputs
        )
        embeddings.requires_grad_()
        statistic = pair_logsumexp(embeddings, *others, formula=formula, backend=backend)[kind]
        statistic = statistic[statistic != -math.inf]  # of rows that have such a pair
        return torch.autograd.grad(statistic.sum(), embeddings)[0].double()

    truth = gradient("tiled", torch.float64)
    with lane.limits():
        ours = gradient("triton", inputs[0].dtype)
    scale = truth.abs().amax(1, keepdim=True)
    of_rows = scale.squeeze(1) > 0
    assert of_rows.any()
    return ((ours - truth).abs() / scale)[of_rows].max().item()


def side(lane: Lane, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(lane.rows, 72, generator=generator).to(dtype)


@for_every_dtype
@pytest.mark.parametrize("references", [False, True])
@for_every_lane
def test_only_positive_of_a_row_has_all_of_the_weight(
    lane: Lane, references: bool, dtype: torch.dtype
) -> None:
    formula = UnifiedFormula(m=0.2, gamma=_GAMMAS[dtype])
    alone = torch.arange(lane.rows)
    inputs = [side(lane, dtype), alone // 2]
    if references:
        inputs = [side(lane, dtype), alone, side(lane, dtype, seed=1), alone.flip(0)]
    error = gradient_error(lane, formula, inputs, 0)
    assert error <= _ROUNDINGS * torch.finfo(dtype).eps


@pytest.mark.parametrize("lane", [pytest.param(BY_LABEL, marks=IN_INTERPRETER)], ids=str)
def test_last_bit_of_a_similarity_would_show(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass is given embeddings of which one entry is the next number."""
    backend = importlib.import_module("circle_kernels.backends.triton")
    right = backend.backward

    def other_bits(problem, passed, needs):
        nudged = problem.embeddings.detach().clone()
        nudged[:, 0] = nudged[:, 0].nextafter(torch.tensor(torch.inf))
        return right(problem._replace(embeddings=nudged), passed, needs)

    monkeypatch.setattr(backend, "backward", other_bits)
    formula = UnifiedFormula(m=0.2, gamma=_GAMMAS[torch.float32])
    inputs = [side(lane, torch.float32), torch.arange(lane.rows) // 2]
    assert gradient_error(lane, formula, inputs, 0) > 1e-3


@for_every_dtype
@for_every_lane
def test_only_negative_of_a_row_has_all_of_the_weight(lane: Lane, dtype: torch.dtype) -> None:
    formula = UnifiedFormula(m=0.2, gamma=_GAMMAS[dtype])
    labels = torch.zeros(lane.rows, dtype=torch.int64)
    ref_labels = labels.clone()
    ref_labels[lane.rows // 2] = 1
    inputs = [side(lane, dtype), labels, side(lane, dtype, seed=1), ref_labels]
    error = gradient_error(lane, formula, inputs, 1)
    assert error <= _ROUNDINGS * torch.finfo(dtype).eps


@for_every_dtype
@pytest.mark.parametrize("references", [False, True])
@for_every_lane
def test_negative_that_outweighs_all_others_has_all_of_the_weight(
    lane: Lane, references: bool, dtype: torch.dtype
) -> None:
    """In tiles without positives, whose sums are taken against a fixed shift: the logarithm of such
    a sum is rounded, and 2^(z - lse) is wrong by that."""
    formula = CircleFormula()
    half = normalize(side(lane, torch.float32)[: lane.rows // 2])
    # All others are at about 0, and weigh less than 2^-30 of these.
    partners = at_cosine(half, 0.8, torch.Generator().manual_seed(2))
    labels = torch.arange(2 * len(half))
    inputs = [torch.cat([half, partners]).to(dtype), labels]
    if references:
        inputs = [
            half.to(dtype),
            labels[: len(half)],
            partners.flip(0).to(dtype),
            labels[len(half) :],
        ]
    error = gradient_error(lane, formula, inputs, 1)
    # Squares of distances are at most this large, as base-2 exponents.
    rounding = 2 * torch.finfo(torch.float32).eps * formula.gamma / math.log(2)
    assert error <= _ROUNDINGS * torch.finfo(dtype).eps + rounding
