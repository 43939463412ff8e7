"""Results that only a device can show to be right: races, and sizes beyond 32 bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from circle_kernels import CircleFormula, ClassCircleLoss, pair_logsumexp
from tests.backends.triton.gpu.steps import (
    DTYPES,
    LARGE,
    MANY,
    assert_bitwise_equal,
    batch,
    for_every_dtype,
    for_every_size,
    loss_and_gradients,
)
from tests.support.cases import Case
from tests.support.targets import ON_GPU
from tests.support.yardstick import Yardstick, gradients, yardsticks

pytestmark = ON_GPU


@pytest.mark.parametrize(("n", "m", "d"), LARGE)
def test_large_sizes_are_in_label_order(n: int, m: int | None, d: int) -> None:
    """Or the sizes here would no longer test what they are for."""
    pytest.importorskip("triton")
    from circle_kernels.backends.triton.conditions import conditions_on
    from circle_kernels.backends.triton.plan import Shape, plan_walk

    conditions = conditions_on(torch.device("cuda"))
    for dtype in DTYPES:
        walk = plan_walk(Shape(n, m or n, m is None, dtype, d), conditions)
        assert walk.by_label
        assert walk.triangle == (m is None)


@for_every_dtype
@for_every_size
def test_results_are_bitwise_the_same_from_run_to_run(
    n: int, m: int | None, d: int, dtype: torch.dtype
) -> None:
    inputs = batch(n, m, d, dtype)
    first = loss_and_gradients(inputs)
    for _ in range(4):
        # Other memory, with something else in it, and a device that is busy when the kernels start.
        noise = torch.full((n, 3 * d), torch.nan, device="cuda")
        noise = noise @ noise.T
        assert_bitwise_equal(loss_and_gradients(inputs), first)
        del noise


@for_every_dtype
@pytest.mark.parametrize(
    "case",
    [
        Case("random", n=MANY, d=64),
        Case("random", n=MANY, d=600),
        Case("clusters", n=MANY, d=64),
        Case("mixed_empty_rows", n=MANY, d=64),
        Case("random", n=MANY - 500, m=MANY + 1_000, d=64),
        Case("clusters", n=MANY - 500, m=MANY + 1_000, d=600),
        Case("random", n=MANY, d=64, formula=CircleFormula(m=0.25, gamma=256.0)),
    ],
    ids=str,
)
def test_sizes_in_label_order_are_as_exact_as_eager(case: Case, dtype: torch.dtype) -> None:
    # The float64 oracle with its gradient holds about ten matrices.
    needed = 10 * 8 * case.n * (case.m or case.n)
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"the oracle needs {needed / 1e9:.1f} GB")
    inputs = case.tensors(dtype, "cuda")
    lse_pos, lse_neg = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
    grads = gradients(lse_pos, lse_neg, inputs)
    lse_yardsticks, grad_yardsticks = yardsticks(case, dtype, "cuda")
    for ours, yardstick in zip((lse_pos, lse_neg), lse_yardsticks, strict=True):
        yardstick.assert_close(ours, torch.finfo(torch.float32).eps, case.formula.gamma)
    for ours, yardstick in zip(grads, grad_yardsticks, strict=True):
        yardstick.assert_close(ours, torch.finfo(dtype).eps, case.formula.gamma)


@for_every_dtype
def test_more_than_2_31_pairs_are_as_exact_as_the_tiled_backend(dtype: torch.dtype) -> None:
    """Loss and gradient in self mode, in several bands; the matrix would not fit for the oracle."""
    inputs = batch(50_000, None, 64, dtype)
    formula = CircleFormula()
    results = {}
    for backend, compute in (("triton", dtype), ("tiled", dtype), ("tiled", torch.float64)):
        value = [inputs[0].detach().to(compute).requires_grad_(), inputs[1]]
        statistics = pair_logsumexp(*value, formula=formula, backend=backend)
        results[backend, compute] = [*statistics, *gradients(*statistics, value)]
    for index, ours in enumerate(results["triton", dtype]):
        truth, tiled = (
            results["tiled", compute][index].detach().cpu() for compute in (torch.float64, dtype)
        )
        Yardstick(truth, tiled).assert_close(ours, torch.finfo(ours.dtype).eps, formula.gamma)


@pytest.mark.parametrize("shape", [(70_000, 32, 40_000), (1_100_000, 2048, None)])
def test_offsets_beyond_32_bits(shape: tuple[int, int, int | None]) -> None:
    """N·M, and N·D, beyond 2**31 entries: the last rows are right."""
    n, d, m = shape
    generator = torch.Generator("cuda").manual_seed(0)
    embeddings = torch.randn(n, d, device="cuda", dtype=torch.bfloat16, generator=generator)
    if m is None:
        references, rows = embeddings[-512:], embeddings[-4096:]
        big = torch.arange(n, device="cuda") // 4
        lse = pair_logsumexp(
            references, big[-512:], embeddings, big, formula=CircleFormula(), backend="triton"
        )
        part = pair_logsumexp(
            references, big[-512:], rows, big[-4096:], formula=CircleFormula(), backend="triton"
        )
        torch.testing.assert_close(lse[0], part[0], rtol=1e-5, atol=1e-3)
        return
    references = torch.randn(m, d, device="cuda", dtype=torch.bfloat16, generator=generator)
    labels, ref_labels = torch.arange(n, device="cuda") // 4, torch.arange(m, device="cuda") // 4
    whole = pair_logsumexp(
        embeddings, labels, references, ref_labels, formula=CircleFormula(), backend="triton"
    )
    tail = pair_logsumexp(
        embeddings[-300:].float(),
        labels[-300:],
        references.float(),
        ref_labels,
        formula=CircleFormula(),
        backend="reference",
    )
    for ours, expected in zip(whole, tail, strict=True):
        torch.testing.assert_close(ours[-300:], expected, rtol=1e-4, atol=1e-2)


@for_every_dtype
def test_class_loss_is_the_cross_entropy_of_its_logits(dtype: torch.dtype) -> None:
    head = ClassCircleLoss(30_001, 64, gamma=16.0, reduction="none", device="cuda", dtype=dtype)
    embeddings = torch.randn(300, 64, device="cuda", dtype=dtype)
    labels = torch.randint(0, 30_001, (300,), device="cuda")
    losses = head(embeddings, labels)
    logits = head.double().get_logits(embeddings.double(), labels)
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=0, atol=3e-2)
    labels[7] = 30_001
    assert head.to(dtype)(embeddings, labels).isnan().nonzero().tolist() == [[7]]
