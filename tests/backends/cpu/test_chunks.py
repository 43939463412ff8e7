"""Problems that the C++ kernel takes in several parts: the same results as in one."""

from __future__ import annotations

import pytest
import torch

from circle_kernels import pair_logsumexp
from tests.backends.cpu.steps import (
    FORMULA,
    NEEDS_KERNEL,
    assert_equal,
    batch,
    class_batch,
    results,
)

pytestmark = NEEDS_KERNEL


# 16 panels of 96 rows are a chunk of the backward pass, 48 one of the forward pass.
@pytest.mark.parametrize(
    ("n", "m"), [(1700, None), (4800, None), (1700, 100), (50, 4800), (4800, 97)]
)
def test_problems_of_several_chunks_agree_with_tiled(n: int, m: int | None) -> None:
    inputs = batch(n, 6, torch.float64)
    if m is not None:
        inputs += batch(m, 6, torch.float64, seed=1)
    for ours, expected in zip(results(inputs), results(inputs, "tiled"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


# Columns are held 48 panels at a time, or 16 where there are many rows.
@pytest.mark.parametrize(("n", "num_classes"), [(5, 14_000), (300, 5000), (1700, 3200), (96, 96)])
def test_class_weights_of_several_chunks_agree_with_tiled(n: int, num_classes: int) -> None:
    inputs = class_batch(n, num_classes, 6, torch.float64)
    for ours, expected in zip(results(inputs), results(inputs, "tiled"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_consecutive_labels_may_begin_anywhere() -> None:
    inputs = class_batch(300, 200, 6, torch.float32)
    expected = results(inputs)
    for first in (-70, 2**40, torch.iinfo(torch.int64).min + 30):
        moved = [inputs[0], inputs[1] + first, inputs[2], inputs[3] + first]
        assert_equal(results(moved), expected)


def test_bad_class_weight_makes_the_sums_that_saw_it_nan() -> None:
    inputs = class_batch(300, 5000, 6, torch.float32)
    inputs[2].data[4900, 3] = torch.nan
    inputs[1][:2] = 4900
    lse_pos, lse_neg = pair_logsumexp(*inputs, formula=FORMULA, backend="cpu")
    own = inputs[1] == 4900
    assert torch.equal(lse_pos.isnan(), own)
    assert torch.equal(lse_neg.isnan(), ~own)
