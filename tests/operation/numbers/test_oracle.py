"""Every backend against the float64 oracle on the same inputs, in every regime."""

from __future__ import annotations

import pytest
import torch

from circle_kernels import pair_logsumexp
from tests.support.cases import Case, for_every_case, for_every_large_case
from tests.support.formulas import steepness
from tests.support.targets import INTERPRETED, Target, for_every_backend
from tests.support.yardstick import gradients, yardsticks

pytestmark = [pytest.mark.backends, pytest.mark.sanitized]


@for_every_backend
@for_every_case
def test_logsumexps_and_gradients_are_as_exact_as_eager(target: Target, case: Case) -> None:
    gamma = steepness(case.formula)
    for dtype in target.few_dtypes if case.is_about_shapes else target.dtypes:
        inputs = case.tensors(dtype, target.device)
        lse_pos, lse_neg = pair_logsumexp(
            *inputs, formula=case.formula, normalize=case.normalize, backend=target.backend
        )
        result_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        assert lse_pos.dtype == lse_neg.dtype == result_dtype
        grads = gradients(lse_pos, lse_neg, inputs)

        lse_yardsticks, grad_yardsticks = yardsticks(case, dtype)
        for ours, yardstick in zip((lse_pos, lse_neg), lse_yardsticks, strict=True):
            # Sums are kept in float32 whatever the inputs' dtype.
            yardstick.assert_close(ours, torch.finfo(result_dtype).eps, gamma)
        # In float64 the truth is no better than we are: where the gradient cancels to nothing, what
        # both leave is rounding of terms of the size gamma / |x|.
        norms = torch.cat([x.detach().norm(dim=1) for x in inputs[::2] if x is not None])
        floor = 4 * gamma / norms.min().item() if dtype == torch.float64 else 0.0
        for ours, yardstick in zip(grads, grad_yardsticks, strict=True):
            assert ours.dtype == dtype
            yardstick.assert_close(ours, torch.finfo(dtype).eps, gamma, scale=floor)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter would take minutes")
@for_every_backend
@for_every_large_case
def test_long_sums_of_correlated_terms_are_as_exact_as_eager(target: Target, case: Case) -> None:
    """Without an allowance, which would hide roundings that all lie on one side."""
    if target.tile is not None:
        pytest.skip("thousands of tiny tiles")
    for dtype in {torch.float32}.intersection(target.dtypes) or target.dtypes:
        inputs = case.tensors(dtype, target.device)
        statistics = pair_logsumexp(
            *inputs, formula=case.formula, normalize=case.normalize, backend=target.backend
        )
        results = (*statistics, *gradients(*statistics, inputs))
        lse_yardsticks, grad_yardsticks = yardsticks(case, dtype)
        for ours, yardstick in zip(results, (*lse_yardsticks, *grad_yardsticks), strict=True):
            yardstick.assert_as_exact_as_eager(ours)
