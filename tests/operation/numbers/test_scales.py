"""Embeddings and upstream gradients of any size."""

from __future__ import annotations

import math

import pytest
import torch

from circle_kernels import CircleFormula, UnifiedFormula, circle_loss, pair_logsumexp
from tests.support.batches import batch
from tests.support.cases import Case
from tests.support.targets import INTERPRETED, Target, for_every_backend

pytestmark = pytest.mark.backends
# Of upstream gradients, as powers of two; the interpreter takes a second for each.
ROWS, EXPONENTS = (70, (-100, 33, 100)) if INTERPRETED else (130, (-100, -40, 33, 45, 100))


def scaled_by_powers(values: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
    """Rows times powers of two, in two steps since a power may be beyond the dtype."""
    first = powers // 2
    for half in (2.0 ** first.double(), 2.0 ** (powers - first).double()):
        values = values * half.to(values.dtype)[:, None]
    return values


@for_every_backend
@pytest.mark.parametrize("sides", ["batch", "embeddings", "references", "both"])
@pytest.mark.parametrize(
    ("highest", "d"),  # of the exponents there are; copied by the Triton kernels, and not
    [(0.49, 5), (0.7, 16), (0.97, 5), (1, 16), *([] if INTERPRETED else [(0.97, 16), (1, 5)])],
)
def test_power_of_two_in_a_row_only_divides_its_gradient(
    target: Target, d: int, highest: float, sides: str, request: pytest.FixtureRequest
) -> None:
    """Also where squares overflow and, at the end of the exponents, where the norm does."""
    if highest == 1 and target.backend == "cpu":
        reason = "the C++ kernel takes a norm beyond its type, and squares beyond float64, for inf"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    for dtype in target.dtypes:
        if dtype == torch.float16 or (dtype == torch.float64 and highest < 1):
            continue  # norms of float16 are far from the end of float32
        largest = int(highest * math.frexp(torch.finfo(dtype).max)[1])
        with_references = sides != "batch"
        inputs = Case("random", n=24, m=20 if with_references else None, d=d).tensors(
            dtype, target.device
        )
        powers, results = [], []
        for place in (0, 2):
            if inputs[place] is None:
                continue
            values = inputs[place].detach()
            # Entries below 1, the largest of each row at least a half.
            values = scaled_by_powers(values, -values.abs().amax(1).float().frexp().exponent)
            power = torch.zeros(len(values), device=target.device)
            if sides in ("batch", "both", ("embeddings", "references")[place // 2]):
                power[::2] = largest
                power[1::4] = largest // 2
                power[3::8] = -20
            inputs[place] = values
            powers.append(power.to(torch.int32))
        for scaled in (False, True):
            leaves, arguments = [], list(inputs)
            for place, power in zip((0, 2), powers, strict=False):
                values = inputs[place]
                leaves.append(
                    (scaled_by_powers(values, power) if scaled else values).requires_grad_()
                )
                assert leaves[-1].isfinite().all()
                arguments[place] = leaves[-1]
            losses = circle_loss(*arguments, reduction="none", backend=target.backend)
            assert losses.isfinite().all()
            results.append((losses, torch.autograd.grad(losses.sum(), leaves)))
        (losses, grads), (scaled_losses, scaled_grads) = results
        assert torch.equal(scaled_losses, losses)
        for grad, scaled_grad, power in zip(grads, scaled_grads, powers, strict=True):
            expected = scaled_by_powers(grad.double(), -power)
            smallest = torch.finfo(dtype).smallest_normal
            # What lies well above the subnormal numbers is the same to the last bit.
            normal = expected.abs() >= 2.0**24 * smallest
            assert normal.any()
            assert torch.equal(scaled_grad[normal].double(), expected[normal])
            # Near them sums were rounded like subnormal numbers before the projection.
            eps = torch.finfo(dtype).eps
            allowed = eps * (64 * smallest + expected.abs().amax(1, keepdim=True))
            assert ((scaled_grad.double() - expected).abs() <= allowed).all()


@for_every_backend
@pytest.mark.parametrize("formula", [CircleFormula(), UnifiedFormula(m=0.2)], ids=lambda f: f.name)
def test_unnormalised_rows_may_be_as_large_as_their_products_allow(
    target: Target, formula: CircleFormula | UnifiedFormula
) -> None:
    for dtype in target.dtypes:
        if torch.finfo(dtype).max < 2.0**100:
            continue
        case = Case("random", n=24, m=20, d=16, formula=formula, normalize=False)
        embeddings, labels, references, ref_labels = case.tensors(dtype, target.device)
        results = [
            pair_logsumexp(
                embeddings.detach() * factor,
                labels,
                references.detach() / factor,
                ref_labels,
                formula=formula,
                normalize=False,
                backend=target.backend,
            )
            for factor in (1.0, 2.0**-80, 2.0**80)
        ]
        for result in results[1:]:
            for statistic, expected in zip(result, results[0], strict=True):
                assert torch.equal(statistic, expected)


@for_every_backend
@pytest.mark.parametrize("m", [None, 9])
def test_zero_vector_has_similarity_zero_and_a_finite_gradient(
    target: Target, m: int | None
) -> None:
    for dtype in target.dtypes:
        embeddings, labels = batch(dtype=dtype, device=target.device)
        embeddings = embeddings.detach().clone()
        embeddings[3] = 0
        embeddings.requires_grad_()
        references = (None, None) if m is None else batch(m, dtype=dtype, device=target.device)
        losses = circle_loss(
            embeddings, labels, *references, reduction="none", backend=target.backend
        )
        losses.sum().backward()
        assert embeddings.grad.isfinite().all()
        truth = circle_loss(
            embeddings.detach().double(),
            labels,
            *(value.double() if value is references[0] and m else value for value in references),
            reduction="none",
            backend="reference",
        )
        torch.testing.assert_close(losses.double(), truth, rtol=1e-4, atol=1e-3)


@for_every_backend
def test_loss_scaling_does_not_overflow(target: Target) -> None:
    """Gradients at a loss scale of 65536 are those without it, times 65536, in range or not."""
    for dtype in target.dtypes:
        embeddings, labels = batch(64, depth=16, dtype=dtype, device=target.device)
        loss = circle_loss(embeddings, labels, gamma=256, m=0.25, backend=target.backend)
        (grad,) = torch.autograd.grad(loss, embeddings, retain_graph=True)
        (scaled,) = torch.autograd.grad(loss * 65536, embeddings)
        expected = (grad.double() * 65536).clamp(-torch.inf, torch.inf)
        in_range = expected.abs() < torch.finfo(dtype).max / 2
        assert in_range.any()
        scale = expected[in_range].abs().max().item()
        torch.testing.assert_close(
            scaled[in_range].double(),
            expected[in_range],
            rtol=2 * torch.finfo(dtype).eps,
            atol=8 * torch.finfo(dtype).eps * scale,
        )


@for_every_backend
@pytest.mark.parametrize("m", [None, 40])
@pytest.mark.parametrize(
    ("regime", "gamma"), [("random", 16.0), ("clusters", 80.0), ("clusters", 512.0)]
)
def test_gradients_are_in_proportion_to_upstream_gradients_of_any_size(
    target: Target, m: int | None, regime: str, gamma: float
) -> None:
    """Neither out of the exponent's range on the way, nor into nothing."""
    formula = CircleFormula(m=0.25, gamma=gamma)
    for dtype in target.dtypes:
        if dtype == torch.float16:
            continue  # test_loss_scaling_does_not_overflow
        # Spread out: a tile's exponentials then fill the exponent's range.
        inputs = Case(regime, n=ROWS, m=m, d=12).tensors(dtype, target.device)
        statistics = pair_logsumexp(*inputs, formula=formula, backend=target.backend)
        wanted = [value for value in inputs[::2] if value is not None]
        upstream = torch.linspace(-0.5, 1, 2 * ROWS, dtype=statistics[0].dtype).to(target.device)

        ones, *scaled = (
            torch.autograd.grad(
                statistics, wanted, tuple(2.0**exponent * upstream.view(2, -1)), retain_graph=True
            )
            for exponent in (0, *EXPONENTS)
        )
        for exponent, values in zip(EXPONENTS, scaled, strict=True):
            for value, of_ones in zip(values, ones, strict=True):
                eps, expected = torch.finfo(dtype).eps, of_ones.double()
                torch.testing.assert_close(
                    value.double() * 2.0**-exponent,
                    expected,
                    rtol=0,
                    atol=(16 + 2 * gamma) * eps * expected.abs().max().item(),  # as the yardstick
                )
