"""Listed pairs of tensors without memory: the truth, or an error that names them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.apart import apart
from tests.support.batches import ROWS, batch_with_references
from tests.support.public_losses import REFUSALS, assert_close, listed_logsumexps
from tests.support.tensor_kinds import Wrapper


def fake(value: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(value.detach())


def zeros(value: Tensor) -> Tensor:
    return torch._efficientzerotensor(value.shape, dtype=value.dtype)


def wrap(value: Tensor) -> Tensor:
    return Wrapper(value.detach())


MEMORYLESS = {"fake": fake, "zero": zeros, "wrapper": wrap}


def expect_truth_or_refusal(name: str, compute: Callable[[], list[Tensor]], expected) -> None:
    """The right numbers, or an error that names the argument."""
    try:
        results = compute()
    except REFUSALS as error:
        if name not in str(error):
            raise
        return
    assert expected is not None, "numbers from a tensor that has none"
    assert_close([getattr(each, "wrapped", each) for each in results], expected)


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("kind", MEMORYLESS)
@apart
def test_listed_pairs_of_tensors_without_memory_are_right_or_named(kind: str, short: bool) -> None:
    x, _, references, _ = batch_with_references(requires_grad=False)
    plain = zeros(references).clone() if kind == "zero" else references
    expected = None
    if kind != "fake":
        expected = list(listed_logsumexps(x.double(), plain.double(), short))
    unlike = MEMORYLESS[kind](references)
    # What the two functions are given has names only where the drop-in calls them.
    names = ("", "") if kind == "fake" else ("ref_emb", "grad")
    expect_truth_or_refusal(names[0], lambda: list(listed_logsumexps(x, unlike, short)), expected)
    leaf = x.clone().requires_grad_()
    upstream = torch.rand(ROWS)
    scale = {"fake": None, "zero": 0.0, "wrapper": 1.0}[kind]

    def compute(values: Tensor, scaled: Tensor) -> list[Tensor]:
        lse_pos, _ = listed_logsumexps(values, None, short)
        return list(torch.autograd.grad(lse_pos, values, scaled))

    if scale is not None:
        wide = x.double().requires_grad_()
        expected = compute(wide, scale * upstream.double())
    expect_truth_or_refusal(names[1], lambda: compute(leaf, MEMORYLESS[kind](upstream)), expected)
